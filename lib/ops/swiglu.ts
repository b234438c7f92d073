import { native } from '../core/binding.js';
import { checkShape, checkTensor } from '../core/check-tensor.js';
import { fail } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { checkSameDevice } from '../core/validate.js';

function checkGates(op: string, gate: unknown, up: unknown): [Tensor, Tensor] {
  const first = checkTensor(op, 'gate', gate);
  const second = checkTensor(op, 'up', up);
  checkShape(op, 'up', second, first.shape);
  checkSameDevice(op, 'up', second, first);
  if (second.dtype !== first.dtype) {
    fail('ERR_DTYPE', op, 'up', `${first.dtype}, as gate`, second.dtype);
  }
  return [first, second];
}

/**
 * The gate of a SwiGLU feed-forward layer (Shazeer, GLU variants improve Transformer, 2020,
 * arXiv:2002.05202), in one pass: `y = silu(gate) ⊙ up`, `silu(g) = g · σ(g)`. Computed in double,
 * rounded to f32 and then to the dtype: the bits are the same on every device except `reference`.
 * @param gate any shape and dtype
 * @param up shape and dtype of `gate`
 * @returns y, shape and dtype of `gate`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const { ys: [gate, up], saved } = loraForwardMany(x, [{ w: wGate }, { w: wUp }]);
 * const y = matmul(swiglu(gate, up), wDown);
 */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  const op = 'swiglu';
  const [g, u] = checkGates(op, gate, up);
  const gateHandle = Tensor.handleOf(g, op, 'gate');
  const upHandle = Tensor.handleOf(u, op, 'up');
  const y = native(op, (raw) => raw.swiglu(gateHandle, upHandle));
  return Tensor.adopt(y, g.shape, g.dtype, g.device);
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
  const op = 'swigluBackward';
  const [g, u] = checkGates(op, gate, up);
  checkTensor(op, 'dy', dy);
  checkShape(op, 'dy', dy, g.shape);
  checkSameDevice(op, 'dy', dy, g);
  const handles = [
    Tensor.handleOf(dy, op, 'dy'),
    Tensor.handleOf(g, op, 'gate'),
    Tensor.handleOf(u, op, 'up'),
  ] as const;
  const [dGate, dUp] = native(op, (raw) => raw.swigluBackward(...handles));
  return {
    dGate: Tensor.adopt(dGate, g.shape, g.dtype, g.device),
    dUp: Tensor.adopt(dUp, g.shape, g.dtype, g.device),
  };
}
