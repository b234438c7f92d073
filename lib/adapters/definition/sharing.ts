import { fail } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import { showShape } from '../../core/validate.js';
import { leadingPart } from './leading-part.js';
import type { AdapterMaker, LayerSize } from './maker.js';

/**
 * The layers of a model between which a tensor is shared: all, those of one size (N and K), or those of one size and
 * kind. The kind is the last part of a module's name (`q_proj`). Layers without a name are of one kind.
 */
export type SharedBy = 'model' | 'size' | 'kind';

/** What determines which layers share. */
export interface SharingLayer extends LayerSize {
  readonly module?: string | undefined;
}

/** @internal The tensors that layers share: those in `shared`, and those that PEFT stores once for all layers. */
export function sharedOf<Name extends string>({
  trained,
  frozen = [],
  shared,
  peft,
}: {
  readonly trained: readonly Name[];
  readonly frozen?: readonly Name[];
  readonly shared?: Readonly<Partial<Record<Name, SharedBy>>>;
  readonly peft?: {
    readonly shared?: Readonly<Partial<Record<Name, string>>>;
    readonly sharedName?: unknown;
  };
}): ReadonlyMap<Name, SharedBy> {
  const found = new Map<Name, SharedBy>();
  for (const name of [...trained, ...frozen]) {
    const once = peft?.sharedName === undefined && peft?.shared?.[name] !== undefined;
    const by = shared?.[name] ?? (once ? 'model' : undefined);
    if (by !== undefined) found.set(name, by);
  }
  return found;
}

/** @internal Layers with the same key share the tensor of that name. */
export function shareKey(
  name: string,
  by: SharedBy,
  { inFeatures, outFeatures, module = '' }: SharingLayer,
): string {
  if (by === 'model') return name;
  const size = `${name} ${outFeatures}x${inFeatures}`;
  return by === 'size' ? size : `${size} ${module.split('.').at(-1)}`;
}

interface Stored {
  readonly values: Float32Array;
  readonly shape: readonly number[];
  /** Of the first layer in each shape. */
  readonly tensors: Map<string, Tensor>;
}

/** @internal The tensors that the layers of one model share, while their adapters are being made. */
export class SharedTensors<Name extends string> {
  readonly #op: string;
  readonly #by: ReadonlyMap<Name, SharedBy>;
  readonly #known = new Map<string, Stored>();

  constructor(op: string, by: ReadonlyMap<Name, SharedBy>) {
    this.#op = op;
    this.#by = by;
  }

  /** Is there a tensor that all layers share, but of which they use different parts? */
  needsWhole(makes: readonly AdapterMaker<object, Name>[]): boolean {
    return [...this.#by].some(([name, by]) => {
      const shapes = new Set(makes.map((make) => String(make.shapes[name])));
      return by === 'model' && shapes.size > 1;
    });
  }

  /** Stores the tensors that all layers share, in the size of the largest layer. */
  putWhole(tensors: Readonly<Partial<Record<Name, Tensor>>>): void {
    for (const [name, by] of this.#by) {
      const tensor = tensors[name];
      if (by !== 'model' || tensor === undefined) continue;
      this.#known.set(name, { values: tensor.readSync(), shape: tensor.shape, tensors: new Map() });
    }
  }

  /**
   * The tensors that other layers have already: the same memory where the shapes agree, else a copy of the leading part
   * that this layer uses.
   */
  of(
    layer: SharingLayer,
    { shapes, dtype, device }: AdapterMaker<object, Name>,
  ): Partial<Record<Name, Tensor>> {
    const found: Partial<Record<Name, Tensor>> = {};
    for (const [name, by] of this.#by) {
      const known = this.#known.get(shareKey(name, by, layer));
      if (known === undefined) continue;
      const shape = shapes[name];
      if (by !== 'model' && showShape(shape) !== showShape(known.shape)) {
        const expected = `of the same shape in all layers that share it, ${showShape(known.shape)}`;
        fail('ERR_VALUE', this.#op, name, expected, showShape(shape));
      }
      const tensor = known.tensors.get(showShape(shape));
      if (tensor?.dtype === dtype && tensor.device === device) {
        found[name] = tensor.reshape(shape);
        continue;
      }
      const values = leadingPart(known.values, known.shape, shape);
      found[name] = Tensor.from(values, shape, { dtype, device });
    }
    return found;
  }

  /** Stores the shared tensors that this layer is the first to have. */
  put(layer: SharingLayer, tensors: Readonly<Partial<Record<Name, Tensor>>>): void {
    for (const [name, by] of this.#by) {
      const key = shareKey(name, by, layer);
      const tensor = tensors[name];
      if (tensor === undefined) continue;
      const { shape } = tensor;
      const known = this.#known.get(key) ?? {
        values: tensor.readSync(),
        shape,
        tensors: new Map<string, Tensor>(),
      };
      this.#known.set(key, known);
      if (!known.tensors.has(showShape(shape))) known.tensors.set(showShape(shape), tensor);
    }
  }
}
