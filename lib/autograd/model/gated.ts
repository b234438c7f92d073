import { fail } from '../../core/errors.js';
import { swiglu, swigluBackward } from '../../ops/swiglu.js';
import { checkStep, type Value } from '../gradient-tape.js';
import type { Tape } from '../tape.js';

/** The function of a gated feed-forward layer's gate; `gelu-tanh` is the approximation by tanh. */
export type GateFunction = 'silu' | 'gelu-tanh';

const GATES: readonly string[] = ['silu', 'gelu-tanh'];

// gelu(x) ~ x / 2 · (1 + tanh(√(2 / π) · (x + 0.044715 x³))): Hendrycks and Gimpel, 2016, arXiv:1606.08415.
const ROOT = Math.sqrt(2 / Math.PI);
const CUBE = 0.044715;

/**
 * `f(gate) ⊙ up`, both [..., N] of one dtype.
 * @throws ERR_VALUE another function
 */
export function recordGate(t: Tape, gate: Value, up: Value, kind: GateFunction): Value {
  const op = 'ModelTape.gatedActivation';
  checkStep(op, t, { gate, up });
  if (!GATES.includes(kind)) fail('ERR_VALUE', op, 'kind', GATES.join(' or '), `"${String(kind)}"`);
  if (kind === 'silu') {
    const y = swiglu(gate.tensor, up.tensor);
    return t.record(y, [gate, up], [gate.tensor, up.tensor], (dy, pass) => {
      const { dGate, dUp } = swigluBackward(dy, gate.tensor, up.tensor);
      pass.give(gate, dGate);
      pass.give(up, dUp);
    });
  }
  const { dtype } = gate.tensor;
  const x = t.cast(gate, 'f32');
  const inner = t.multiply(x, t.affine(t.map(x, 'square'), ROOT * CUBE, ROOT));
  const half = t.affine(t.map(inner, 'tanh'), 0.5, 0.5);
  return t.cast(t.multiply(t.multiply(x, half), t.cast(up, 'f32')), dtype);
}
