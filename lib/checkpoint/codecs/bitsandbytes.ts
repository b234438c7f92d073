/**
 * The states of bitsandbytes as planar weights; their tensors are in lib/checkpoint/bitsandbytes. Blocks run over the
 * flattened weight: `w = codebook[code] · absmax`, and of LLM.int8 `w = (code / 127) · SCB`, each rounded to f32.
 */

import { readFields } from '../../core/bit-fields.js';
import {
  type BitsandbytesDType,
  type BitsandbytesFormat,
  formatBitsandbytes,
  isNestedAbsmax,
  type NestedAbsmax,
  parseBitsandbytes,
  type QuantStorage,
} from '../bitsandbytes/bitsandbytes.js';
import { formatRowInt8, kRowInt8Keys, parseRowInt8 } from '../bitsandbytes/row-int8-state.js';
import { integerLevels, sameLevels } from '../planar/levels.js';
import type { PlanarWeight, ScalePlane } from '../planar/planar-weight.js';
import { bytesOf } from '../raw-tensor.js';
import type { Codec } from './codec.js';
import { listed } from './layer-reader.js';
import { nibbles, packCodes } from './packing.js';
import { floatScales, requireLevels, requireNoOffsets, unfit } from './planes.js';

/** What a blockwise state of bitsandbytes has beside its weight. */
export interface BitsandbytesLayout {
  readonly name: 'bitsandbytes';
  readonly format: BitsandbytesFormat;
  /** The dtype that the weight had before it was quantised. */
  readonly dtype: BitsandbytesDType;
  /** The dtype of the packed bytes; U8 if absent. */
  readonly quantStorage?: QuantStorage;
  /** The shape of the packed bytes, where it is not [bytes, 1]. */
  readonly packedShape?: readonly number[];
}

/** What a layer of LLM.int8 has beside its weight. */
export interface LlmInt8Layout {
  readonly name: 'llm-int8';
  /** Whether the layer has a `weight_format`. */
  readonly weightFormat: boolean;
  /** The shape of weight_format, where it is not []. */
  readonly formatShape?: readonly number[];
}

const kStates = ['nf4', 'fp4', 'int8'].map((name) => `weight.quant_state.bitsandbytes__${name}`);
const kTensors = [
  'weight',
  'weight.absmax',
  'weight.quant_map',
  'weight.nested_absmax',
  'weight.nested_quant_map',
];

function scaleOf(absmax: Float32Array | NestedAbsmax): ScalePlane {
  if (!isNestedAbsmax(absmax)) return { values: { dtype: 'f32', data: absmax } };
  return {
    values: { dtype: 'u8', data: absmax.absmax8bit, table: absmax.absmaxCodebook },
    outer: {
      values: { dtype: 'f32', data: absmax.nestedAbsmax },
      span: absmax.nestedBlocksize,
    },
    offset: absmax.offset,
  };
}

function absmaxOf(op: string, { scale }: PlanarWeight): Float32Array | NestedAbsmax {
  const { values, outer, offset } = scale;
  if (values.dtype === 'f32' && outer === undefined && offset === undefined) return values.data;
  if (values.dtype !== 'u8' || outer?.values.dtype !== 'f32' || offset === undefined) {
    return unfit(op, 'scale', 'f32, or bytes with f32 factors and an offset', 'other scales');
  }
  return {
    absmax8bit: values.data,
    absmaxCodebook: values.table,
    nestedAbsmax: outer.values.data,
    offset,
    nestedBlocksize: outer.span,
  };
}

export const bitsandbytesCodec: Codec<BitsandbytesLayout> = {
  name: 'bitsandbytes',
  keys: kStates,
  suffixes: [...kTensors, ...kStates],
  others: [],
  matches: (layer) => kStates.some((key) => Object.hasOwn(layer, key)),
  announcedBy: ({ quant_method }) => quant_method === 'bitsandbytes',
  read(layer) {
    const state = layer.others([...kTensors, ...kStates]);
    const { format, blocksize, dtype, shape, codes, absmax, codebook, quantStorage } =
      parseBitsandbytes(state);
    const [N, K, ...more] = shape;
    if (N === undefined || K === undefined || more.length > 0 || N * K === 0) {
      return layer.refuse('ERR_SHAPE', 'shape of the state', 'of [N, K]', listed(shape));
    }
    const quantType = layer.text('bnb_4bit_quant_type');
    if (quantType !== undefined && format !== 'int8' && quantType !== format) {
      const expected = `${format}, as the name of the state says`;
      layer.refuse('ERR_FORMAT', 'bnb_4bit_quant_type in the config', expected, `"${quantType}"`);
    }
    const bits = format === 'int8' ? 8 : 4;
    const weight: PlanarWeight = {
      rows: N,
      columns: K,
      bits,
      codes: bits === 8 ? codes : readFields(codes, nibbles(1, N * K, 'high')),
      levels: codebook,
      grid: { kind: 'flat', span: blocksize },
      scale: scaleOf(absmax),
    };
    const packed = state.weight?.shape ?? [];
    return {
      weight,
      layout: {
        name: 'bitsandbytes',
        format,
        dtype,
        ...(quantStorage === undefined ? {} : { quantStorage }),
        packedShape: packed,
      },
    };
  },
  write(op, weight, { format, dtype, quantStorage, packedShape }) {
    const { rows, columns, bits, grid, levels } = weight;
    const expected = format === 'int8' ? 8 : 4;
    if (bits !== expected) unfit(op, 'bits', `${expected} in ${format}`, String(bits));
    requireNoOffsets(op, weight);
    const absmax = absmaxOf(op, weight);
    const aligned = grid.kind === 'tiles' && grid.rows === 1 && columns % grid.columns === 0;
    const blocksize = grid.kind === 'flat' ? grid.span : aligned ? grid.columns : undefined;
    if (blocksize === undefined) return unfit(op, 'grid', 'blocks of elements in order', grid.kind);
    const elements = rows * columns;
    const layout = nibbles(1, elements, 'high');
    const bytes = Math.ceil(elements / 2);
    const state = formatBitsandbytes({
      format,
      blocksize,
      dtype,
      shape: [rows, columns],
      codes: bits === 8 ? weight.codes : packCodes(weight.codes, layout, bytes),
      absmax,
      codebook: levels,
      ...(quantStorage === undefined ? {} : { quantStorage }),
    });
    const packed = state.weight;
    if (packed === undefined || packedShape === undefined) return state;
    return { ...state, weight: { ...packed, shape: [...packedShape] } };
  },
};

/** Codes of LLM.int8 are signed: a byte of a planar weight has 128 more. */
const kBias = 128;
const rowLevels = integerLevels(8, kBias).map((code) => code / 127);

const shifted = (codes: Uint8Array): Uint8Array<ArrayBuffer> =>
  Uint8Array.from(codes, (code) => code ^ kBias);

export const llmInt8Codec: Codec<LlmInt8Layout> = {
  name: 'llm-int8',
  keys: ['SCB'],
  suffixes: kRowInt8Keys,
  others: [],
  matches: ({ SCB }) => SCB !== undefined,
  announcedBy: ({ quant_method }) => quant_method === 'bitsandbytes',
  read(layer) {
    const { size } = layer.matrix('weight', ['I8']);
    layer.tensor('SCB', ['F32']);
    const state = layer.others(kRowInt8Keys);
    const { rows } = parseRowInt8(state);
    const weight: PlanarWeight = {
      rows: size[0],
      columns: size[1],
      bits: 8,
      codes: shifted(bytesOf(rows.codes)),
      levels: rowLevels,
      grid: { kind: 'tiles', rows: 1, columns: size[1] },
      scale: { values: { dtype: 'f32', data: rows.absmax } },
    };
    const { shape: formatShape = [] } = state.weight_format ?? {};
    const weightFormat = Object.hasOwn(state, 'weight_format');
    return { weight, layout: { name: 'llm-int8', weightFormat, formatShape } };
  },
  write(op, weight, { weightFormat, formatShape = [] }) {
    const { rows, columns, bits, grid, levels } = weight;
    if (bits !== 8 || !sameLevels(levels, rowLevels)) {
      requireLevels(op, weight, rowLevels, 'those of LLM.int8');
    }
    requireNoOffsets(op, weight);
    if (grid.kind !== 'tiles' || grid.rows !== 1 || grid.columns < columns) {
      unfit(op, 'grid', 'a scale a row', grid.kind);
    }
    const scale = floatScales(op, weight);
    if (scale.dtype !== 'f32') return unfit(op, 'scale', 'f32 in LLM.int8', scale.dtype);
    const codes = new Int8Array(shifted(weight.codes).buffer);
    const { weight_format, ...state } = formatRowInt8({ codes, absmax: scale.data }, [
      rows,
      columns,
    ]);
    if (!weightFormat || weight_format === undefined) return state;
    return { ...state, weight_format: { ...weight_format, shape: [...formatShape] } };
  },
};
