import { type NativeHandle, native, type RawProjection } from '../../core/binding.js';
import { checkShape, checkTensor } from '../../core/check-tensor.js';
import { fail, notConstructed, wrongType } from '../../core/errors.js';
import { scope, track } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { orDefault, ownFields, readNames, readOptions } from '../../core/validate.js';
import { type BaseWeight, checkActivations, checkWeight, withLast } from '../base-weight.js';
import { type ComputePrecision, checkCompute } from '../compute.js';
import { checkTraining } from '../dropout.js';
import { multiplyAdd } from '../elementwise.js';
import { biasOf, matmul, matmulInputGrad } from '../matmul.js';
import { zeroTermOf } from '../zero-points.js';
import type { LoraAdapter } from './lora-adapter.js';
import {
  LORA_GRADIENTS,
  type LoraGradient,
  type LoraGradients,
  loraBackwardCall,
  loraForward,
  loraForwardCall,
} from './lora-linear.js';
import { type LoraForwardCall, LoraSaved } from './lora-saved.js';

/** One of the linear layers that read the same x: query, key or value; gate or up. */
export interface LoraProjection {
  /** [N, K] */
  w: BaseWeight;
  /** Default none: only the base product. */
  adapter?: LoraAdapter;
  /** [N] */
  bias?: Tensor;
  /** Seed of this projection's dropout mask; PEFT draws one mask per layer. */
  seed?: number;
  /** [..., K], 1 = kept: replaces the generator. */
  dropoutMask?: Tensor;
  /** Precision of the product with `w`. Default `exact`. */
  compute?: ComputePrecision;
}

/** Maximum number of projections in one call. */
const MOST = 8;

/** State for {@link loraBackwardMany}, projection by projection. */
export class LoraManySaved implements Disposable {
  /** For a projection without an adapter, its weight and the shape of its y. */
  readonly projections: readonly (
    | LoraSaved
    | { readonly w: BaseWeight; readonly yShape: readonly number[] }
  )[];
  #disposed = false;

  /** @internal */
  constructor(projections: LoraManySaved['projections']) {
    if (!Array.isArray(projections) || !projections.every((each) => Array.isArray(each?.yShape))) {
      throw notConstructed('LoraManySaved', 'loraForwardMany');
    }
    this.projections = projections;
    track(this);
  }

  static is(value: unknown): value is LoraManySaved {
    return typeof value === 'object' && value !== null && #disposed in value;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Frees the saved state. A second call does nothing. */
  dispose(): void {
    this.#disposed = true;
    for (const saved of this.projections) if (LoraSaved.is(saved)) saved.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** A projection in the addon's form. */
export interface Part {
  readonly w: BaseWeight;
  readonly args: RawProjection;
  readonly N: number;
  readonly adapted?: { readonly call: LoraForwardCall; readonly r: number };
}

/** Checks everything of a projection. @throws as {@link loraForwardMany} */
export function partOf(op: string, x: Tensor, given: LoraProjection, training: boolean): Part {
  const { w, adapter, bias, seed, dropoutMask, compute } = readOptions(op, given, {
    w: true,
    adapter: true,
    bias: true,
    seed: true,
    dropoutMask: true,
    compute: true,
  });
  const { weight, handle, N, K } = checkWeight(op, w);
  if (adapter !== undefined) {
    const options = {
      training,
      ...(bias === undefined ? {} : { bias }),
      ...(seed === undefined ? {} : { seed }),
      ...(dropoutMask === undefined ? {} : { dropoutMask }),
      ...(compute === undefined ? {} : { compute }),
    };
    const call = loraForwardCall(op, x, weight, adapter, options);
    return { w: weight, args: call.args, N, adapted: { call, r: adapter.r } };
  }
  checkActivations(op, 'x', x, weight, 'K', K);
  for (const [name, value] of Object.entries({ seed, dropoutMask })) {
    if (value !== undefined) fail('ERR_VALUE', op, name, 'left out without an adapter', 'a value');
  }
  const base = [handle, biasOf(op, bias, x, N), null, null, null, 0, 0, 0, 0, null] as const;
  return { w: weight, args: [...base, checkCompute(op, compute, x, weight)], N };
}

/** The state of a projection: from its handles h, null without an adapter, and x if it is held. */
export function savedOf(
  { w, adapted }: Part,
  x: Tensor,
  y: Tensor,
  h: NativeHandle | null,
  held: NativeHandle | null,
): LoraManySaved['projections'][number] {
  if (adapted === undefined) return { w, yShape: y.shape };
  const { call, r } = adapted;
  const kept = Tensor.adopt(h as NativeHandle, withLast(x, r), 'f32', x.device);
  return call.complete(y, kept, held).saved;
}

/**
 * Several linear layers over the same x in one call: query, key and value, or gate and up, each with
 * its own weight and optional adapter. `ys[i]` has the bits of {@link loraForward}, or `matmul`, of
 * projection i. On `cpu`, x is packed once for weights of one kind and their tasks run in parallel,
 * which helps small weights and few tokens.
 * @param x [..., K] f32, bf16 or f16
 * @param projections 1 to 8
 * @param options.training default true. `false` turns dropout off and saves nothing
 * @returns `ys[i]` [..., N of projection i], dtype of `x`, and the state for
 * {@link loraBackwardMany}
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_UNSUPPORTED, ERR_DISPOSED,
 * ERR_OOM; then nothing is computed
 * @example
 * const { ys: [q, k, v], saved } = loraForwardMany(x, [
 *   { w: wq, adapter: loraQ }, { w: wk }, { w: wv, adapter: loraV },
 * ]);
 * const { dx, gradients } = loraBackwardMany([dq, dk, dv], saved);
 */
export function loraForwardMany(
  x: Tensor,
  projections: readonly LoraProjection[],
  options?: { training?: boolean },
): { ys: Tensor[]; saved: LoraManySaved } {
  const op = 'loraForwardMany';
  checkTensor(op, 'x', x);
  if (!Array.isArray(projections)) throw wrongType(op, 'projections', 'an array', projections);
  if (projections.length < 1 || projections.length > MOST) {
    fail('ERR_VALUE', op, 'projections', `1 to ${MOST}`, String(projections.length));
  }
  const training = checkTraining(op, readOptions(op, options, { training: true }).training);
  const parts = Array.from(projections, (given: LoraProjection, i) =>
    partOf(`${op}, projections[${i}]`, x, given, training),
  );
  if (parts.some(({ w }) => zeroTermOf(w) !== undefined)) {
    return oneByOne(x, projections, training);
  }
  const xHandle = Tensor.handleOf(x, op, 'x');
  const [raw, held] = native(op, (binding) => [
    binding.loraForwardMany(
      xHandle,
      parts.map(({ args }) => args),
    ),
    parts.map(({ adapted }) => (adapted?.call.keepX ? binding.share(xHandle) : null)),
  ]);
  const ys: Tensor[] = [];
  const saved = parts.map((part, i) => {
    const yHandle = raw[2 * i] as NativeHandle;
    const y = Tensor.adopt(yHandle, withLast(x, part.N), x.dtype, x.device);
    ys.push(y);
    return savedOf(part, x, y, raw[2 * i + 1] ?? null, held[i] ?? null);
  });
  return { ys, saved: new LoraManySaved(saved) };
}

/** The same one projection at a time, if a weight has zero-points. */
export function oneByOne(
  x: Tensor,
  projections: readonly LoraProjection[],
  training: boolean,
): { ys: Tensor[]; saved: LoraManySaved } {
  return scope(() => {
    const ys: Tensor[] = [];
    const saved = projections.map((projection) => {
      const { w, adapter, ...options } = ownFields('loraForwardMany', projection) as LoraProjection;
      const { seed: _, dropoutMask: __, ...base } = options;
      const done =
        adapter === undefined
          ? { y: matmul(x, w, base), saved: undefined }
          : loraForward(x, w, adapter, { ...options, training });
      ys.push(done.y);
      return done.saved ?? { w, yShape: done.y.shape };
    });
    return { ys, saved: new LoraManySaved(saved) };
  });
}

/** Options of {@link loraBackwardMany}. */
export interface LoraBackwardManyOptions {
  /** The wanted gradients of each projection; default those of {@link loraBackward}. */
  needs?: readonly LoraGradient[];
  /** For each projection: adds to these tensors instead of making new ones. */
  accumulateInto?: readonly (Omit<LoraGradients, 'dx'> | undefined)[];
  /** Keep the saved state for another backward pass. Default false: it is freed. */
  keep?: boolean;
}

/**
 * Gradients of {@link loraForwardMany}. `dx` is the sum over the projections, in their order, rounded
 * to the dtype of x after each. `gradients[i]` has the other gradients of projection i, as
 * {@link loraBackward} defines them (empty without an adapter).
 * @param dys the dy [..., N] of each projection, in the dtype of `x`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
 * @example
 * const { ys, saved } = loraForwardMany(x, [{ w: wq, adapter: q }, { w: wv, adapter: v }]);
 * const { dx, gradients } = loraBackwardMany([dq, dv], saved);
 */
export function loraBackwardMany(
  dys: readonly Tensor[],
  saved: LoraManySaved,
  options?: LoraBackwardManyOptions,
): { dx?: Tensor; gradients: LoraGradients[] } {
  const op = 'loraBackwardMany';
  if (!LoraManySaved.is(saved)) {
    throw wrongType(op, 'saved', 'the saved state of loraForwardMany', saved);
  }
  return backwardMany(op, dys, saved, options, (i) => `projections[${i}]`);
}

/** {@link loraBackwardMany} for `op`. `nameOf` names the projections in errors. */
export function backwardMany(
  op: string,
  dys: readonly Tensor[],
  saved: LoraManySaved,
  options: LoraBackwardManyOptions | undefined,
  nameOf: (i: number) => string,
): { dx?: Tensor; gradients: LoraGradients[] } {
  if (saved.disposed) fail('ERR_DISPOSED', op, 'saved', 'live saved state', 'a disposed one');
  const { projections } = saved;
  if (!Array.isArray(dys)) throw wrongType(op, 'dys', 'an array', dys);
  const count = projections.length;
  if (dys.length !== count) fail('ERR_SHAPE', op, 'dys', `of length ${count}`, `${dys.length}`);
  const { needs, accumulateInto, keep } = readOptions(op, options, {
    needs: true,
    accumulateInto: true,
    keep: true,
  });
  const into = orDefault(accumulateInto, []);
  if (!Array.isArray(into)) throw wrongType(op, 'accumulateInto', 'an array', into);
  const targets = projections.map((_, i): LoraGradients => ownFields(op, into[i]));
  projections.forEach(({ yShape }, i) => {
    const dy = checkTensor(op, `dys[${i}]`, dys[i]);
    checkShape(op, `dys[${i}]`, dy, yShape);
    if (dy.dtype !== dys[0]?.dtype) {
      fail('ERR_DTYPE', op, `dys[${i}]`, `${dys[0]?.dtype}, as dys[0]`, dy.dtype);
    }
    if (targets[i]?.dx !== undefined) {
      fail(
        'ERR_VALUE',
        op,
        `accumulateInto[${i}]`,
        'without dx, which all projections share',
        'dx',
      );
    }
  });
  const wanted = needs === undefined ? undefined : readNames(op, 'needs', needs, LORA_GRADIENTS);
  const wantsDx = wanted === undefined || wanted.includes('dx');
  const calls = projections.map((projection, i) => {
    const dy = dys[i] as Tensor;
    if (!LoraSaved.is(projection)) {
      const { weight, N } = checkWeight(op, projection.w);
      checkActivations(op, `dys[${i}]`, dy, weight, 'N', N);
      return undefined;
    }
    return loraBackwardCall(`${op}, ${nameOf(i)}`, dy, projection, {
      ...(wanted === undefined ? {} : { needs: wanted }),
      accumulateInto: targets[i] as LoraGradients,
      keep: true,
    });
  });
  let dx: Tensor | undefined;
  const made: Tensor[] = [];
  try {
    const gradients = calls.map((call, i): LoraGradients => {
      if (call !== undefined) {
        const { dx: sum, ...others } = call(dx);
        dx = sum;
        made.push(
          ...Object.values(others).filter((one) => !Object.values(targets[i] ?? {}).includes(one)),
        );
        return others;
      }
      if (!wantsDx) return {};
      const one = matmulInputGrad(dys[i] as Tensor, projections[i]?.w as BaseWeight);
      if (dx === undefined) {
        dx = one;
        return {};
      }
      made.push(one);
      const sum = multiplyAdd({ a: dx, c: one });
      made.pop();
      one.dispose();
      dx.dispose();
      dx = sum;
      return {};
    });
    if (keep !== true) saved.dispose();
    return { ...(dx === undefined ? {} : { dx }), gradients };
  } catch (error) {
    dx?.dispose();
    for (const tensor of made) tensor.dispose();
    throw error;
  }
}
