import { type Matrix, parts, scaling } from '../../../oracle/adapter-layer.js';
import { given } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';
import { alpha } from '../common.js';

/** (x · aᵀ) · bᵀ, times a scale. */
const through = (x: Matrix, a: Matrix, b: Matrix, scale: number): Matrix =>
  x
    .times(a.transposed())
    .times(b.transposed())
    .map((v) => scale * v);

export const tests: MethodTests = {
  formulas: {
    alora: (layer) => {
      const [a, b] = parts(layer, 'loraA', 'loraB');
      return {
        update: (x, inputs) =>
          through(x, a, b, scaling(layer)).scaleRows(given(inputs, 'active').data),
      };
    },
    'reslora-input': (layer) => {
      const [a, b] = parts(layer, 'loraA', 'loraB');
      return {
        update: (x, inputs) => through(x.plus(given(inputs, 'previous')), a, b, scaling(layer)),
      };
    },
    'reslora-middle': (layer) => {
      const [a, b] = parts(layer, 'loraA', 'loraB');
      return {
        update: (x, inputs) =>
          x
            .times(a.transposed())
            .plus(given(inputs, 'middle'))
            .times(b.transposed())
            .map((v) => scaling(layer) * v),
      };
    },
    sibo: (layer) => {
      const [a, b] = parts(layer, 'loraA', 'loraB');
      const { lambda } = layer.config;
      return {
        update: (x, inputs) =>
          through(
            x.map((v) => (1 - lambda) * v).plus(given(inputs, 'initial'), lambda),
            a,
            b,
            scaling(layer),
          ),
      };
    },
  },
  cases: {
    alora: {
      settings: { ...alpha.settings, invocationTokens: [7, 0, 7] },
      inputs: { active: (M) => [M, 1] },
    },
    'reslora-input': { ...alpha, inputs: { previous: (M, { K }) => [M, K] } },
    'reslora-middle': { ...alpha, inputs: { middle: (M) => [M, 4] } },
    sibo: { ...alpha, inputs: { initial: (M, { K }) => [M, K] } },
  },
};
