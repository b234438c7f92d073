import { Matrix, parts, scaling } from '../../../oracle/adapter-layer.js';
import {
  columns,
  expertsOf,
  given,
  largest,
  mixture,
  rows,
  softmaxTop,
} from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    hydralora: (layer) => {
      const [a, b, router] = parts(layer, 'loraA', 'loraB', 'router');
      const { experts, r, topK } = layer.config;
      return {
        update: (x) =>
          mixture(
            x,
            softmaxTop(x.times(router.transposed()), topK),
            Array.from({ length: experts }, (_, e) => ({
              a,
              b: columns(b, e * r, (e + 1) * r),
              scale: scaling(layer),
            })),
          ),
      };
    },
    lily: (layer) => {
      const [a, b, router] = parts(layer, 'loraA', 'loraB', 'router');
      const { experts, r } = layer.config;
      return {
        update: (x) => {
          const h = x.times(a.transposed());
          const gates = softmaxTop(h.times(router.transposed()), 0);
          const mean = Array.from({ length: experts }, (_, e) => {
            let sum = 0;
            for (let m = 0; m < gates.rows; m++) sum += gates.at(m, e);
            return sum / gates.rows;
          });
          const mixed = Matrix.of(r, b.cols, (j, n) =>
            mean.reduce((sum, g, e) => sum + g * b.at(e * r + j, n), 0),
          );
          return h.times(mixed).map((value) => value * layer.config.scaling);
        },
      };
    },
    loramoe: (layer) => {
      const [a, b, router] = parts(layer, 'loraA', 'loraB', 'router');
      const { experts, r, topK } = layer.config;
      return {
        update: (x) =>
          mixture(
            x,
            softmaxTop(x.times(router.transposed()), topK),
            Array.from({ length: experts }, (_, e) => ({
              a: rows(a, e * r, (e + 1) * r),
              b: columns(b, e * r, (e + 1) * r),
              scale: scaling(layer),
            })),
          ),
      };
    },
    'x-lora': (layer) => {
      const { topK, softmaxTopK, globalScaling } = layer.config;
      const experts = expertsOf(layer);
      return {
        update: (x, inputs) => {
          let gates = given(inputs, 'gates');
          if (topK > 0) {
            gates = softmaxTopK
              ? softmaxTop(gates, topK)
              : gates.map((v, m, e) => {
                  const row = Array.from({ length: gates.cols }, (_, j) => gates.at(m, j));
                  return largest(row, topK).includes(e) ? v : 0;
                });
          }
          return mixture(x, gates, experts).map((v) => v * globalScaling);
        },
      };
    },
  },
  cases: {
    hydralora: { settings: { experts: 3, r: 4, loraAlpha: 6 } },
    lily: { settings: { r: 4, experts: 3, scaling: 1.5 } },
    loramoe: { settings: { experts: 3, r: 2, loraAlpha: 4 } },
    // A small step: no token changes its experts.
    'loramoe/top2': { settings: { experts: 4, topK: 2, r: 2, loraAlpha: 4 }, step: 1 / 512 },
    // The same of a batch of many adapters.
    'loramoe/sparse': {
      settings: { experts: 4, topK: 2, sparse: true, r: 2, loraAlpha: 4 },
      step: 1 / 512,
    },
    'x-lora': {
      settings: { ranks: [3, 1, 4], scalings: [2, 1, 0.5] },
      inputs: { gates: (M) => [M, 3] },
    },
    'x-lora/batch': {
      settings: { ranks: [3, 1], scalings: [2, 1], globalScaling: 0.7 },
      inputs: { gates: () => [2] },
    },
    'x-lora/top2': {
      settings: { ranks: [3, 1, 4], scalings: [2, 1, 0.5], topK: 2 },
      inputs: { gates: (M) => [M, 3] },
      step: 1 / 512,
    },
    'x-lora/softmax': {
      settings: { ranks: [3, 1, 4], scalings: [2, 1, 0.5], topK: 2, softmaxTopK: true },
      inputs: { gates: (M) => [M, 3] },
      step: 1 / 512,
    },
  },
};
