import { fail } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import { svd } from '../../linalg/tensors/svd.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import { multiplyAdd } from '../../ops/elementwise.js';
import { unmergeLora } from '../../ops/lora/merge.js';
import { decoded } from './decoded.js';
import { balanced } from './factors.js';

/** A base and the factors that repair it. */
export type Repaired = {
  readonly base: BaseWeight;
  readonly loraA: Tensor;
  readonly loraB: Tensor;
};

/**
 * LoftQ's turns, from factors of 0: the base is what a quantiser makes of the weight without the factors' update, the update the
 * nearest of rank r to what the base lacks.
 */
export function alternate(
  w: Tensor,
  quantise: (w: Tensor) => BaseWeight,
  how: {
    readonly r: number;
    readonly scaling: number;
    readonly seed: number;
    readonly rounds: number;
    readonly iterations: number | 'exact';
  },
): Repaired {
  const { r, scaling, seed, rounds, iterations } = how;
  let last: Repaired | undefined;
  for (let round = 0; round < rounds; round++) {
    last = scope((): Repaired => {
      const rest = last === undefined ? w : unmergeLora(w.to({}), { ...last, scaling }).weight;
      const base = quantise(rest as Tensor);
      const error = multiplyAdd({ a: w, c: decoded(base), beta: -1 });
      return { base, ...balanced(svd(error, { r, seed, iterations }), scaling) };
    });
  }
  return last ?? fail('ERR_VALUE', 'start', 'rounds', 'at least 1', '0');
}
