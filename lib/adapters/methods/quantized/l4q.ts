import { denseUpdate } from '../../../autograd/dense-update.js';
import { fakeQuantize } from '../../../autograd/fake-quantize.js';
import { denseRows, rowStep } from '../../../ops/dense-rows.js';
import { multiplyAdd } from '../../../ops/elementwise.js';
import { matmulInputGrad } from '../../../ops/matmul.js';
import { freezeGrid } from '../../../ops/quantizers/freeze-grid.js';
import { defineAdapter } from '../../definition/method.js';
import { scalingOf } from '../../parts/scaling.js';

/** Steps with which every value of a group is between the end codes: max(|min w / first|, |max w / last|). */
function widestSteps(values: Float32Array, groupSize: number, bits: number): Float32Array {
  const [first, last] = [2 ** (bits - 1), Math.max(1, 2 ** (bits - 1) - 1)];
  return Float32Array.from({ length: values.length / groupSize }, (_, g) => {
    let step = 0;
    for (let i = g * groupSize; i < (g + 1) * groupSize; i++) {
      const value = values[i] as number;
      step = Math.max(step, value < 0 ? -value / first : value / last);
    }
    return step || 1;
  });
}

/**
 * A LoRA inside of the quantiser: the sum of weight and update is rounded to integers whose steps and offsets are trained with it,
 * so that the result has no adapter beside it: `y = x · Qᵀ + bias` with `Q = step · round(clip((w + scaling · loraB · loraA − offset)
 * / step)) + offset`, step and offset [N, K / groupSize]. Gradients pass rounding straight through ({@link fakeQuantize}), and Q is
 * made tile by tile in both passes. `freeze` of the adapter gives Q in codes. The paper's groups have 128 values.
 */
export const l4q = defineAdapter({
  method: 'l4q',
  reference:
    'Jeon et al., L4Q: Parameter Efficient Quantization-Aware Fine-Tuning on Large Language Models, 2024, arXiv:2402.04902',
  defaults: { r: 8, loraAlpha: 8, rslora: false, bits: 4, groupSize: 32 },
  trained: ['loraA', 'loraB', 'step', 'offset'],
  shapes: ({ N, K, config: { r, groupSize } }) => ({
    loraA: [r, K],
    loraB: [N, r],
    step: [N, K / groupSize],
    offset: [N, K / groupSize],
  }),
  check: ({ K, config: { bits, groupSize } }) => {
    if (!(Number.isInteger(bits) && bits >= 1 && bits <= 8)) {
      return ['bits', 'an integer from 1 to 8', String(bits)];
    }
    return Number.isInteger(groupSize) && groupSize > 0 && K % groupSize === 0
      ? undefined
      : ['groupSize', `a divisor of K (${K})`, String(groupSize)];
  },
  init: (make) => {
    const { groupSize, bits } = make.config;
    const w = make.weight('l4q');
    const values = denseRows(w, 0, make.N);
    const steps = widestSteps(values.readSync(), groupSize, bits);
    values.dispose();
    return {
      loraA: make.kaiming('loraA'),
      loraB: make.zeros('loraB'),
      step: make.values('step', (i) => steps[i] as number),
      offset: make.zeros('offset'),
    };
  },
  forward: (t, { x, w, bias, p, N, config }) => {
    const scaling = scalingOf(config);
    const y = denseUpdate(t, x, {
      N,
      step: rowStep(w),
      rows: { b: p.loraB, scale: p.step, offset: p.offset },
      inputs: { a: p.loraA },
      tile: (tape, { a, b, scale, offset }, begin, end) => {
        const sum = tape.add(tape.own(denseRows(w, begin, end)), tape.product(b, a), 1, scaling);
        return fakeQuantize(tape, sum, { bits: config.bits, scale, offset });
      },
    });
    return t.cast(bias === undefined ? y : t.add(y, bias), x.tensor.dtype);
  },
  freeze: ({ loraA, loraB, step, offset }, w, { N, config }) => {
    const update = matmulInputGrad(loraB.to({ dtype: 'f32' }), loraA.to({ dtype: 'f32' }));
    const sum = multiplyAdd({ a: denseRows(w, 0, N), c: update, beta: scalingOf(config) });
    return freezeGrid(sum, { bits: config.bits, scale: step, offset });
  },
});
