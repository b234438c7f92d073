import { defineStart } from '../../definition/definition.js';
import { alternate } from '../../parts/alternate.js';
import { checkIterations, passesOf } from '../../parts/iterations.js';
import { integerIn } from '../../parts/settings.js';

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
  check: (settings) => integerIn(settings, 'rounds', 1, 10_000) ?? checkIterations(settings),
  factors: ({ w, quantise }, { r, scaling, seed, settings }) =>
    alternate(w, quantise, {
      ...{ r, scaling, seed, rounds: settings.rounds },
      iterations: passesOf(settings),
    }),
});
