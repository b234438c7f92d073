import { native } from '../../core/binding.js';
import { checkMixes, checkShape, checkTensor, checkVector } from '../../core/check-tensor.js';
import { fail, wrongType } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import {
  checkSameDevice,
  ownFields,
  readNames,
  readOptions,
  seedWords,
  showShape,
} from '../../core/validate.js';
import { QuantizedWeight } from '../../quant/quantized-weight.js';
import { type BaseWeight, checkActivations, checkWeight, withLast } from '../base-weight.js';
import { type ComputePrecision, checkCompute } from '../compute.js';
import { checkTraining, resolveDropout } from '../dropout.js';
import { biasOf } from '../matmul.js';
import { addZeroGrad, zeroTermOf } from '../zero-points.js';
import { checkLoraAdapter, type LoraAdapter } from './lora-adapter.js';
import { type LoraForwardCall, LoraSaved } from './lora-saved.js';
import { forwardWithZeros } from './lora-zero-points.js';

/** Options of {@link loraForward}. */
export interface LoraForwardOptions {
  /** [N] */
  bias?: Tensor;
  /** Is this a training step? Default true. `false` turns dropout off and saves nothing. */
  training?: boolean;
  /** Seed of this call's dropout mask; required if the adapter has dropout and no mask is given. */
  seed?: number;
  /**
   * [..., K], 1 = kept: replaces the generator. Kept elements are scaled by `1 / (1 - dropout)`. It
   * must live until {@link loraBackward}.
   */
  dropoutMask?: Tensor;
  /**
   * Precision of the product with the base weight. The adapter's product is always f32, and the
   * gradients are those of the exact product. Default `exact`.
   */
  compute?: ComputePrecision;
}

/** The gradients that {@link loraBackward} can compute. */
export type LoraGradient = 'dx' | 'dLoraA' | 'dLoraB' | 'dBias' | 'dLoraBias';
export type LoraGradients = { [name in LoraGradient]?: Tensor };

/** @internal */
export const LORA_GRADIENTS: readonly LoraGradient[] = [
  'dx',
  'dLoraA',
  'dLoraB',
  'dBias',
  'dLoraBias',
];

/**
 * Checks for a live adapter of an [N, K] weight on the device of `near`; if `near` is an activation,
 * the dtypes must mix.
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED
 */
export function checkAdapter(
  op: string,
  adapter: unknown,
  N: number,
  K: number,
  near: { device: string },
  owner = '',
): LoraAdapter {
  const given = checkLoraAdapter(op, 'adapter', adapter);
  const { loraA, loraB, loraBias, r } = given;
  const prefix = owner === '' ? 'adapter.' : owner;
  checkTensor(op, `${prefix}loraA`, loraA);
  checkTensor(op, `${prefix}loraB`, loraB);
  if (loraA.shape[1] !== K) {
    fail('ERR_SHAPE', op, `${owner}loraA`, `of shape [r, K = ${K}]`, showShape(loraA.shape));
  }
  if (loraB.shape[0] !== N) {
    fail('ERR_SHAPE', op, `${owner}loraB`, `of shape [N = ${N}, r = ${r}]`, showShape(loraB.shape));
  }
  checkSameDevice(op, `${owner}loraA`, loraA, near);
  if (near instanceof Tensor) {
    checkMixes(op, `${owner}loraA`, loraA, near);
    checkMixes(op, `${owner}loraB`, loraB, near);
  }
  if (loraBias !== undefined) checkTensor(op, `${owner}loraBias`, loraBias);
  return given;
}

/** Checks everything before it queues anything. @throws as {@link loraForward} */
export function loraForwardCall(
  op: string,
  x: Tensor,
  w: BaseWeight,
  adapter: LoraAdapter,
  options: LoraForwardOptions | undefined,
): LoraForwardCall {
  const { weight, handle, N, K } = checkWeight(op, w);
  checkActivations(op, 'x', x, weight, 'K', K);
  const { loraA, loraB, loraBias, scaling } = checkAdapter(op, adapter, N, K, x);
  const given = readOptions(op, options, {
    bias: true,
    training: true,
    seed: true,
    dropoutMask: true,
    compute: true,
  });
  const training = checkTraining(op, given.training);
  const bias = biasOf(op, given.bias, x, N);
  const loraBiasHandle = biasOf(op, loraBias, x, N, 'loraBias');
  const compute = checkCompute(op, given.compute, x, weight);
  const { dropout, seed, words, mask } = resolveDropout(
    op,
    adapter.dropout,
    'the adapter',
    x.shape,
    x,
    given,
    training,
  );
  const maskHandle = mask === undefined ? null : Tensor.handleOf(mask, op, 'dropoutMask');
  return {
    parts: {
      handle,
      loraA: Tensor.handleOf(loraA, op, 'loraA'),
      dropout,
      words,
      mask: maskHandle,
      compute,
    },
    args: [
      handle,
      bias,
      Tensor.handleOf(loraA, op, 'loraA'),
      Tensor.handleOf(loraB, op, 'loraB'),
      loraBiasHandle,
      scaling,
      dropout,
      words[0],
      words[1],
      maskHandle,
      compute,
    ],
    keepX: training && adapter.trainA,
    finish(yHandle, hHandle, held) {
      const y = Tensor.adopt(yHandle, withLast(x, N), x.dtype, x.device);
      return this.complete(y, Tensor.adopt(hHandle, withLast(x, adapter.r), 'f32', x.device), held);
    },
    complete(y, h, held) {
      const keepH = training && adapter.trainB;
      if (!keepH) h.dispose();
      const saved = new LoraSaved({
        w,
        adapter,
        x: held === null ? undefined : Tensor.adopt(held, x.shape, x.dtype, x.device),
        h: keepH ? h : undefined,
        yShape: y.shape,
        hasBias: bias !== null,
        dropout,
        seed,
        dropoutMask: mask,
      });
      return { y, saved };
    },
  };
}

/**
 * A linear layer with a low-rank adapter, in one fused pass:
 *
 * `y = x · wᵀ + bias + scaling · ((gate ⊙ x) · loraAᵀ · loraBᵀ + loraBias)`
 *
 * where `gate` is 0 for a dropped element and `1 / (1 - dropout)` for a kept one. The mask depends
 * on the seed and the element's index (Philox4x32-10) and is generated again in the backward pass.
 * @param x [..., K] f32, bf16 or f16
 * @param w [N, K] dense or quantised, frozen
 * @param adapter factors in the dtype of `x` or f32, of any dtype if `x` is f32
 * @returns `y` [..., N] in the dtype of `x`, and the state for {@link loraBackward}. The saved
 * state keeps its own handle to `x`.
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_UNSUPPORTED, ERR_DISPOSED,
 *   ERR_OOM
 * @example
 * const { y, saved } = loraForward(x, w4, adapter, { seed: step });
 * const { dx, dLoraA, dLoraB } = loraBackward(dy, saved);
 */
export function loraForward(
  x: Tensor,
  w: BaseWeight,
  adapter: LoraAdapter,
  options?: LoraForwardOptions,
): { y: Tensor; saved: LoraSaved } {
  const op = 'loraForward';
  checkTensor(op, 'x', x);
  const call = loraForwardCall(op, x, w, adapter, options);
  const zeros = zeroTermOf(w);
  if (zeros !== undefined) {
    return forwardWithZeros(op, x, zeros, adapter, call, ownFields(op, options).bias);
  }
  const xHandle = Tensor.handleOf(x, op, 'x');
  const [y, h, held] = native(op, (raw) => {
    const [yRaw, hRaw] = raw.loraForward(xHandle, ...call.args);
    return [yRaw, hRaw, call.keepX ? raw.share(xHandle) : null] as const;
  });
  return call.finish(y, h, held);
}

/** Options of {@link loraBackward}. */
export interface LoraBackwardOptions {
  /**
   * The wanted gradients. Default: dx, those of the trained factors, and dBias and dLoraBias if the forward pass
   * had them; after a forward pass with `training: false`, which keeps nothing for the factors, only dx.
   * Gradients that are not named are not computed.
   */
  needs?: readonly LoraGradient[];
  /**
   * Adds to these tensors instead of making new ones, and returns them. A tensor whose gradient is not
   * computed (not among the `needs`, or of a frozen factor) stays unchanged.
   */
  accumulateInto?: LoraGradients;
  /** Keep the saved state for another backward pass. Default false: it is freed. */
  keep?: boolean;
}

function defaultNeeds(saved: LoraSaved): LoraGradient[] {
  const { x, h, adapter, hasBias } = saved;
  const needs: LoraGradient[] = ['dx'];
  if (x !== undefined) needs.push('dLoraA');
  if (h !== undefined) needs.push('dLoraB');
  if (hasBias) needs.push('dBias');
  if (adapter.loraBias !== undefined && h !== undefined) needs.push('dLoraBias');
  return needs;
}

function checkNeeds(op: string, needs: unknown, saved: LoraSaved): Set<LoraGradient> {
  if (needs === undefined) return new Set(defaultNeeds(saved));
  const wanted = new Set(readNames(op, 'needs', needs, LORA_GRADIENTS));
  const { adapter } = saved;
  if (wanted.has('dLoraA') && saved.x === undefined) {
    fail(
      'ERR_VALUE',
      op,
      'needs',
      'without dLoraA (loraA was frozen, or training was off)',
      'dLoraA',
    );
  }
  if (wanted.has('dLoraB') && saved.h === undefined) {
    fail(
      'ERR_VALUE',
      op,
      'needs',
      'without dLoraB (loraB was frozen, or training was off)',
      'dLoraB',
    );
  }
  if (wanted.has('dLoraBias') && adapter.loraBias === undefined) {
    fail('ERR_VALUE', op, 'needs', 'without dLoraBias (the adapter has no loraBias)', 'dLoraBias');
  }
  return wanted;
}

/**
 * Checks everything of a {@link loraBackward} and returns the function that computes it. A tensor passed to
 * that function is where dx is added. @throws as {@link loraBackward}
 */
export function loraBackwardCall(
  op: string,
  dy: Tensor,
  saved: LoraSaved,
  options: LoraBackwardOptions | undefined,
): (dx?: Tensor) => LoraGradients {
  checkTensor(op, 'dy', dy);
  if (!LoraSaved.is(saved)) {
    throw wrongType(op, 'saved', 'the saved state of loraForward', saved);
  }
  if (saved.disposed) fail('ERR_DISPOSED', op, 'saved', 'live saved state', 'a disposed one');
  checkShape(op, 'dy', dy, saved.yShape);
  const { adapter, w } = saved;
  const { loraA, loraB, loraBias, scaling } = adapter;
  checkSameDevice(op, 'dy', dy, loraA);
  if (saved.x !== undefined && saved.x.dtype !== dy.dtype) {
    fail('ERR_DTYPE', op, 'dy', `${saved.x.dtype}, as x was`, dy.dtype);
  }
  const given = readOptions(op, options, { needs: true, accumulateInto: true, keep: true });
  const wanted = checkNeeds(op, given.needs, saved);
  const targets = ownFields(op, given.accumulateInto);
  const xShape = withLast(dy, loraA.shape[1] ?? 0);
  const shapes = { dx: xShape, dLoraA: loraA.shape, dLoraB: loraB.shape };
  const dtypes = {
    dx: dy.dtype,
    dLoraA: loraA.dtype,
    dLoraB: loraB.dtype,
    dBias: dy.dtype,
    dLoraBias: loraBias?.dtype ?? dy.dtype,
  };
  for (const name of readNames(op, 'accumulateInto', Object.keys(targets), LORA_GRADIENTS)) {
    const target = targets[name];
    if (target === undefined) continue;
    checkTensor(op, `accumulateInto.${name}`, target);
    if (name === 'dBias' || name === 'dLoraBias') {
      checkVector(op, `accumulateInto.${name}`, target, loraB.shape[0] ?? 0);
    } else {
      checkShape(op, `accumulateInto.${name}`, target, shapes[name]);
    }
    checkSameDevice(op, `accumulateInto.${name}`, target, dy);
  }
  const { x, h, dropoutMask } = saved;
  const words = seedWords(op, saved.seed);
  const dyHandle = Tensor.handleOf(dy, op, 'dy');
  const wHandle = !wanted.has('dx')
    ? null
    : w instanceof QuantizedWeight
      ? QuantizedWeight.handleOf(w, op, 'w')
      : Tensor.handleOf(w, op, 'w');
  const aHandle = Tensor.handleOf(loraA, op, 'loraA');
  const bHandle = Tensor.handleOf(loraB, op, 'loraB');
  const xHandle =
    x === undefined || !wanted.has('dLoraA') ? null : Tensor.handleOf(x, op, 'saved.x');
  const hHandle =
    h === undefined || !wanted.has('dLoraB') ? null : Tensor.handleOf(h, op, 'saved.h');
  const maskHandle =
    dropoutMask === undefined ? null : Tensor.handleOf(dropoutMask, op, 'dropoutMask');
  return (dx) => {
    const into = dx === undefined ? targets : ownFields(op, { ...targets, dx });
    const wantedRaw = LORA_GRADIENTS.map((name) => {
      if (!wanted.has(name)) return null;
      const target = into[name];
      return target === undefined
        ? dtypes[name]
        : Tensor.handleOf(target, op, `accumulateInto.${name}`);
    });
    const raw = native(op, (binding) =>
      binding.loraBackward(
        dyHandle,
        xHandle,
        wHandle,
        aHandle,
        bHandle,
        hHandle,
        scaling,
        saved.dropout,
        words[0],
        words[1],
        maskHandle,
        wantedRaw,
      ),
    );
    const gradients: LoraGradients = {};
    const N = [loraB.shape[0] ?? 0];
    LORA_GRADIENTS.forEach((name, i) => {
      if (!wanted.has(name)) return;
      const handle = raw[i];
      const shape = name === 'dBias' || name === 'dLoraBias' ? N : shapes[name];
      gradients[name] =
        handle === null || handle === undefined
          ? (into[name] as Tensor)
          : Tensor.adopt(handle, shape, dtypes[name], dy.device);
    });
    const zeros = zeroTermOf(w);
    if (zeros !== undefined && gradients.dx !== undefined) {
      gradients.dx = addZeroGrad(op, zeros, dy, gradients.dx, into.dx !== undefined);
    }
    if (given.keep !== true) saved.dispose();
    return gradients;
  };
}

/**
 * Gradients of {@link loraForward} with a frozen base. With `dh = scaling · dy · loraB`:
 *
 * - `dx = dy · w + gate ⊙ (dh · loraA)` [..., K]
 * - `dLoraA = dhᵀ · (gate ⊙ x)` [r, K] · `dLoraB = scaling · dyᵀ · h` [N, r]
 * - `dBias = Σₘ dy` [N] · `dLoraBias = scaling · Σₘ dy` [N]
 *
 * Sums run in a fixed order: the bits are the same for any number of threads.
 * @param dy [..., N], the dtype of `x`
 * @param saved from the forward pass; freed afterwards unless `keep`
 * @returns only the needed gradients; a frozen factor has none. Each has the dtype of its tensor
 * (`dBias` that of `dy`).
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
 * @example
 * const { y, saved } = loraForward(x, w4, adapter);
 * const { dx, dLoraA, dLoraB } = loraBackward(dy, saved);
 */
export function loraBackward(
  dy: Tensor,
  saved: LoraSaved,
  options?: LoraBackwardOptions,
): LoraGradients {
  return loraBackwardCall('loraBackward', dy, saved, options)();
}
