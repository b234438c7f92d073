import type { BaseWeight } from '../ops/base-weight.js';
import { matmul, matmulInputGrad } from '../ops/matmul.js';
import { checkStep, type Value } from './gradient-tape.js';
import type { Tape } from './tape.js';

/**
 * `a · w` with the frozen base, as a step on the tape: a [r, N] and w [N, K], dense or quantised,
 * give [r, K]. For methods whose factors are functions of the weight itself.
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_OOM
 * @example
 * const h = t.map(baseProduct(t, p.a, w), 'relu'); // PEANuT's hidden layer, transposed
 */
export function baseProduct(t: Tape, a: Value, w: BaseWeight): Value {
  checkStep('baseProduct', t, { a });
  return t.record(matmulInputGrad(a.tensor, w), [a], [], (dy, pass) => {
    if (pass.wants(a)) pass.give(a, matmul(dy, w));
  });
}
