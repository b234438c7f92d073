/** The planes of a weight on a device, read back: the inverse of planes.ts. */

import { streams } from '../checkpoint/codecs/packing.js';
import {
  entriesOf,
  type PlanarWeight,
  type PlaneValues,
  type ScalePlane,
  type ZeroPlane,
} from '../checkpoint/planar/planar-weight.js';
import { rawView } from '../checkpoint/raw-tensor.js';
import { type Fields, readFields } from '../core/bit-fields.js';
import type { BlockwisePlanes } from './blockwise-planes.js';

/** What the memory of a weight does not say. */
export interface PlanesRecipe {
  /** The weight, with the data of its planes left out. */
  readonly skeleton: PlanarWeight;
  /** Elements of a block, where the device has the blockwise form. */
  readonly blocksize?: number;
  /** The blockwise form: the scales, where they do not follow from their products. */
  readonly scale?: ScalePlane;
  /** The blockwise form: the number that all zero-points are. */
  readonly zero?: number;
}

const kBytes = { f32: 4, f16: 2, bf16: 2, u8: 1 } as const;

type Values = PlaneValues | ZeroPlane;

/** A plane without its numbers. */
function emptied<V extends Values>(values: V): V {
  return { ...values, data: values.data.slice(0, 0) };
}

function emptyScale({ values, outer, offset }: ScalePlane): ScalePlane {
  return {
    values: emptied(values),
    ...(outer === undefined ? {} : { outer: { values: emptied(outer.values), span: outer.span } }),
    ...(offset === undefined ? {} : { offset }),
  };
}

const copiedScale = (plane: ScalePlane): ScalePlane => structuredClone(plane);

/** @param blockwise the form that the device has, if it has that one */
export function recipeOf(
  weight: PlanarWeight,
  blockwise: BlockwisePlanes | undefined,
): PlanesRecipe {
  const { scale, zero, min, grid } = weight;
  const skeleton: PlanarWeight = {
    ...weight,
    codes: new Uint8Array(0),
    levels: weight.levels.slice(),
    grid: grid.kind === 'ordered' ? { ...grid, group: grid.group.slice() } : { ...grid },
    scale: emptyScale(scale),
    ...(zero === undefined ? {} : { zero: emptied(zero) }),
    ...(min === undefined ? {} : { min: emptyScale(min) }),
  };
  if (blockwise === undefined) return { skeleton };
  const products = scale.outer !== undefined || scale.offset !== undefined;
  return {
    skeleton,
    blocksize: blockwise.blocksize,
    ...(products ? { scale: copiedScale(scale) } : {}),
    ...(zero === undefined ? {} : { zero: zero.data[0] as number }),
  };
}

/** The names and bytes of the parts that {@link planesOf} needs. */
export function partsOf({ skeleton, blocksize, scale }: PlanesRecipe): ReadonlyMap<string, number> {
  const { rows, columns, bits, zero, min } = skeleton;
  const elements = rows * columns;
  if (blocksize !== undefined) {
    return new Map([
      ['codes', bits <= 4 ? elements / 2 : elements],
      ...(scale === undefined ? [['absmax', (elements / blocksize) * 4] as const] : []),
    ]);
  }
  const entries = entriesOf(skeleton);
  const sizes = new Map([['codes', rows * Math.ceil((columns * bits) / 8)]]);
  const add = (name: string, plane: ScalePlane): void => {
    sizes.set(name, entries * kBytes[plane.values.dtype]);
    const { outer } = plane;
    if (outer === undefined) return;
    sizes.set(`${name}Outer`, Math.ceil(entries / outer.span) * kBytes[outer.values.dtype]);
  };
  add('scale', skeleton.scale);
  if (min !== undefined) add('min', min);
  if (zero !== undefined) sizes.set('zero', entries * kBytes[zero.dtype]);
  return sizes;
}

/** Codes as the device has them: four bits with the first in the high half of a byte, other widths from the low bits on. */
function codeFields({ rows, columns, bits }: PlanarWeight, wide: boolean): Fields {
  const width = wide ? (bits <= 4 ? 4 : 8) : bits;
  const pitch = Math.ceil((columns * width) / 8) * 8;
  if (width !== 4) return streams({ rows, columns, bits: width, rowPitch: pitch });
  const field = {
    base: 0,
    rows: { at: [0], stride: pitch },
    columns: { at: [4, 0], stride: 8 },
    bits: 4,
    shift: 0,
  };
  return { rows, columns, fields: [field] };
}

function filled<V extends Values>(values: V, bytes: Uint8Array<ArrayBuffer>): V {
  const dtype = ({ f32: 'F32', f16: 'F16', bf16: 'BF16', u8: 'U8' } as const)[values.dtype];
  return { ...values, data: rawView(dtype, bytes) };
}

/** The stored numbers of scales that the blockwise form has as f32, one for each block. */
function scalesOf({ skeleton, blocksize = 1 }: PlanesRecipe, absmax: Float32Array): PlaneValues {
  const { rows, columns, grid, scale } = skeleton;
  const tiles = grid as Extract<PlanarWeight['grid'], { kind: 'tiles' }>;
  const [blocks, pitch] = [columns / blocksize, Math.ceil(columns / tiles.columns)];
  const values = new Float32Array(entriesOf(skeleton));
  for (let entry = 0; entry < values.length; entry++) {
    const row = Math.floor(entry / pitch) * tiles.rows;
    const block = Math.floor(((entry % pitch) * tiles.columns) / blocksize);
    values[entry] = absmax[Math.min(row, rows - 1) * blocks + block] as number;
  }
  const { dtype } = scale.values;
  if (dtype === 'f32') return { dtype, data: values };
  if (dtype === 'u8') {
    const { table } = scale.values;
    const codes = new Map<number, number>();
    table.forEach((value, code) => {
      if (!codes.has(value)) codes.set(value, code);
    });
    return { dtype, data: Uint8Array.from(values, (value) => codes.get(value) as number), table };
  }
  return { dtype, data: exactBits(values, dtype) };
}

/** Bits of 16-bit floats that f32 values came from, infinities and NaN included. */
function exactBits(values: Float32Array, dtype: 'f16' | 'bf16'): Uint16Array {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  if (dtype === 'bf16') return Uint16Array.from(words, (word) => word >>> 16);
  return Uint16Array.from(words, (word, i) => {
    const sign = (word >>> 16) & 0x8000;
    const exponent = (word >>> 23) & 255;
    if (exponent === 255) return sign | 0x7c00 | ((word & 0x7fffff) >>> 13);
    if (exponent > 112) return sign | (((word & 0x7fffffff) >>> 13) - (112 << 10));
    return sign | (Math.abs(values[i] as number) * 2 ** 24);
  });
}

/** @param parts as {@link partsOf} names them */
export function planesOf(
  recipe: PlanesRecipe,
  parts: ReadonlyMap<string, Uint8Array<ArrayBuffer>>,
): PlanarWeight {
  const { skeleton, blocksize } = recipe;
  const part = (name: string) => parts.get(name) as Uint8Array<ArrayBuffer>;
  const codes = readFields(part('codes'), codeFields(skeleton, blocksize !== undefined));
  const { zero, min } = skeleton;
  if (blocksize !== undefined) {
    const scale = recipe.scale ?? {
      values: scalesOf(recipe, new Float32Array(part('absmax').buffer)),
    };
    const zeros = (value: number): ZeroPlane => ({
      dtype: 'u8',
      data: new Uint8Array(entriesOf(skeleton)).fill(value),
    });
    const kept = recipe.zero === undefined ? {} : { zero: zeros(recipe.zero) };
    return { ...skeleton, codes, scale: copiedScale(scale), ...kept };
  }
  const scaleOf = (name: string, { values, outer, offset }: ScalePlane): ScalePlane => ({
    values: filled(values, part(name)),
    ...(outer === undefined
      ? {}
      : { outer: { values: filled(outer.values, part(`${name}Outer`)), span: outer.span } }),
    ...(offset === undefined ? {} : { offset }),
  });
  return {
    ...skeleton,
    codes,
    scale: scaleOf('scale', skeleton.scale),
    ...(zero === undefined ? {} : { zero: filled(zero, part('zero')) }),
    ...(min === undefined ? {} : { min: scaleOf('min', min) }),
  };
}
