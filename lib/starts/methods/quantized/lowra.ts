import { QuantizedWeight } from '../../../quant/quantized-weight.js';
import { quantizeRowLevels } from '../../../quantizers/row-levels.js';
import { defineStart } from '../../definition/definition.js';
import { alternate } from '../../parts/alternate.js';
import { checkIterations, passesOf } from '../../parts/iterations.js';
import { integerIn, numberIn } from '../../parts/settings.js';

/**
 * Codes of 1, 2 or 4 bits with thresholds and levels of each output channel, by Lloyd and Max, and bits for the channels whose
 * error falls most, `budget` of them a weight; then the factors that repair it, as LoftQ's (`rounds`). The paper clusters channels and
 * solves an integer programme; here the steps are taken by gain. The base is stored in bytes, as no kernel reads levels of rows:
 * the levels of a layer share a table of 256.
 */
export const lowra = defineStart({
  start: 'lowra',
  reference:
    'Zhou et al., LowRA: Accurate and Efficient LoRA Fine-Tuning of LLMs under 2 Bits, 2025, arXiv:2502.08141',
  from: 'weight',
  defaults: { budget: 2, blocksize: 32, rounds: 1, iterations: 12 },
  replacesBase: true,
  ownFormat: true,
  check: (settings) =>
    numberIn(settings, 'budget', 1, 4) ??
    integerIn(settings, 'blocksize', 1, 65536) ??
    integerIn(settings, 'rounds', 1, 10_000) ??
    checkIterations(settings),
  factors: ({ w, N, K, device }, { r, scaling, seed, settings }) => {
    const { budget, blocksize, rounds } = settings;
    const how = { budget, blocksize, options: [1, 2, 4] };
    return alternate(
      w,
      (rest) => {
        const { planes } = quantizeRowLevels('start lowra', rest.readSync(), N, K, how);
        return QuantizedWeight.fromPlanes(planes, { device });
      },
      { r, scaling, seed, rounds, iterations: passesOf(settings) },
    );
  },
});
