import { type OracleLayer, type OracleMerged, parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

/** RandLoRA's sum over the flattened bases, larger side first. */
function randLora(layer: OracleLayer): OracleMerged {
  const { N, K, w, config } = layer;
  const [lambda, gamma, left, right] = parts(layer, 'lambda', 'gamma', 'left', 'right');
  const bases = gamma.rows;
  const { r } = config;
  const small = Math.min(N, K);
  const update = (large: number, col: number): number => {
    let sum = 0;
    for (let i = 0; i < r * bases; i++) {
      const k = Math.floor(i / bases);
      const b = i % bases;
      const fixed = right.data[large * bases * r + i] as number;
      const moved = lambda.at(k, b) * (left.data[k * small + col] as number) * gamma.at(b, col);
      sum += fixed * moved;
    }
    return (sum * config.loraAlpha) / r;
  };
  return { weight: w.map((v, n, k) => v + (N >= K ? update(n, k) : update(k, n))) };
}

export const tests: MethodTests = {
  formulas: {
    randlora: randLora,
  },
  cases: {
    randlora: { settings: { r: 5, loraAlpha: 6 } },
  },
};
