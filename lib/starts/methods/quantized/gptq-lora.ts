import { fail } from '../../../core/errors.js';
import { Tensor } from '../../../core/tensor.js';
import { symmetricEigen } from '../../../linalg/symmetric-eigen.js';
import { multiplyAdd } from '../../../ops/elementwise.js';
import { matmul } from '../../../ops/matmul.js';
import { QuantizedWeight } from '../../../quant/quantized-weight.js';
import { quantizeGptq } from '../../../quantizers/gptq.js';
import { groupsOf } from '../../../quantizers/group-ranges.js';
import { defineStart } from '../../definition/definition.js';
import { decoded } from '../../parts/decoded.js';
import { autocorrelationOf, damped, inputsOf } from '../../parts/inputs.js';
import { requireRank } from '../../parts/rank.js';
import { integerIn } from '../../parts/settings.js';

/**
 * GPTQ that knows of the adapter: A has the leading directions Vᵣ of the layer's inputs, which B can repair, so the quantiser
 * minimises the error in the other directions alone, those of `H − Vᵣ · Λᵣ · Vᵣᵀ`. Then `s · B = (w − Q) · Vᵣ`. The base is of
 * integers with a step and a zero-point a group, in place of the run's format. The paper's refinement of codes (Bid-Up) is
 * left out.
 */
export const gptqLora = defineStart({
  start: 'gptq-lora',
  reference:
    'Zhang and Saab, GPTQ-intrinsic LoRA: A Near-optimal Algorithm for Low-precision Quantization with Low-rank Adaptation, 2026, arXiv:2606.01412',
  from: 'inputs',
  defaults: { bits: 4, groupSize: 32, damping: 0.01 },
  replacesBase: true,
  ownFormat: true,
  check: (settings) =>
    integerIn(settings, 'bits', 1, 8) ??
    integerIn(settings, 'groupSize', 1, 65536) ??
    (settings.damping >= 0 ? undefined : ['damping', 'at least 0', String(settings.damping)]),
  factors: (layer, { r, scaling, settings }) => {
    const { w, N, K, device } = layer;
    const op = 'start gptq-lora';
    requireRank('gptq-lora', r, N, K);
    groupsOf(op, K, settings.groupSize);
    const h = autocorrelationOf(inputsOf(layer));
    const { values, vectors } = symmetricEigen(h, K);
    const rest = h.slice();
    const leading = vectors.slice(0, r * K);
    for (let t = 0; t < r; t++) {
      const size = values[t] as number;
      for (let i = 0; i < K; i++) {
        const left = size * (leading[t * K + i] as number);
        for (let j = 0; j < K; j++) {
          rest[i * K + j] = (rest[i * K + j] as number) - left * (leading[t * K + j] as number);
        }
      }
    }
    const second = damped(rest, K, settings.damping);
    const planes = quantizeGptq(w.readSync(), N, K, second, settings);
    if (planes === undefined) {
      fail('ERR_VALUE', op, 'damping', 'large enough for the inputs', String(settings.damping));
    }
    const base = QuantizedWeight.fromPlanes(planes, { device });
    const loraA = Tensor.from(Float32Array.from(leading), [r, K], { device });
    const error = multiplyAdd({ a: w, c: decoded(base), beta: -1 });
    const loraB = multiplyAdd({ a: matmul(error, loraA), alpha: 1 / scaling });
    return { loraA, loraB, base };
  },
});
