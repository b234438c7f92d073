import type { Tensor } from '../core/tensor.js';
import { gated, gatedBackward } from './gated-activation.js';

/**
 * The gate of a SwiGLU feed-forward layer (Shazeer, GLU variants improve Transformer, 2020,
 * arXiv:2002.05202), in one pass: `y = silu(gate) ⊙ up`, `silu(g) = g · σ(g)`. It is `gatedActivation` of the kind
 * `silu`. Computed in double, rounded to f32 and then to the dtype: the bits are the same on every device except
 * `reference`.
 * @param gate any shape and dtype
 * @param up shape and dtype of `gate`
 * @returns y, shape and dtype of `gate`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const { ys: [gate, up], saved } = loraForwardMany(x, [{ w: wGate }, { w: wUp }]);
 * const y = matmul(swiglu(gate, up), wDown);
 */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  return gated('swiglu', gate, up, 'silu');
}

/**
 * Gradients of {@link swiglu}, both in one pass: `dUp = dy ⊙ silu(gate)` and
 * `dGate = dy ⊙ up ⊙ σ(gate) ⊙ (1 + gate ⊙ (1 - σ(gate)))`.
 * @param dy shape of `gate`, any dtype
 * @returns both in the dtype of `gate`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const { dGate, dUp } = swigluBackward(dy, gate, up); // of swiglu(gate, up)
 */
export function swigluBackward(
  dy: Tensor,
  gate: Tensor,
  up: Tensor,
): { dGate: Tensor; dUp: Tensor } {
  return gatedBackward('swigluBackward', dy, gate, up, 'silu');
}
