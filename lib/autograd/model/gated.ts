import { checkGateKind, type GateKind, gated, gatedBackward } from '../../ops/gated-activation.js';
import { checkStep, type Value } from '../gradient-tape.js';
import type { Tape } from '../tape.js';

/**
 * `f(gate) ⊙ up`, both [..., N] of one dtype.
 * @throws ERR_VALUE another kind
 */
export function recordGate(t: Tape, gate: Value, up: Value, kind: GateKind): Value {
  const op = 'ModelTape.gatedActivation';
  checkStep(op, t, { gate, up });
  checkGateKind(op, kind);
  const y = gated(op, gate.tensor, up.tensor, kind);
  return t.record(y, [gate, up], [gate.tensor, up.tensor], (dy, pass) => {
    const { dGate, dUp } = gatedBackward(op, dy, gate.tensor, up.tensor, kind);
    pass.give(gate, dGate);
    pass.give(up, dUp);
  });
}
