// Planar weights: decoded to the oracle's bits on every device, and what products make of them.
import { describe, expect, it } from 'vitest';
import { dequantize, QuantizedWeight, scope } from '../../lib/index.js';
import { roundAll } from '../oracle/dtypes.js';
import { exact } from '../oracle.js';
import { DEVICES, DTYPES } from './operands.js';
import { PLANAR_SPECS, planarCase } from './planar-cases.js';

// Rows that begin in the middle of a byte would, and do not; groups that end in the middle of a row; more elements than
// the CPU decodes at once.
const SHAPES = [
  [5, 96],
  [7, 37],
  [3, 333],
] as const;

describe.each(DEVICES)('%s', (device) => {
  it.each(PLANAR_SPECS)('$name: values', (spec) => {
    for (const [N, K] of SHAPES) {
      scope(() => {
        const { planes, values } = planarCase(spec, N, K, N * K);
        const w = QuantizedWeight.fromPlanes(planes, { device });
        expect([w.format, w.shape]).toEqual(['planar', [N, K]]);
        for (const dtype of DTYPES) {
          const decoded = dequantize(w, { dtype }).readSync();
          exact(`${N}x${K} ${dtype}`, decoded, roundAll(dtype, values));
        }
      });
    }
  });
});
