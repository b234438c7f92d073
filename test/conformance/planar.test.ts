// Planar weights: decoded to the oracle's bits on every device, and what products make of them.
import { describe, expect, it } from 'vitest';
import {
  dequantize,
  matmul,
  type PlanarWeight,
  planarToFloat32,
  QuantizedWeight,
  scope,
  Tensor,
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

  // One loop of the CPU exchanges the sign of such codes and then reads them as code - 128.
  it.each(DTYPES)("products of codes in two's complement are exact: %s", (dtype) => {
    // On the CPU in bf16 the last one is wide enough for the loop over rows of bytes.
    for (const [M, N, K] of [
      [1, 40, 320],
      [3, 37, 320],
      [20, 40, 320],
      [2, 512, 1024],
    ] as const) {
      const codes = Uint8Array.from({ length: N * K }, (_, i) => (i * 89 + 7 * (i >> 8)) % 256);
      const scales = Float32Array.from(
        { length: (N * K) / 32 },
        (_, e) => [1, 2, -1][e % 3] as number,
      );
      const planes: PlanarWeight = {
        rows: N,
        columns: K,
        bits: 8,
        codes,
        levels: Float32Array.from({ length: 256 }, (_, code) => (code < 128 ? code : code - 256)),
        grid: { kind: 'tiles', rows: 1, columns: 32 },
        scale: { values: { dtype: 'f32', data: scales } },
      };
      const x = Float32Array.from({ length: M * K }, (_, i) => (i % 7) - 3);
      const expected = Float32Array.from({ length: M * N }, (_, i) => {
        const [m, n] = [Math.floor(i / N), i % N];
        let sum = 0;
        for (let k = 0; k < K; k++) {
          const code = codes[n * K + k] as number;
          const level = code < 128 ? code : code - 256;
          sum +=
            (x[m * K + k] as number) * level * (scales[Math.floor((n * K + k) / 32)] as number);
        }
        return sum;
      });
      scope(() => {
        const w = QuantizedWeight.fromPlanes(planes, { device });
        const y = matmul(Tensor.from(x, [M, K], { dtype, device }), w).readSync();
        exact(`${M} rows`, y, roundAll(dtype, expected));
      });
    }
  });
});
