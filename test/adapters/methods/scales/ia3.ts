import { parts } from '../../../oracle/adapter-layer.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    ia3: (layer) => {
      const [scale] = parts(layer, 'scale');
      const bias = layer.bias.map((v, i) => v * (scale.data[i] as number));
      return { weight: layer.w.scaleRows(scale.data), bias };
    },
    'ia3-input': (layer) => {
      const [scale] = parts(layer, 'scale');
      const taps = layer.K / scale.data.length;
      return { weight: layer.w.map((v, _, k) => v * (scale.data[Math.floor(k / taps)] as number)) };
    },
  },
  cases: {
    ia3: {},
    'ia3-input': {},
    'ia3-input/kernel': { settings: { kernel: [2, 2] } },
  },
};
