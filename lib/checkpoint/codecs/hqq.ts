/**
 * HQQ, `w = (code - zero) · scale` with fractions for zero-points. w is reshaped to [N · K / g, g] (axis 1, a group is a row)
 * or to [g, N · K / g] (axis 0, a group is a column). Codes are packed along the first dimension by parts, the first part in
 * the highest bits: 2 parts in a byte with 4 bits, 4 with 2, 8 with 1; with 3 bits ten in an I32, the first at bit 27, and
 * rows padded with zeros to ten.
 *
 * Every property of a layer is a tensor: `W_q, scale, zero, nbits, group_size, shape, axis, ...`. They decide, not the config:
 * a layer may differ from it.
 */
import type { Fields } from '../../core/bit-fields.js';
import { fail } from '../../core/errors.js';
import { integerLevels } from '../planar/levels.js';
import type { Grid, PlanarWeight, PlaneValues, ZeroPlane } from '../planar/planar-weight.js';
import { bytesOf, type RawDType, type RawTensor, rawView } from '../raw-tensor.js';
import type { Codec } from './codec.js';
import { type LayerReader, listed } from './layer-reader.js';
import { packCodes, readCodes } from './packing.js';
import {
  floatScales,
  integersOf,
  kFloats,
  planeValues,
  rawTensor,
  requireLevels,
  requireNoMinima,
  tensorOfPlane,
  unfit,
} from './planes.js';

/** What a layer of HQQ has beside its weight. */
export interface HqqLayout {
  readonly name: 'hqq';
  /** The dtype and shape of `W_q`. */
  readonly packed: { readonly dtype: RawDType; readonly shape: readonly number[] };
  /** The shape of `scale` and `zero`. */
  readonly scaleShape: readonly number[];
  /** Properties that the library keeps, as they are. */
  readonly others?: Readonly<Record<string, RawTensor>>;
}

const kBits = [1, 2, 3, 4, 8];
const kSizes = ['nbits', 'axis', 'group_size', 'shape'];
const kProperties = [
  ...kSizes,
  'packing',
  'channel_wise',
  'optimize',
  'round_zero',
  'view_as_float',
  'unpack_view_dtype',
  'compute_dtype',
  'offload_meta',
  'quant_scale',
  'quant_zero',
  'encoded_state_dict',
  'stores_quant_config',
];

/** Words of 32 bits with 3 bits a code, bytes otherwise, and the codes in one. */
const wordOf = (bits: number) =>
  bits === 3 ? { bytes: 4, parts: 10 } : { bytes: 1, parts: 8 / bits };

/** Codes [parts, words]: code i of the reshaped weight is part floor(i / words) of word i mod words. */
function fieldsOf(bits: number, words: number): Fields {
  const { bytes, parts } = wordOf(bits);
  const field = {
    base: 0,
    rows: { at: Array.from({ length: parts }, (_, part) => bits * (parts - 1 - part)), stride: 0 },
    columns: { at: [0], stride: 8 * bytes },
    bits,
    shift: 0,
  };
  return { rows: parts, columns: words, fields: [field] };
}

/** Words of a weight whose reshaped form has so many columns. */
function wordsFor(bits: number, elements: number, columns: number): number {
  return Math.ceil(elements / columns / wordOf(bits).parts) * columns;
}

function shapeOf(layer: LayerReader): readonly [number, number] {
  const tensor = layer.tensor('shape', ['I64', 'I32']);
  layer.requireShape('shape', tensor, [2], 'a matrix');
  const bytes = bytesOf(tensor.data).slice();
  const sizes =
    tensor.dtype === 'I64'
      ? Array.from(new BigInt64Array(bytes.buffer), Number)
      : [...new Int32Array(bytes.buffer)];
  const [N, K] = sizes as [number, number];
  if (!(N >= 1 && K >= 1 && Number.isSafeInteger(N * K))) {
    layer.refuse('ERR_SHAPE', 'shape', 'two positive sizes', listed(sizes));
  }
  return [N, K];
}

function refuseQuantisedMeta(layer: LayerReader): void {
  for (const key of ['quant_scale', 'quant_zero']) {
    if (!layer.has(key) || layer.scalar(key) === 0) continue;
    const way = 'quantise the model again with quant_scale and quant_zero false';
    layer.refuse(
      'ERR_UNSUPPORTED',
      key,
      'false (scales and zero-points as floats)',
      `true: ${way}`,
    );
  }
}

function zeroPlane(values: PlaneValues): ZeroPlane {
  if (values.dtype !== 'u8') return values;
  return { dtype: 'u8', data: values.data };
}

/** Values in a group, the columns of the reshaped weight, and the grid. */
function sizesOf(layer: LayerReader, [N, K]: readonly [number, number]) {
  const axis = layer.scalar('axis');
  if (axis !== 0 && axis !== 1) layer.refuse('ERR_FORMAT', 'axis', '0 or 1', String(axis));
  const whole = axis === 1 ? K : N;
  const size = layer.has('group_size') ? layer.scalar('group_size') : whole;
  if (size < 1 || (N * K) % size !== 0) {
    const expected = `a divisor of the ${N * K} elements of shape [${N}, ${K}]`;
    layer.refuse('ERR_FORMAT', 'group_size', expected, String(size));
  }
  const groups = (N * K) / size;
  const rowGroups: Grid =
    K % size === 0 ? { kind: 'tiles', rows: 1, columns: size } : { kind: 'flat', span: size };
  const grid: Grid = axis === 1 ? rowGroups : { kind: 'cyclic', period: groups };
  return { axis, size, groups, grid, columns: axis === 1 ? size : groups };
}

function codesOf(
  layer: LayerReader,
  packed: RawTensor,
  [bits, elements, columns]: readonly [number, number, number],
): Uint8Array<ArrayBuffer> {
  const words = wordsFor(bits, elements, columns);
  const { bytes, parts } = wordOf(bits);
  const rows = elements / columns;
  if (packed.data.byteLength !== words * bytes || (bits !== 3 && rows % parts !== 0)) {
    const expected = `${words * bytes} bytes in ${parts} parts for ${elements} codes of ${bits} bits`;
    layer.refuse('ERR_SHAPE', 'W_q', expected, `${packed.dtype}${listed(packed.shape)}`);
  }
  // Ten codes of 3 bits leave the two highest bits of a word.
  const full = bits === 3 ? integersOf(packed).findIndex((word) => word >>> 30 !== 0) : -1;
  if (full >= 0) layer.refuse('ERR_FORMAT', 'W_q', 'words below 2^30', `more at ${full}`);
  const codes = readCodes(packed, fieldsOf(bits, words));
  const bad = codes.subarray(elements).findIndex((code) => code !== 0);
  if (bad >= 0) {
    const expected = `0 after its ${elements} codes, as padding is`;
    layer.refuse('ERR_FORMAT', 'W_q', expected, `${codes[elements + bad]}`);
  }
  return codes.slice(0, elements);
}

const text = (value: string): RawTensor => {
  const data = new TextEncoder().encode(value);
  return rawTensor('U8', [data.length], data);
};
const integer = (value: number): RawTensor => rawTensor('I32', [], Int32Array.of(value));
const flag = (value: boolean): RawTensor => rawTensor('U8', [], Uint8Array.of(Number(value)));

/** The layout of a weight that was quantised here, with the properties that the library saves. @throws ERR_SHAPE */
export function hqqLayoutOf(
  op: string,
  { rows: N, columns: K, bits }: PlanarWeight,
  how: {
    readonly groupSize: number;
    readonly axis: 0 | 1;
    readonly optimize: boolean;
    readonly roundZero: boolean;
  },
): HqqLayout {
  const { groupSize, axis } = how;
  const groups = (N * K) / groupSize;
  const [rows, columns] = axis === 1 ? [groups, groupSize] : [groupSize, groups];
  const { parts } = wordOf(bits);
  if (bits !== 3 && rows % parts !== 0) {
    const what = axis === 1 ? 'groups' : 'elements of a group';
    fail('ERR_SHAPE', op, 'w', `of ${what} that ${parts} codes a byte divide`, String(rows));
  }
  const dtype = bits === 3 ? 'I32' : 'U8';
  return {
    name: 'hqq',
    packed: { dtype, shape: [Math.ceil(rows / parts), columns] },
    scaleShape: axis === 1 ? [groups, 1] : [1, groups],
    others: {
      nbits: integer(bits),
      group_size: integer(groupSize),
      axis: integer(axis),
      shape: rawTensor('I64', [2], BigInt64Array.of(BigInt(N), BigInt(K))),
      packing: text(bits === 3 ? '3bit_32' : `${bits}bit_u8`),
      channel_wise: flag(true),
      optimize: flag(how.optimize),
      round_zero: flag(how.roundZero),
      view_as_float: flag(false),
      unpack_view_dtype: text(bits === 3 ? 'torch.int32' : 'torch.uint8'),
      compute_dtype: text('torch.float16'),
      offload_meta: flag(false),
      quant_scale: flag(false),
      quant_zero: flag(false),
      encoded_state_dict: flag(true),
      stores_quant_config: flag(true),
    },
  };
}

export const hqqCodec: Codec<HqqLayout> = {
  name: 'hqq',
  keys: ['W_q'],
  suffixes: ['W_q', 'scale', 'zero', ...kProperties],
  others: kProperties,
  matches: ({ W_q }) => W_q !== undefined,
  announcedBy: ({ quant_method }) => quant_method === 'hqq',
  read(layer) {
    refuseQuantisedMeta(layer);
    const bits = layer.scalar('nbits');
    if (!kBits.includes(bits)) {
      layer.refuse('ERR_FORMAT', 'nbits', '1, 2, 3, 4 or 8', String(bits));
    }
    const [N, K] = shapeOf(layer);
    const { grid, groups, columns, axis } = sizesOf(layer, [N, K]);
    // A view as floats has the same bytes under another dtype.
    const packed = layer.tensor('W_q', [bits === 3 ? 'I32' : 'U8', ...kFloats]);
    const codes = codesOf(layer, packed, [bits, N * K, columns]);
    const scale = layer.tensor('scale', kFloats);
    const zero = layer.tensor('zero', kFloats);
    const shape = axis === 1 ? [groups, 1] : [1, groups];
    const why = `axis ${axis} and ${groups} groups of shape [${N}, ${K}]`;
    for (const [key, tensor] of Object.entries({ scale, zero })) {
      layer.requireShape(key, tensor, shape, why);
    }
    const weight: PlanarWeight = {
      rows: N,
      columns: K,
      bits,
      codes,
      levels: integerLevels(bits),
      grid,
      scale: { values: planeValues(scale) },
      zero: zeroPlane(planeValues(zero)),
    };
    return {
      weight,
      layout: {
        name: 'hqq',
        packed: { dtype: packed.dtype, shape: [...packed.shape] },
        scaleShape: shape,
        others: layer.others(kProperties),
      },
    };
  },
  write(op, weight, { packed, scaleShape, others }) {
    const { rows: N, columns: K, bits, grid, zero } = weight;
    if (!kBits.includes(bits)) unfit(op, 'bits', '1, 2, 3, 4 or 8 in HQQ', String(bits));
    requireNoMinima(op, weight);
    requireLevels(op, weight, integerLevels(bits), 'integers from 0');
    const scale = floatScales(op, weight);
    if (zero === undefined || zero.dtype === 'u8') {
      return unfit(op, 'zero', 'floats in HQQ', zero?.dtype ?? 'none');
    }
    if (grid.kind === 'ordered' || (grid.kind === 'tiles' && grid.rows !== 1)) {
      unfit(op, 'grid', 'groups of rows', grid.kind);
    }
    const groups = scale.data.length;
    const columns = grid.kind === 'cyclic' ? groups : (N * K) / groups;
    const words = wordsFor(bits, N * K, columns);
    const { bytes, parts } = wordOf(bits);
    if (bits !== 3 && ((N * K) / columns) % parts !== 0) {
      unfit(op, 'rows', `whole parts of ${parts} codes`, String((N * K) / columns));
    }
    const codes = new Uint8Array(parts * words);
    codes.set(weight.codes);
    const data = packCodes(codes, fieldsOf(bits, words), words * bytes);
    return {
      W_q: rawTensor(packed.dtype, packed.shape, rawView(packed.dtype, data)),
      scale: tensorOfPlane(scale, scaleShape),
      zero: tensorOfPlane(zero, scaleShape),
      ...others,
    };
  },
};
