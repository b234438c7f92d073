import { native } from '../core/binding.js';
import { checkShape, checkTensor } from '../core/check-tensor.js';
import { fail, shown } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { checkSameDevice, readOptions } from '../core/validate.js';

/**
 * The function of a gate: silu, gelu by the error function, gelu by its approximation with tanh, or the clamped silu of
 * gpt-oss.
 */
export type GateKind = 'silu' | 'gelu' | 'gelu-tanh' | 'silu-clamped';

/** Every kind. */
export const GATE_KINDS: readonly GateKind[] = ['silu', 'gelu', 'gelu-tanh', 'silu-clamped'];

/** How {@link gatedActivation} works. */
export interface GatedActivationOptions {
  kind: GateKind;
}

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

/** @throws ERR_VALUE */
export function checkGateKind(op: string, kind: unknown): GateKind {
  if (!GATE_KINDS.includes(kind as GateKind)) {
    fail('ERR_VALUE', op, 'kind', `one of ${GATE_KINDS.join(', ')}`, shown(kind));
  }
  return kind as GateKind;
}

/** {@link gatedActivation}, under the name of the call. */
export function gated(op: string, gate: Tensor, up: Tensor, kind: GateKind): Tensor {
  const [g, u] = checkGates(op, gate, up);
  const gateHandle = Tensor.handleOf(g, op, 'gate');
  const upHandle = Tensor.handleOf(u, op, 'up');
  const y = native(op, (raw) => raw.gatedActivation(gateHandle, upHandle, kind));
  return Tensor.adopt(y, g.shape, g.dtype, g.device);
}

/** {@link gatedActivationBackward}, under the name of the call. */
export function gatedBackward(
  op: string,
  dy: Tensor,
  gate: Tensor,
  up: Tensor,
  kind: GateKind,
): { dGate: Tensor; dUp: Tensor } {
  const [g, u] = checkGates(op, gate, up);
  checkTensor(op, 'dy', dy);
  checkShape(op, 'dy', dy, g.shape);
  checkSameDevice(op, 'dy', dy, g);
  const handles = [
    Tensor.handleOf(dy, op, 'dy'),
    Tensor.handleOf(g, op, 'gate'),
    Tensor.handleOf(u, op, 'up'),
  ] as const;
  const [dGate, dUp] = native(op, (raw) => raw.gatedActivationBackward(...handles, kind));
  return {
    dGate: Tensor.adopt(dGate, g.shape, g.dtype, g.device),
    dUp: Tensor.adopt(dUp, g.shape, g.dtype, g.device),
  };
}

/**
 * The gate of a gated feed-forward layer (Shazeer, GLU variants improve Transformer, 2020, arXiv:2002.05202), in one
 * pass: `y = f(gate) ⊙ up`.
 *
 * | kind | f(g) |
 * | --- | --- |
 * | `silu` | `g · σ(g)` |
 * | `gelu` | `g · Φ(g)`, Φ the distribution of the standard normal, by the error function |
 * | `gelu-tanh` | `g / 2 · (1 + tanh(√(2 / π) · (g + 0.044715 g³)))` (Hendrycks and Gimpel, 2016, arXiv:1606.08415) |
 *
 * `silu-clamped` also takes another up: `y = f(min(gate, 7)) ⊙ (clamp(up, -7, 7) + 1)` with `f(g) = g · σ(1.702 g)`
 * (OpenAI, gpt-oss model card, 2025, arXiv:2508.10925).
 *
 * Computed in double, rounded to f32 and then to the dtype: the bits are the same on every device except `reference`,
 * and within 0.501 units in the last place of f32, also where f is small.
 * @param gate any shape and dtype
 * @param up shape and dtype of `gate`
 * @returns y, shape and dtype of `gate`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_VALUE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const y = matmul(gatedActivation(gate, up, { kind: 'gelu-tanh' }), wDown);
 */
export function gatedActivation(gate: Tensor, up: Tensor, options: GatedActivationOptions): Tensor {
  const op = 'gatedActivation';
  checkTensor(op, 'gate', gate);
  const { kind } = readOptions<GatedActivationOptions>(op, options, { kind: true });
  return gated(op, gate, up, checkGateKind(op, kind));
}

/**
 * Gradients of {@link gatedActivation}, both in one pass: `dUp = dy ⊙ f(gate)` and `dGate = dy ⊙ up ⊙ f'(gate)`. Those of
 * `silu-clamped` are 0 where gate or up is clamped.
 * @param dy shape of `gate`, any dtype
 * @returns both in the dtype of `gate`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_VALUE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const { dGate, dUp } = gatedActivationBackward(dy, gate, up, { kind: 'gelu' });
 */
export function gatedActivationBackward(
  dy: Tensor,
  gate: Tensor,
  up: Tensor,
  options: GatedActivationOptions,
): { dGate: Tensor; dUp: Tensor } {
  const op = 'gatedActivationBackward';
  checkTensor(op, 'dy', dy);
  const { kind } = readOptions<GatedActivationOptions>(op, options, { kind: true });
  return gatedBackward(op, dy, gate, up, checkGateKind(op, kind));
}
