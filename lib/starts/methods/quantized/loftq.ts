import { fail } from '../../../core/errors.js';
import { scope } from '../../../core/scope.js';
import type { Tensor } from '../../../core/tensor.js';
import { svd } from '../../../linalg/tensors/svd.js';
import type { BaseWeight } from '../../../ops/base-weight.js';
import { multiplyAdd } from '../../../ops/elementwise.js';
import { unmergeLora } from '../../../ops/lora/merge.js';
import { defineStart } from '../../definition/definition.js';
import { decoded } from '../../parts/decoded.js';
import { balanced } from '../../parts/factors.js';
import { checkIterations, passesOf } from '../../parts/iterations.js';

/**
 * Alternates between the base and the factors: `Q ← quantise(w − s · loraB · loraA)`, then `s · loraB · loraA ←` the nearest of
 * rank r to `w − Q`, `rounds` times from factors of 0. The weight's error falls with each round. PEFT's `loftq` does the same with
 * s = 1.
 */
export const loftq = defineStart({
  start: 'loftq',
  reference:
    'Li et al., LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models, 2023, arXiv:2310.08659',
  from: 'quantised',
  defaults: { rounds: 5, iterations: 12 },
  replacesBase: true,
  check: (settings) =>
    Number.isInteger(settings.rounds) && settings.rounds >= 1
      ? checkIterations(settings)
      : ['rounds', 'an integer from 1 on', String(settings.rounds)],
  factors: ({ w, quantise }, { r, scaling, seed, settings }) => {
    type Round = { base: BaseWeight; loraA: Tensor; loraB: Tensor };
    let last: Round | undefined;
    for (let round = 0; round < settings.rounds; round++) {
      last = scope((): Round => {
        const rest = last === undefined ? w : unmergeLora(w.to({}), { ...last, scaling }).weight;
        const base = quantise(rest);
        const error = multiplyAdd({ a: w, c: decoded(base), beta: -1 });
        const triplets = svd(error, { r, seed, iterations: passesOf(settings) });
        return { base, ...balanced(triplets, scaling) };
      });
    }
    return last ?? fail('ERR_VALUE', 'start loftq', 'rounds', 'at least 1', '0');
  },
});
