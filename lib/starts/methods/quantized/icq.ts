import { QuantizedWeight } from '../../../quant/quantized-weight.js';
import { quantizeByEntropy } from '../../../quantizers/entropy-shift.js';
import { defineStart } from '../../definition/definition.js';
import { integerIn } from '../../parts/settings.js';

/**
 * The quantiser of IR-QLoRA: NormalFloat codes of `w − τ`, with the τ of each block for which the codes carry the most
 * entropy. The base is in this format in place of the run's; the adapter begins as its method does.
 */
export const icq = defineStart({
  start: 'icq',
  reference:
    'Qin et al., Accurate LoRA-Finetuning Quantization of LLMs via Information Retention, 2024, arXiv:2402.05445',
  from: 'weight',
  adapters: ['ir-qlora', 'lora'],
  defaults: { bits: 4, blocksize: 64, range: 0.1, tries: 51, doubleQuant: true },
  replacesBase: 'format',
  ownFormat: true,
  check: (settings) =>
    integerIn(settings, 'bits', 2, 8) ??
    integerIn(settings, 'blocksize', 2, 65536) ??
    integerIn(settings, 'tries', 0, 10000) ??
    (settings.range >= 0 && settings.range <= 10
      ? undefined
      : ['range', 'from 0 to 10', String(settings.range)]),
  factors: ({ w, N, K, device }, { settings }) => ({
    base: QuantizedWeight.fromPlanes(quantizeByEntropy(w.readSync(), N, K, settings), { device }),
  }),
});
