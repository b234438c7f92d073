import { Matrix, parts, scaling } from '../../../oracle/adapter-layer.js';
import { lowRank } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';
import { alpha } from '../common.js';

export const tests: MethodTests = {
  formulas: {
    lora: (layer) => {
      const [a, b] = parts(layer, 'loraA', 'loraB');
      const { groups, r } = layer.config;
      const own = (n: number) => Math.floor((n * groups) / layer.N);
      const whole = Matrix.of(layer.N, r, (n, i) =>
        own(n) === Math.floor((i * groups) / r) ? b.at(n, i % (r / groups)) : 0,
      );
      const { weight } = lowRank(layer, whole, a, scaling(layer));
      const extra = layer.p.loraBias?.data;
      if (extra === undefined) return { weight };
      return { weight, bias: layer.bias.map((v, n) => v + scaling(layer) * (extra[n] as number)) };
    },
  },
  cases: {
    lora: alpha,
    'lora/bias': { settings: { r: 4, loraAlpha: 6, rslora: true, loraBias: true } },
    'lora/embedding': { settings: { r: 4, loraAlpha: 6, embedding: true } },
    'lora/groups': { settings: { r: 8, loraAlpha: 6, kernel: [2, 2], groups: 4 } },
    'lora/groups-bias': {
      settings: { r: 8, loraAlpha: 6, kernel: [2, 2], groups: 2, loraBias: true },
    },
  },
};
