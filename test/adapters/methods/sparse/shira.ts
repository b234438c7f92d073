import { parts } from '../../../oracle/adapter-layer.js';
import { scattered, table } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

export const tests: MethodTests = {
  formulas: {
    shira: (layer) => {
      const indices = table(layer, 'indices');
      const half = indices.length / 2;
      const places = Array.from(
        { length: half },
        (_, i) => (indices[i] as number) * layer.K + (indices[half + i] as number),
      );
      return { weight: layer.w.plus(scattered(layer, places, parts(layer, 'weight')[0])) };
    },
  },
  cases: {
    shira: { settings: { r: 2 } },
  },
};
