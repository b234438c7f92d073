/**
 * Integers of compressed-tensors, `w = scale · (code - zero)`.
 *
 *   pack-quantized  weight_packed I32 [N, ceil(K · bits / 32)] of code + 2^(bits - 1) along K, without gaps; weight_shape I64
 *                   [2]; weight_zero_point I32 [ceil(N · bits / 32), groups], packed along N; weight_g_idx I32 [K]
 *   int-quantized   weight I8 [N, K]; weight_zero_point I8 [N, groups]
 *
 * Both have weight_scale [N, groups], [N, 1] for rows, or [1] for the tensor, in the dtype of the model.
 */
import type { Fields } from '../../core/bit-fields.js';
import { integerLevels } from '../planar/levels.js';
import { entriesOf, type Grid, type PlanarWeight } from '../planar/planar-weight.js';
import { bytesOf, type RawTensor } from '../raw-tensor.js';
import type { Codec } from './codec.js';
import { announcesFormat } from './config.js';
import { groupIndex, indexedGrid } from './gptq.js';
import { copied as copiedTensor, type LayerReader, listed } from './layer-reader.js';
import { packCodes, readCodes, streams } from './packing.js';
import {
  floatScales,
  integersOf,
  integerZeros,
  kFloats,
  planeValues,
  rawTensor,
  requireNoOffsets,
  tensorOfPlane,
  transposed,
  unfit,
  wordsOf,
} from './planes.js';
import { scaleGrid, writtenShape } from './scale-grid.js';

interface Shared {
  /** Whether zero-points are stored; they are 2^(bits - 1) otherwise. */
  readonly zeros: boolean;
  /** The shape of weight_scale, where it is not [N, groups]. */
  readonly scaleShape?: readonly number[];
  /** Tensors of activations. */
  readonly others?: Readonly<Record<string, RawTensor>>;
}

/** What a pack-quantized layer has beside its weight. */
export interface PackedIntegersLayout extends Shared {
  readonly name: 'pack-quantized';
  /** Whether the layer has a weight_g_idx; it must where groups are not in order. */
  readonly groupIndex?: boolean;
  /** A weight_g_idx that says nothing, because entries of it are -1: as it is. */
  readonly unsetIndex?: RawTensor;
}

/** What an int-quantized layer has beside its weight. */
export interface IntegersLayout extends Shared {
  readonly name: 'int-quantized';
}

const kActivations = [
  'input_scale',
  'input_zero_point',
  'output_scale',
  'output_zero_point',
  'input_global_scale',
];

const wordsFor = (count: number, bits: number): number => Math.ceil((count * bits) / 32);

const codeFields = (N: number, K: number, bits: number): Fields =>
  streams({ rows: N, columns: K, bits, rowPitch: 32 * wordsFor(K, bits) });

/** Zero-points [groups, N]; each group is a column of words. */
const zeroFields = (groups: number, N: number, bits: number): Fields =>
  streams({ rows: groups, columns: N, bits, rowPitch: 32, wordPitch: 32 * groups });

const byteFields = (rows: number, columns: number): Fields =>
  streams({ rows, columns, bits: 8, rowPitch: 8 * columns, flip: 128 });

/** N and K by weight_shape, confirmed by the words of weight_packed. */
function sizeOf(layer: LayerReader, packed: RawTensor, N: number): number {
  const tensor = layer.tensor('weight_shape', ['I64', 'I32']);
  layer.requireShape('weight_shape', tensor, [2], 'a matrix');
  const bytes = bytesOf(tensor.data).slice();
  const [rows, K] =
    tensor.dtype === 'I64'
      ? Array.from(new BigInt64Array(bytes.buffer), Number)
      : [...new Int32Array(bytes.buffer)];
  if (rows !== N || K === undefined || !Number.isSafeInteger(K) || K < 1) {
    const expected = `[${N}, K] for weight_packed ${listed(packed.shape)}`;
    return layer.refuse('ERR_SHAPE', 'weight_shape', expected, `[${rows}, ${K}]`);
  }
  return K;
}

/** Bits of a code by the words of a row, which the config must confirm. */
function bitsOf(layer: LayerReader, packed: RawTensor, words: number, K: number): number {
  const fitting = [1, 2, 3, 4, 5, 6, 7, 8].filter((bits) => wordsFor(K, bits) === words);
  const said = layer.integer('num_bits', 1, 64);
  const why = `weight_packed ${listed(packed.shape)} for K = ${K}`;
  if (fitting.length === 0) {
    const expected = `of 1 to 8 bits a code for K = ${K} of weight_shape`;
    layer.refuse('ERR_SHAPE', 'weight_packed', expected, listed(packed.shape));
  }
  if (said !== undefined) {
    if (fitting.includes(said)) return said;
    const expected = `${fitting.join(' or ')}, as ${why} says`;
    layer.refuse('ERR_FORMAT', 'num_bits in the config', expected, String(said));
  }
  const [bits, ...more] = fitting;
  if (bits === undefined || more.length > 0) {
    const expected = `given: ${why} may have ${fitting.join(' or ')} bits`;
    return layer.refuse('ERR_FORMAT', 'num_bits in the config', expected, 'none');
  }
  return bits;
}

/** Refuses set bits after the last code of a row or column. */
function requirePadding(
  layer: LayerReader,
  key: string,
  tensor: RawTensor,
  codes: Uint8Array,
  layout: Fields,
): void {
  const again = packCodes(codes, layout, tensor.data.byteLength);
  const bytes = bytesOf(tensor.data);
  const bad = again.findIndex((byte, i) => byte !== bytes[i]);
  if (bad >= 0) {
    const expected = '0 in the bits after the last code, as padding is';
    layer.refuse('ERR_FORMAT', key, expected, `byte ${bytes[bad]} at ${bad}`);
  }
}

function codesOf(
  layer: LayerReader,
  key: string,
  tensor: RawTensor,
  layout: Fields,
  bits: number,
): Uint8Array {
  const codes = readCodes(tensor, layout);
  if (codes.length * bits < tensor.data.byteLength * 8) {
    requirePadding(layer, key, tensor, codes, layout);
  }
  return codes;
}

/** The tensor of the columns' groups, if there is one. */
function indexOf(layer: LayerReader, K: number): RawTensor | undefined {
  if (!layer.has('weight_g_idx')) return undefined;
  const tensor = layer.tensor('weight_g_idx', ['I32']);
  layer.requireShape('weight_g_idx', tensor, [K], `K = ${K} of weight_shape`);
  return tensor;
}

/** compressed-tensors starts a weight_g_idx with -1. While one is left, columns are in order. */
function isUnset(layer: LayerReader, tensor: RawTensor, scales: RawTensor): boolean {
  const group = integersOf(tensor);
  if (!group.includes(-1)) return false;
  const groups = scales.shape[1] ?? 0;
  const bad = group.findIndex((g) => g < -1 || g >= groups);
  if (bad >= 0) {
    const expected = `groups from 0 to ${groups - 1}, as the scales have, or -1 for none`;
    layer.refuse('ERR_FORMAT', 'weight_g_idx', expected, `${group[bad]} at ${bad}`);
  }
  return true;
}

function gridOf(
  layer: LayerReader,
  scales: RawTensor,
  size: readonly [number, number],
): { grid: Grid; groups: number } {
  const [, K] = size;
  const strategy = layer.text('strategy');
  const group = layer.groupSize(K);
  const tensor = indexOf(layer, K);
  if (tensor !== undefined && !isUnset(layer, tensor, scales)) {
    const groups = scales.shape[1] ?? 0;
    const expected = [size[0], group === undefined ? groups : Math.ceil(K / group)];
    const why = `${listed(size)}${group === undefined ? '' : ` in groups of ${group}`}`;
    layer.requireShape('weight_scale', scales, expected, why);
    return { grid: indexedGrid(layer, 'weight_g_idx', integersOf(tensor), groups), groups };
  }
  const actorder = layer.text('actorder');
  if (actorder === 'group' && tensor === undefined) {
    layer.refuse(
      'ERR_FORMAT',
      'weight_g_idx',
      'a tensor, as actorder: group in the config says',
      'none',
    );
  }
  const grid = scaleGrid(layer, 'weight_scale', scales, size, { strategy, group });
  return { grid, groups: Math.ceil(K / grid.columns) };
}

/** Zero-points on the grid, plus 2^(bits - 1) as the codes have it; `undefined` where there are none. */
function zerosOf(
  layer: LayerReader,
  scales: RawTensor,
  [rows, groups, bits]: readonly [number, number, number],
  dtype: 'I32' | 'I8',
): Uint8Array | undefined {
  const key = 'weight_zero_point';
  if (!layer.has(key)) {
    if (layer.flag('symmetric') === false) {
      layer.refuse('ERR_FORMAT', key, 'a tensor, as symmetric: false in the config says', 'none');
    }
    return undefined;
  }
  const tensor = layer.tensor(key, [dtype]);
  const why = `weight_scale ${listed(scales.shape)}`;
  if (dtype === 'I8') {
    layer.requireShape(key, tensor, scales.shape, why);
    return readCodes(tensor, byteFields(rows, groups));
  }
  layer.requireShape(key, tensor, [wordsFor(rows, bits), groups], `${why}, ${bits} bits`);
  const layout = zeroFields(groups, rows, bits);
  return transposed(codesOf(layer, key, tensor, layout, bits), groups, rows);
}

function planar(
  [rows, columns, bits]: readonly [number, number, number],
  codes: Uint8Array,
  grid: Grid,
  scales: RawTensor,
  zeros: Uint8Array | undefined,
): PlanarWeight {
  return {
    rows,
    columns,
    bits,
    codes,
    levels: integerLevels(bits, zeros === undefined ? 2 ** (bits - 1) : 0),
    grid,
    scale: { values: planeValues(scales) },
    ...(zeros === undefined ? {} : { zero: { dtype: 'u8', data: zeros } }),
  };
}

/** Rows and columns of the grid's planes. */
function planeSize(weight: PlanarWeight): [number, number] {
  const { grid, rows, columns } = weight;
  if (grid.kind === 'ordered') return [rows, grid.groups];
  if (grid.kind !== 'tiles') return [1, entriesOf(weight)];
  return [Math.ceil(rows / grid.rows), Math.ceil(columns / grid.columns)];
}

/** The zero-points of the file: none where each is the middle of the range and the layout has none. */
function storedZeros(op: string, weight: PlanarWeight, stored: boolean): Uint8Array | undefined {
  const zeros = integerZeros(op, weight, entriesOf(weight));
  const half = 2 ** (weight.bits - 1);
  if (stored) return zeros;
  const other = zeros.find((zero) => zero !== half);
  if (other !== undefined) unfit(op, 'zero', `${half} without zero-points`, String(other));
  return undefined;
}

function scalesOf(op: string, weight: PlanarWeight, own: readonly number[] | undefined): RawTensor {
  const { grid } = weight;
  if (grid.kind !== 'tiles' && grid.kind !== 'ordered') {
    return unfit(op, 'grid', 'groups in rows', grid.kind);
  }
  const shape = grid.kind === 'tiles' ? writtenShape(weight, own) : planeSize(weight);
  return tensorOfPlane(floatScales(op, weight), shape);
}

/** [N, groups] unless the file has another shape. */
const keptShape = (scales: RawTensor, size: readonly [number, number]) =>
  listed(scales.shape) === listed(size) ? {} : { scaleShape: [...scales.shape] };

export const packedIntegersCodec: Codec<PackedIntegersLayout> = {
  name: 'pack-quantized',
  keys: ['weight_packed'],
  suffixes: [
    'weight_packed',
    'weight_scale',
    'weight_shape',
    'weight_zero_point',
    'weight_g_idx',
    ...kActivations,
  ],
  others: kActivations,
  matches: ({ weight_packed }) => weight_packed?.dtype === 'I32',
  announcedBy: announcesFormat('pack-quantized'),
  read(layer) {
    const packed = layer.matrix('weight_packed', ['I32']);
    const [N, words] = packed.size;
    const K = sizeOf(layer, packed, N);
    const bits = bitsOf(layer, packed, words, K);
    const scales = layer.tensor('weight_scale', kFloats);
    const { grid, groups } = gridOf(layer, scales, [N, K]);
    const index = indexOf(layer, K);
    const unset = index !== undefined && isUnset(layer, index, scales);
    const rows = grid.kind === 'tiles' ? Math.ceil(N / grid.rows) : N;
    const zeros = zerosOf(layer, scales, [rows, groups, bits], 'I32');
    const codes = codesOf(layer, 'weight_packed', packed, codeFields(N, K, bits), bits);
    return {
      weight: planar([N, K, bits], codes, grid, scales, zeros),
      layout: {
        name: 'pack-quantized',
        zeros: zeros !== undefined,
        groupIndex: index !== undefined && !unset,
        ...(unset ? { unsetIndex: copiedTensor(index) } : {}),
        ...keptShape(scales, [rows, groups]),
        others: layer.others(kActivations),
      },
    };
  },
  write(op, weight, { zeros: stored, groupIndex: indexed, unsetIndex, scaleShape, others }) {
    const { rows: N, columns: K, bits, grid } = weight;
    const zeros = storedZeros(op, weight, stored);
    const weight_scale = scalesOf(op, weight, scaleShape);
    if (grid.kind === 'ordered' && indexed === false) {
      unfit(op, 'grid', 'groups in order without a weight_g_idx', 'another order');
    }
    const [rows, groups] = planeSize(weight);
    const words = wordsFor(K, bits);
    const packed = packCodes(weight.codes, codeFields(N, K, bits), 4 * N * words);
    const zeroWords = wordsFor(rows, bits);
    const size = 4 * zeroWords * groups;
    return {
      weight_packed: rawTensor('I32', [N, words], wordsOf(packed)),
      weight_scale,
      weight_shape: rawTensor('I64', [2], BigInt64Array.of(BigInt(N), BigInt(K))),
      ...(zeros === undefined
        ? {}
        : {
            weight_zero_point: rawTensor(
              'I32',
              [zeroWords, groups],
              wordsOf(
                packCodes(transposed(zeros, rows, groups), zeroFields(groups, rows, bits), size),
              ),
            ),
          }),
      ...(indexed === true || grid.kind === 'ordered'
        ? { weight_g_idx: rawTensor('I32', [K], groupIndex(op, weight)) }
        : unsetIndex === undefined
          ? {}
          : { weight_g_idx: copiedTensor(unsetIndex) }),
      ...others,
    };
  },
};

export const integersCodec: Codec<IntegersLayout> = {
  name: 'int-quantized',
  keys: ['weight_scale'],
  suffixes: ['weight', 'weight_scale', 'weight_zero_point', ...kActivations],
  others: kActivations,
  matches: ({ weight, weight_scale }) => weight?.dtype === 'I8' && weight_scale !== undefined,
  announcedBy: announcesFormat('int-quantized', 'naive-quantized'),
  read(layer) {
    const codes = layer.matrix('weight', ['I8']);
    const [N, K] = codes.size;
    const said = layer.integer('num_bits', 1, 64);
    if (said !== undefined && said > 8) {
      layer.refuse('ERR_FORMAT', 'num_bits in the config', '1 to 8 for weight I8', String(said));
    }
    const scales = layer.tensor('weight_scale', kFloats);
    const { grid, groups } = gridOf(layer, scales, [N, K]);
    const rows = grid.kind === 'tiles' ? Math.ceil(N / grid.rows) : N;
    const zeros = zerosOf(layer, scales, [rows, groups, 8], 'I8');
    return {
      weight: planar([N, K, 8], readCodes(codes, byteFields(N, K)), grid, scales, zeros),
      layout: {
        name: 'int-quantized',
        zeros: zeros !== undefined,
        ...keptShape(scales, [rows, groups]),
        others: layer.others(kActivations),
      },
    };
  },
  write(op, weight, { zeros: stored, scaleShape, others }) {
    const { rows: N, columns: K, bits, codes, grid } = weight;
    if (bits !== 8) unfit(op, 'bits', '8 in int-quantized layers', String(bits));
    if (grid.kind === 'ordered') unfit(op, 'grid', 'groups in order', 'another order');
    if (!stored) requireNoOffsets(op, weight);
    const zeros = storedZeros(op, weight, stored);
    const weight_scale = scalesOf(op, weight, scaleShape);
    const bytes = (data: Uint8Array, rows: number, columns: number): Int8Array =>
      new Int8Array(packCodes(data, byteFields(rows, columns), rows * columns).buffer);
    return {
      weight: rawTensor('I8', [N, K], bytes(codes, N, K)),
      weight_scale,
      ...(zeros === undefined
        ? {}
        : {
            weight_zero_point: rawTensor('I8', weight_scale.shape, bytes(zeros, 1, zeros.length)),
          }),
      ...others,
    };
  },
};
