import { Matrix, type OracleLayer, parts } from '../../../oracle/adapter-layer.js';
import { cayleyOf, seriesOf, skewOf } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

function psoftOf(layer: OracleLayer): { weight: Matrix } {
  const [weight, a, b] = parts(layer, 'weight', 'loraA', 'loraB');
  const { vectorA, vectorB } = layer.p;
  const { r, loraAlpha, terms, eps, orthogonal } = layer.config;
  const norm = Math.sqrt(2 * weight.data.reduce((total, v) => total + v * v, 0));
  const shrink = terms > 0 && eps > 0 && norm > eps ? eps / norm : 1;
  const rotation = (): Matrix => {
    const q = skewOf(weight.data, r).map((v) => v * shrink);
    return terms > 0 ? seriesOf(q, terms) : cayleyOf(q).transposed();
  };
  const ones = new Float64Array(r).fill(1);
  const core = (orthogonal ? rotation() : weight)
    .scaleCols(vectorA?.data ?? ones)
    .scaleRows(vectorB?.data ?? ones);
  const update = b.times(core.plus(Matrix.identity(r), -1)).times(a);
  return { weight: layer.w.plus(update, loraAlpha / r) };
}

export const tests: MethodTests = {
  formulas: {
    psoft: psoftOf,
  },
  cases: {
    psoft: { settings: { r: 6, loraAlpha: 9 } },
    'psoft/bounded': { settings: { r: 6, loraAlpha: 9, terms: 5, eps: 0.4 } },
    'psoft/free': { settings: { r: 6, loraAlpha: 9, orthogonal: false, scaleA: false } },
    'psoft/rotation': { settings: { r: 6, loraAlpha: 9, scaleA: false, scaleB: false } },
    'psoft/series': { settings: { r: 6, loraAlpha: 9, terms: 4 } },
  },
};
