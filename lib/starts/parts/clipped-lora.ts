/** A LoRA over a weight whose quantiser has trained clips: what ApiQ trains before it quantises. */

import { defineAdapter } from '../../adapters/definition/method.js';
import { scalingOf } from '../../adapters/parts/scaling.js';
import { fakeQuantize } from '../../autograd/fake-quantize.js';
import type { Value } from '../../autograd/gradient-tape.js';
import type { Tape } from '../../autograd/tape.js';
import { scope } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import { mapTensor, multiplyAdd } from '../../ops/elementwise.js';
import { nearestIntegers } from '../../ops/quantizers/uniform-grid.js';

/** The clips begin at σ(4) = 0.982 of the range. */
const kStart = 4;
/** The range of a group of zeros. */
const kLeastRange = 1e-5;

/** The largest value of each group or 0, and the smallest or 0. */
function rangesOf(values: Float32Array, groupSize: number) {
  const groups = values.length / groupSize;
  const [high, low] = [new Float32Array(groups), new Float32Array(groups)];
  for (let g = 0; g < groups; g++) {
    for (let i = g * groupSize; i < (g + 1) * groupSize; i++) {
      high[g] = Math.max(high[g] as number, values[i] as number);
      low[g] = Math.min(low[g] as number, values[i] as number);
    }
    if (high[g] === low[g]) high[g] = kLeastRange;
  }
  return { high, low };
}

/** σ(clip) times the end of the range. */
const clipped = (clip: Tensor, end: Tensor): Tensor =>
  multiplyAdd({ a: mapTensor(clip, 'sigmoid'), b: end });

/** The zero-points of clips: `round(−low / scale)`, [N, G]. */
function zerosOf(scale: Tensor, low: Tensor): Tensor {
  return nearestIntegers(multiplyAdd({ a: low, b: mapTensor(scale, 'reciprocal'), alpha: -1 }));
}

/** Steps and zero-points of a layer's clips, both [N, K / groupSize]. */
export function clippedGrid(
  tensors: Readonly<Record<'clipHigh' | 'clipLow' | 'high' | 'low', Tensor>>,
  bits: number,
): { readonly scale: Tensor; readonly zero: Tensor } {
  return scope(() => {
    const high = clipped(tensors.clipHigh, tensors.high);
    const low = clipped(tensors.clipLow, tensors.low);
    const scale = multiplyAdd({
      a: high,
      c: low,
      alpha: 1 / (2 ** bits - 1),
      beta: -1 / (2 ** bits - 1),
    });
    return { scale, zero: zerosOf(scale, low) };
  });
}

/** The dense weight on its grid, with gradients of the clips. The zero-points are constants in the backward pass. */
function quantised(
  t: Tape,
  p: Readonly<Record<'dense' | 'clipHigh' | 'clipLow' | 'high' | 'low', Value>>,
  bits: number,
): Value {
  const high = t.multiply(t.map(p.clipHigh, 'sigmoid'), p.high);
  const low = t.multiply(t.map(p.clipLow, 'sigmoid'), p.low);
  const share = 1 / (2 ** bits - 1);
  const scale = t.add(high, low, share, -share);
  const offset = t.multiply(scale, t.own(zerosOf(scale.tensor, low.tensor)), -1);
  return fakeQuantize(t, p.dense, { bits, first: 0, scale, offset, clippedBy: 'code' });
}

/**
 * `y = x · (Q + scaling · loraB · loraA)ᵀ + bias` with `Q = scale · (round(w / scale) + zero − zero)` clipped to the codes, `scale = (σ(clipHigh) ·
 * high − σ(clipLow) · low) / (2^bits − 1)`. It keeps the dense weight and does not read the base.
 */
export const clippedLora = defineAdapter({
  method: 'clipped-lora',
  reference:
    'Liao et al., ApiQ: Finetuning of 2-Bit Quantized Large Language Model, 2024, arXiv:2402.05147',
  defaults: { r: 8, loraAlpha: 8, rslora: false, bits: 2, groupSize: 32 },
  trained: ['loraA', 'loraB', 'clipHigh', 'clipLow'],
  frozen: ['dense', 'high', 'low'],
  shapes: ({ N, K, config: { r, groupSize } }) => {
    const groups = [N, K / groupSize];
    return {
      loraA: [r, K],
      loraB: [N, r],
      clipHigh: groups,
      clipLow: groups,
      dense: [N, K],
      high: groups,
      low: groups,
    };
  },
  init: (make) => {
    const values = (make.weight('clipped-lora') as Tensor).readSync();
    const { high, low } = rangesOf(values, make.config.groupSize);
    return {
      loraA: make.kaiming('loraA'),
      loraB: make.zeros('loraB'),
      clipHigh: make.full('clipHigh', kStart),
      clipLow: make.full('clipLow', kStart),
      dense: make.values('dense', (i) => values[i] as number),
      high: make.values('high', (i) => high[i] as number),
      low: make.values('low', (i) => low[i] as number),
    };
  },
  forward: (t, { x, bias, p, config }) => {
    const update = t.product(p.loraB, p.loraA);
    const whole = t.add(quantised(t, p, config.bits), update, 1, scalingOf(config));
    const y = t.matmul(x, whole);
    return bias === undefined ? y : t.add(y, bias);
  },
});
