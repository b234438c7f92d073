import {
  type Adapter,
  type BaseWeight,
  dequantize,
  matmul,
  matmulInputGrad,
  multiplyAdd,
  QuantizedWeight,
  Tensor,
} from '../../../../lib/index.js';
import { Matrix, parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

const roundEven = (x: number): number => {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
};

/** L4Q with what rounding added to each element, and which elements are clipped, as it was. */
function l4qWithRoundingHeld(start: Adapter, w: BaseWeight) {
  const { bits, groupSize, loraAlpha, r } = start.config as Record<string, number> as {
    bits: number;
    groupSize: number;
    loraAlpha: number;
    r: number;
  };
  const { device } = w;
  const [N = 0, K = 0] = w.shape;
  const dense = QuantizedWeight.is(w) ? dequantize(w, { dtype: 'f32' }) : w;
  const p = start.parameters as Record<'loraA' | 'loraB' | 'step' | 'offset', Tensor>;
  const sumOf = (at: typeof p) =>
    multiplyAdd({ a: dense, c: matmulInputGrad(at.loraB, at.loraA), beta: loraAlpha / r });
  const [first, last] = [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1];
  const [values, step, offset] = [sumOf(p), p.step, p.offset].map((each) => each.readSync()) as [
    Float32Array,
    Float32Array,
    Float32Array,
  ];
  // On the grid: w + step · rest. Clipped: step · end + offset.
  const [inside, factor] = [new Float32Array(N * K), new Float32Array(N * K)];
  values.forEach((value, i) => {
    const g = Math.floor(i / groupSize);
    const v = (value - (offset[g] as number)) / (step[g] as number);
    inside[i] = v > first && v < last ? 1 : 0;
    factor[i] = inside[i] === 1 ? roundEven(v) - v : Math.min(Math.max(v, first), last);
  });
  const groups = [(N * K) / groupSize, groupSize];
  const tensor = (data: Float32Array) => Tensor.from(data, groups, { device });
  const [on, off, own] = [tensor(inside), tensor(inside.map((v) => 1 - v)), tensor(factor)];
  return (at: Readonly<Record<string, Tensor>>): Tensor => {
    const now = at as typeof p & Record<'dx' | 'dBias', Tensor>;
    const column = (each: Tensor) => each.reshape([each.size, 1]);
    const kept = multiplyAdd({ a: sumOf(now).reshape(groups), b: on });
    const rounded = multiplyAdd({ a: own, b: column(now.step), c: kept });
    const q = multiplyAdd({ a: off, b: column(now.offset), c: rounded }).reshape([N, K]);
    return matmul(now.dx, q, { bias: now.dBias });
  };
}

export const tests: MethodTests = {
  formulas: {
    l4q: (layer) => {
      const [a, b, step, offset] = parts(layer, 'loraA', 'loraB', 'step', 'offset');
      const { bits, groupSize, loraAlpha, r } = layer.config;
      const [first, last] = [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1];
      const sum = layer.w.plus(b.times(a), loraAlpha / r);
      return {
        weight: Matrix.of(layer.N, layer.K, (n, k) => {
          const g = Math.floor(k / groupSize);
          const [s, o] = [step.at(n, g), offset.at(n, g)];
          const v = Math.min(Math.max((sum.at(n, k) - o) / s, first), last);
          return s * roundEven(v) + o;
        }),
      };
    },
  },
  cases: {
    l4q: {
      K: 32,
      settings: { r: 4, loraAlpha: 8, bits: 3, groupSize: 8 },
      held: l4qWithRoundingHeld,
      startsElsewhere: 'it quantises the base',
    },
    'l4q/rows': {
      settings: { r: 2, bits: 4 },
      held: l4qWithRoundingHeld,
      startsElsewhere: 'it quantises the base',
    },
  },
};
