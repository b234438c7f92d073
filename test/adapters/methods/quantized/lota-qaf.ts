import {
  type Adapter,
  type BaseWeight,
  dequantize,
  matmul,
  matmulInputGrad,
  multiplyAdd,
  QuantizedWeight,
  sumProduct,
  Tensor,
} from '../../../../lib/index.js';
import { Matrix, type OracleLayer, parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

const B = 32;

/** Step, and place among the codes, of each value: groups reach from code 0 to the top. */
function gridOf(w: Matrix, n: number, k: number, top: number) {
  const group = Array.from({ length: B }, (_, i) => w.at(n, Math.floor(k / B) * B + i));
  const [least, most] = [Math.min(...group), Math.max(...group)];
  const step = (most - least) / top;
  return { step, code: Math.round((w.at(n, k) - least) / step) };
}

function lotaUpdate({ w, N, K, config }: OracleLayer, product: Matrix): Matrix {
  const omega = config.threshold * config.r;
  const top = 2 ** config.bits - 1;
  const marker = Matrix.of(N, K, (n, k) => {
    const { code } = gridOf(w, n, k, top);
    const value = product.at(n, k);
    if (value > omega) return code < top ? 1 : 0;
    return value < -omega && code > 0 ? -1 : 0;
  });
  const share = { program: 1 / omega, paper: 1, none: 0 }[config.offset as string] as number;
  return Matrix.of(N, K, (n, k) => {
    let mean = 0;
    for (let i = 0; i < B; i++) {
      const at = Math.floor(k / B) * B + i;
      mean += (product.at(n, at) - omega * marker.at(n, at)) / B;
    }
    return gridOf(w, n, k, top).step * (marker.at(n, k) + share * mean);
  });
}

/** Markers move with the product, by the straight-through rule; the offset sees them as they were. */
function lotaWithMarkersHeld(start: Adapter, w: BaseWeight) {
  const config = start.config as { r: number; threshold: number; bits: number; offset: string };
  const { device } = w;
  const [N = 0, K = 0] = w.shape;
  const dense = QuantizedWeight.is(w) ? dequantize(w, { dtype: 'f32' }) : w;
  const matrix = new Matrix(N, K, Float64Array.from(dense.readSync()));
  const p = start.parameters as Record<'loraA' | 'loraB', Tensor>;
  const first = matmulInputGrad(p.loraB, p.loraA);
  const product = new Matrix(N, K, Float64Array.from(first.readSync()));
  const top = 2 ** config.bits - 1;
  const omega = config.threshold * config.r;
  const own = { w: matrix, N, K, config: { ...config, offset: 'none' } } as unknown as OracleLayer;
  const steps = Matrix.of(N, K, (n, k) => gridOf(matrix, n, k, top).step);
  const markers = lotaUpdate(own, product).map((v, n, k) => v / steps.at(n, k));
  const share = { program: 1 / omega, paper: 1, none: 0 }[config.offset] as number;
  const tensor = (m: Matrix) => Tensor.from(Float32Array.from(m.data), [N, K], { device });
  const [scales, fixed] = [tensor(steps), tensor(markers)];
  return (at: Readonly<Record<string, Tensor>>): Tensor => {
    const now = at as typeof p & Record<'dx' | 'dBias', Tensor>;
    const moved = matmulInputGrad(now.loraB, now.loraA);
    const rest = multiplyAdd({ a: moved, c: fixed, beta: -omega }).reshape([(N * K) / B, B]);
    const mean = sumProduct(rest, undefined, { axis: 1 }).reshape([(N * K) / B, 1]);
    const through = multiplyAdd({ a: multiplyAdd({ a: moved, c: first, beta: -1 }), c: fixed });
    const codes = multiplyAdd({
      a: through.reshape([(N * K) / B, B]),
      c: mean,
      beta: share / B,
    }).reshape([N, K]);
    const sum = multiplyAdd({ a: codes, b: scales, c: dense });
    return matmul(now.dx, sum, { bias: now.dBias });
  };
}

export const tests: MethodTests = {
  formulas: {
    'lota-qaf': (layer) => {
      const [a, b] = parts(layer, 'loraA', 'loraB');
      return { weight: layer.w.plus(lotaUpdate(layer, b.times(a))) };
    },
  },
  cases: {
    'lota-qaf': { settings: { r: 4, threshold: 0.05 }, held: lotaWithMarkersHeld },
    'lota-qaf/paper': {
      settings: { r: 4, threshold: 0.1, offset: 'paper' },
      held: lotaWithMarkersHeld,
    },
    'lota-qaf/none': {
      settings: { r: 4, threshold: 0.02, offset: 'none' },
      held: lotaWithMarkersHeld,
    },
  },
};
