import type { NativeHandle } from '../core/binding.js';
import { checkShape, checkTensor, checkVector } from '../core/check-tensor.js';
import type { DType } from '../core/dtype.js';
import { fail } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { checkSameDevice, ownFields, readNames } from '../core/validate.js';

/** A gradient that an op can compute. */
export interface GradientSpec {
  readonly shape: readonly number[];
  readonly dtype: DType;
  /** Allows a tensor to add to of any dtype, rather than of this one only. */
  readonly anyDType?: boolean;
}

/** The part of a backward call that describes its results. */
export interface GradientCall<Name extends string> {
  needs?: readonly Name[] | undefined;
  accumulateInto?: { [name in Name]?: Tensor } | undefined;
}

/**
 * Which gradients a call wants, fresh or added to. Every tensor to add to is checked, even if its
 * gradient is not wanted.
 * @throws ERR_TYPE, ERR_VALUE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED
 */
export class WantedGradients<Name extends string> {
  readonly #names: readonly Name[];
  readonly #specs: Record<Name, GradientSpec>;
  readonly #wanted: ReadonlySet<Name>;
  readonly #targets: { [name in Name]?: Tensor };
  readonly #device: Tensor['device'];

  /** @param defaults the gradients wanted if the call has no `needs`; the tensors to add to come on top */
  constructor(
    op: string,
    specs: Record<Name, GradientSpec>,
    defaults: readonly Name[],
    given: GradientCall<Name>,
    near: Tensor,
  ) {
    const names = Object.keys(specs) as Name[];
    const { needs = defaults, accumulateInto } = ownFields(op, given);
    const targets = ownFields(op, accumulateInto) as { [name in Name]?: Tensor };
    this.#wanted = new Set(readNames(op, 'needs', needs, names));
    for (const name of readNames(op, 'accumulateInto', Object.keys(targets), names)) {
      const target = targets[name];
      if (target === undefined) continue;
      const operand = `accumulateInto.${name}`;
      const { shape, dtype, anyDType } = specs[name];
      checkTensor(op, operand, target);
      if (shape.length === 1) checkVector(op, operand, target, shape[0] as number);
      else checkShape(op, operand, target, shape);
      checkSameDevice(op, operand, target, near);
      if (anyDType !== true && target.dtype !== dtype) {
        fail('ERR_DTYPE', op, operand, dtype, target.dtype);
      }
    }
    this.#names = names;
    this.#specs = specs;
    this.#targets = targets;
    this.#device = near.device;
  }

  has(name: Name): boolean {
    return this.#wanted.has(name);
  }

  /** The addon's form of each gradient: null, the dtype of a fresh one, or the tensor to add to. */
  raw(op: string): Array<NativeHandle | DType | null> {
    return this.#names.map((name) => {
      if (!this.#wanted.has(name)) return null;
      const target = this.#targets[name];
      return target === undefined
        ? this.#specs[name].dtype
        : Tensor.handleOf(target, op, `accumulateInto.${name}`);
    });
  }

  /** Makes tensors from the addon's results. */
  adopt(handles: ReadonlyArray<NativeHandle | null>): { [name in Name]?: Tensor } {
    const gradients: { [name in Name]?: Tensor } = {};
    this.#names.forEach((name, i) => {
      if (!this.#wanted.has(name)) return;
      const handle = handles[i];
      const { shape, dtype } = this.#specs[name];
      gradients[name] =
        handle === null || handle === undefined
          ? (this.#targets[name] as Tensor)
          : Tensor.adopt(handle, shape, dtype, this.#device);
    });
    return gradients;
  }
}
