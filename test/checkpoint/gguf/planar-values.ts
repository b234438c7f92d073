/** The values of a planar weight, from the formula of its definition. */
import type {
  PlanarWeight,
  PlaneValues,
  ScalePlane,
  ZeroPlane,
} from '../../../lib/checkpoint/planar/planar-weight.js';
import { decodeBits } from '../../oracle/dtypes.js';

const f32 = Math.fround;

function numberAt(plane: PlaneValues | ZeroPlane, i: number): number {
  const stored = plane.data[i] as number;
  if (plane.dtype === 'u8') return 'table' in plane ? (plane.table[stored] as number) : stored;
  return plane.dtype === 'f32' ? stored : decodeBits(plane.dtype, stored);
}

function scaleOf({ values, outer, offset = 0 }: ScalePlane, i: number): number {
  const own = numberAt(values, i);
  if (outer === undefined) return offset === 0 ? own : f32(own + offset);
  const product = f32(own * numberAt(outer.values, Math.floor(i / outer.span)));
  return offset === 0 ? product : f32(product + offset);
}

function entryOf({ grid, columns }: PlanarWeight, n: number, k: number): number {
  if (grid.kind !== 'tiles') throw new Error(`blocks of GGUF have no ${grid.kind} groups`);
  const pitch = Math.ceil(columns / grid.columns);
  return Math.floor(n / grid.rows) * pitch + Math.floor(k / grid.columns);
}

export function planarValues(weight: PlanarWeight): Float32Array {
  const { columns, codes, levels, scale, zero, min } = weight;
  return Float32Array.from(codes, (code, i) => {
    const entry = entryOf(weight, Math.floor(i / columns), i % columns);
    const level = levels[code] as number;
    const s = scaleOf(scale, entry);
    if (zero !== undefined) return f32(f32(level - numberAt(zero, entry)) * s);
    const product = f32(level * s);
    return min === undefined ? product : f32(product - scaleOf(min, entry));
  });
}
