/** Planar weights of any layout in the type of GGUF that holds the same values, if there is one. */

import { entryValues, planarToFloat32 } from '../../planar/decode.js';
import type { PlanarWeight } from '../../planar/planar-weight.js';
import { rawToFloat32 } from '../../raw-tensor.js';
import { GGUF_TYPES } from '../block-types.js';
import { type GgufBlockType, layoutOf, type PlaneParts, writeParts } from '../blocks/parts.js';
import { type GgufWeight, ggufToPlanar } from '../blocks/planar.js';
import type { GgufTensor } from '../gguf.js';
import { halfBits } from './half.js';

/** The e4m3 of 1. */
const kOne = 0x38;

/**
 * A weight as a quantised tensor of GGUF with the same values, rows in the order of the weight.
 *
 * Integers times scales that f16 holds become Q4_0, Q5_0 or Q8_0 by their range; e2m1 times powers of two MXFP4, in groups of 32; e2m1
 * times e4m3 NVFP4, in groups of 16. Groups may be longer: their scale is repeated. Every result is decoded and compared.
 *
 * @returns undefined if no type holds the values
 */
export function exactGguf(weight: PlanarWeight): GgufWeight | undefined {
  const made = integersOf(weight) ?? powersOf(weight) ?? nvfp4Of(weight);
  if (made === undefined) return undefined;
  const [own, back] = [
    planarToFloat32(weight),
    planarToFloat32(ggufToPlanar(made.tensor, made.scale)),
  ];
  const same = own.every((value, i) => value === back[i] || Object.is(value, back[i]));
  return same ? made : undefined;
}

/** Columns of a group, if groups lie in rows and blocks of `block` elements lie in groups. */
function groupOf({ grid, columns }: PlanarWeight, block: number): number | undefined {
  if (grid.kind !== 'tiles' || columns % block !== 0) return undefined;
  const group = Math.min(grid.columns, columns);
  return group % block === 0 ? group : undefined;
}

/** The entry of each block of `block` elements, row by row. */
function entriesOfBlocks({ rows, columns, grid }: PlanarWeight, block: number): Int32Array {
  if (grid.kind !== 'tiles') return new Int32Array(0);
  const each = columns / block;
  const pitch = Math.ceil(columns / grid.columns);
  return Int32Array.from({ length: rows * each }, (_, i) => {
    const row = Math.floor(i / each);
    return Math.floor(row / grid.rows) * pitch + Math.floor(((i % each) * block) / grid.columns);
  });
}

function tensorOf(
  type: GgufBlockType,
  { rows, columns }: PlanarWeight,
  codes: Uint8Array,
  scale: PlaneParts,
): GgufTensor {
  return { type, shape: [rows, columns], data: writeParts(type, { codes, scale }) };
}

const kRanges: readonly (readonly [GgufBlockType, number])[] = [
  ['Q4_0', 8],
  ['Q5_0', 16],
  ['Q8_0', 128],
];

function integersOf(weight: PlanarWeight): GgufWeight | undefined {
  const { codes, levels, zero, min } = weight;
  const block = GGUF_TYPES.Q8_0.elements;
  if (min !== undefined || groupOf(weight, block) === undefined) return undefined;
  if (zero !== undefined && zero.dtype !== 'u8') return undefined;
  const entries = entriesOfBlocks(weight, block);
  const scales = entryValues(weight.scale);
  const halves = Uint16Array.from(entries, (entry) => halfBits(scales[entry] as number));
  const exact = rawToFloat32({ dtype: 'F16', shape: [halves.length], data: halves });
  if (!exact.every((value, i) => value === scales[entries[i] as number])) return undefined;
  const integers = Float32Array.from(codes, (code, i) => {
    const entry = entries[Math.floor(i / block)] as number;
    return (levels[code] as number) - (zero?.data[entry] ?? 0);
  });
  const [least, most] = integers.reduce(
    ([low, high], value) => [Math.min(low, value), Math.max(high, value)],
    [0, 0],
  );
  if (!integers.every(Number.isInteger)) return undefined;
  const [type, half] = kRanges.find(([, h]) => least >= -h && most < h) ?? [];
  if (type === undefined || half === undefined) return undefined;
  const shift = type === 'Q8_0' ? 0 : half;
  return {
    tensor: tensorOf(
      type,
      weight,
      Uint8Array.from(integers, (value) => value + shift),
      { halves },
    ),
  };
}

/** The code of GGUF for each code of a weight whose levels are e2m1; undefined for other levels. */
function float4Codes({ bits, levels, codes, zero, min }: PlanarWeight): Uint8Array | undefined {
  if (bits !== 4 || zero !== undefined || min !== undefined) return undefined;
  // GGUF's table has twice the values.
  const { table } = layoutOf('MXFP4').codes;
  const doubled = Array.from(levels, (level) => table.indexOf(2 * level));
  if (doubled.includes(-1)) return undefined;
  const negative = table.lastIndexOf(0);
  const own = doubled.map((code, i) => (Object.is(levels[i], -0) ? negative : code));
  return Uint8Array.from(codes, (code) => own[code] as number);
}

function powersOf(weight: PlanarWeight): GgufWeight | undefined {
  const block = GGUF_TYPES.MXFP4.elements;
  const codes = float4Codes(weight);
  if (codes === undefined || groupOf(weight, block) === undefined) return undefined;
  const scales = entryValues(weight.scale);
  const exponents = Float64Array.from(
    entriesOfBlocks(weight, block),
    (entry) => 127 + Math.log2(scales[entry] as number),
  );
  if (!exponents.every((e) => Number.isInteger(e) && e >= 0 && e < 255)) return undefined;
  return { tensor: tensorOf('MXFP4', weight, codes, { integers: Uint8Array.from(exponents) }) };
}

function nvfp4Of(weight: PlanarWeight): GgufWeight | undefined {
  const group = 16;
  const codes = float4Codes(weight);
  const { values, outer, offset } = weight.scale;
  const { elements } = GGUF_TYPES.NVFP4;
  const fits = groupOf(weight, group) !== undefined && weight.columns % elements === 0;
  if (codes === undefined || !fits || values.dtype !== 'u8' || offset !== undefined)
    return undefined;
  if (outer !== undefined && (outer.values.dtype !== 'f32' || outer.values.data.length !== 1)) {
    return undefined;
  }
  const own = values.table[kOne] as number;
  const factor = outer === undefined ? own : (outer.values.data[0] as number);
  const entries = entriesOfBlocks(weight, group);
  const integers = Uint8Array.from(entries, (entry) => values.data[entry] as number);
  // The type has no sign of a scale.
  if (integers.some((byte) => byte > 0x7e)) return undefined;
  const tensor = tensorOf('NVFP4', weight, codes, { integers });
  if (factor === 1) return { tensor };
  const data = new Uint8Array(Float32Array.of(factor).buffer);
  return { tensor, scale: { type: 'F32', shape: [1], data } };
}
