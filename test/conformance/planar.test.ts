// Planar weights: decoded to the oracle's bits on every device, and what products make of them.
import { describe, expect, it } from 'vitest';
import {
  dequantize,
  type PlanarWeight,
  planarToFloat32,
  QuantizedWeight,
  scope,
} from '../../lib/index.js';
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

  it.each(['u8', 'f32'] as const)('(c − z) · s, not c · s − z · s: zero-points in %s', (dtype) => {
    const [N, K] = [64, 32];
    const f32 = Math.fround;
    const scales = Float32Array.from({ length: N }, (_, n) => 0.1 + n / 37);
    const zeros = Float32Array.from({ length: N }, (_, n) => (n % 14) + (dtype === 'u8' ? 0 : 0.3));
    const planes: PlanarWeight = {
      rows: N,
      columns: K,
      bits: 4,
      codes: Uint8Array.from({ length: N * K }, (_, i) => (i * 7) % 16),
      levels: Float32Array.from({ length: 16 }, (_, code) => code),
      grid: { kind: 'tiles', rows: 1, columns: K },
      scale: { values: { dtype: 'f32', data: scales } },
      zero: dtype === 'u8' ? { dtype, data: Uint8Array.from(zeros) } : { dtype, data: zeros },
    };
    let others = 0;
    const expected = Float32Array.from(planes.codes, (c, i) => {
      const [s, z] = [scales, zeros].map((of) => of[Math.floor(i / K)] as number) as [
        number,
        number,
      ];
      const value = f32(f32(c - z) * s);
      if (value !== f32(f32(c * s) - f32(z * s))) others++;
      return value;
    });
    // The two ways do differ here.
    expect(others).toBeGreaterThan(100);
    exact('host', planarToFloat32(planes), expected);
    using w = QuantizedWeight.fromPlanes(planes, { device });
    exact('decoded', dequantize(w, { dtype: 'f32' }).readSync(), expected);
  });
});
