// Planar weights of every grid and plane, against the definition.
import { describe, expect, it } from 'vitest';
import { type PlanarWeight, planarToFloat32, writeQuantizedLayer } from '../../../lib/index.js';
import { encodeBits } from '../../oracle/dtypes.js';
import { bytes, floats } from './made-tensors.js';

const f32 = Math.fround;

describe('planar weights', () => {
  const [N, K] = [3, 10];
  const codes = bytes(N * K, 16);
  const levels = floats(16);
  const base = { rows: N, columns: K, bits: 4, codes, levels };
  const half = (values: Float32Array) => Uint16Array.from(values, (v) => encodeBits('bf16', v));

  it('decodes every grid and plane as its definition says', () => {
    const group = Int32Array.of(1, 0, 1, 1, 0, 2, 2, 0, 1, 2);
    const table = floats(256);
    const grids: [PlanarWeight['grid'], number, (n: number, k: number) => number][] = [
      [{ kind: 'tiles', rows: 1, columns: 4 }, 9, (n, k) => n * 3 + Math.floor(k / 4)],
      [{ kind: 'tiles', rows: 2, columns: 10 }, 2, (n) => Math.floor(n / 2)],
      [
        { kind: 'tiles', rows: 2, columns: 3 },
        8,
        (n, k) => Math.floor(n / 2) * 4 + Math.floor(k / 3),
      ],
      [{ kind: 'flat', span: 7 }, 5, (n, k) => Math.floor((n * K + k) / 7)],
      [{ kind: 'cyclic', period: 6 }, 6, (n, k) => (n * K + k) % 6],
      [{ kind: 'ordered', groups: 3, group }, 9, (n, k) => n * 3 + (group[k] as number)],
    ];
    for (const [grid, entries, entryOf] of grids) {
      const [own, outer, mins] = [bytes(entries), floats(Math.ceil(entries / 4)), floats(entries)];
      const scale: PlanarWeight['scale'] = {
        values: { dtype: 'u8', data: own, table },
        outer: { values: { dtype: 'f32', data: outer }, span: 4 },
        offset: 0.1,
      };
      const zeros = floats(entries).map((v) => Math.round(v * 8));
      const kinds: Partial<PlanarWeight>[] = [
        {},
        { min: { values: { dtype: 'f32', data: mins } } },
        { zero: { dtype: 'bf16', data: half(zeros) } },
        { zero: { dtype: 'u8', data: own } },
      ];
      for (const kind of kinds) {
        const values = planarToFloat32({ ...base, grid, scale, ...kind });
        values.forEach((value, i) => {
          const e = entryOf(Math.floor(i / K), i % K);
          const s = f32(
            f32((table[own[e] as number] as number) * (outer[Math.floor(e / 4)] as number)) +
              f32(0.1),
          );
          const level = levels[codes[i] as number] as number;
          const z = kind.zero?.dtype === 'u8' ? (own[e] as number) : (zeros[e] as number);
          const expected =
            kind.zero !== undefined
              ? f32(f32(level - z) * s)
              : kind.min !== undefined
                ? f32(f32(level * s) - (mins[e] as number))
                : f32(level * s);
          expect(value).toBe(expected);
        });
      }
    }
  });

  it('rejects parts that do not fit each other', () => {
    const scale: PlanarWeight['scale'] = { values: { dtype: 'f32', data: floats(3) } };
    const good: PlanarWeight = { ...base, grid: { kind: 'tiles', rows: 1, columns: K }, scale };
    planarToFloat32(good);
    const wrong: [Partial<Record<keyof PlanarWeight, unknown>>, string][] = [
      [{ rows: 0 }, 'rows must be a positive integer, got 0'],
      [{ columns: 9 }, 'codes must be a Uint8Array of 27'],
      [{ bits: 9 }, 'bits must be 1 to 8, got 9'],
      [{ levels: floats(15) }, 'levels must be a Float32Array of 16'],
      [{ codes: new Uint8Array(30).fill(16) }, 'codes must be below 16'],
      [{ grid: { kind: 'tiles', rows: 1, columns: 0 } }, 'grid.columns'],
      [
        { grid: { kind: 'tiles', rows: 1, columns: 5 } },
        'scale.values.data must be a Float32Array of 6',
      ],
      [{ grid: { kind: 'flat', span: -1 } }, 'grid.span'],
      [{ grid: { kind: 'cyclic', period: 7 } }, 'grid.period must be a divisor of 30'],
      [{ grid: { kind: 'ordered', groups: 1, group: new Int32Array(9) } }, 'grid.group'],
      [
        { grid: { kind: 'ordered', groups: 1, group: new Int32Array(10).fill(1) } },
        'below 1, got 1 at 0',
      ],
      [{ grid: { kind: 'round' } }, 'grid.kind'],
      [{ grid: undefined }, 'grid must be an object'],
      [{ scale: undefined }, 'scale must be an object'],
      [{ scale: { values: { dtype: 'f64', data: floats(3) } } }, 'scale.values.dtype'],
      [{ scale: { values: { dtype: 'u8', data: bytes(3) } } }, 'scale.values.table'],
      [{ scale: { ...scale, outer: { values: scale.values, span: 0 } } }, 'scale.outer.span'],
      [
        { scale: { ...scale, outer: { values: scale.values, span: 2 } } },
        'scale.outer.values.data',
      ],
      [{ zero: { dtype: 'u8', data: bytes(4) } }, 'zero.data must be a Uint8Array of 3'],
      [{ zero: { dtype: 'u8', data: bytes(3) }, min: scale }, 'zero must be absent beside min'],
    ];
    for (const [change, text] of wrong) {
      const weight = { ...good, ...change } as PlanarWeight;
      expect(() => planarToFloat32(weight)).toThrow(text);
      const layout = { name: 'gptq', version: 2 } as const;
      expect(() => writeQuantizedLayer({ weight, layout })).toThrow(text);
    }
  });
});
