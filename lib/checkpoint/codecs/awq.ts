/**
 * AWQ of 4 bits, `w = scale · (code - zero)`.
 *
 *   GEMM  qweight I32 [K, N / 8], qzeros I32 [K / g, N / 8], both along N in the order 0 2 4 6 1 3 5 7 from the low bits;
 *         scales F16 [K / g, N]
 *   GEMV  qweight I32 [N, K / 8] along K; qzeros I32 [N, W] along the groups and scales F16 [N, 8 · W], both padded with
 *         zeros, since W comes in steps that grow as groups get smaller
 */
import type { Fields } from '../../core/bit-fields.js';
import { integerLevels } from '../planar/levels.js';
import type { PlanarWeight, PlaneValues } from '../planar/planar-weight.js';
import type { Codec, PlanarLayer } from './codec.js';
import { type LayerReader, listed } from './layer-reader.js';
import { packCodes, readCodes, streams } from './packing.js';
import {
  floatScales,
  integerZeros,
  kFloats,
  planeValues,
  rawTensor,
  tensorOfPlane,
  transposedValues,
  unfit,
  wordsOf,
} from './planes.js';
import { looksLikeAwq, looksLikeGptq } from './qweight.js';

/** What a layer of AWQ has beside its weight. */
export interface AwqLayout {
  readonly name: 'awq';
  readonly version: 'gemm' | 'gemv';
}

const kBits = 4;
const kPerWord = 32 / kBits;
/** Bit of a word at which row n of eight lies. */
const kPlaces = [0, 16, 4, 20, 8, 24, 12, 28];

const levels = integerLevels(kBits);

/** GEMM: [columns, N / 8] words as codes [N, columns]. */
const gemmFields = (N: number, columns: number): Fields => ({
  rows: N,
  columns,
  fields: [
    {
      base: 0,
      rows: { at: kPlaces, stride: 32 },
      columns: { at: [0], stride: N * kBits },
      bits: kBits,
      shift: 0,
    },
  ],
});

const gemvFields = (N: number, columns: number, words: number): Fields =>
  streams({ rows: N, columns, bits: kBits, rowPitch: 32 * words });

/** Words of a row of GEMV's zero-points. */
function gemvWords(group: number, groups: number): number {
  const step = group >= 128 ? 1 : group === 64 ? 2 : 4;
  return Math.ceil(Math.ceil(groups / kPerWord) / step) * step;
}

function confirm(layer: LayerReader): void {
  const bits = layer.integer('bits', 1, 32);
  if (bits !== undefined && bits !== kBits) {
    layer.refuse('ERR_FORMAT', 'bits in the config', '4, as layers of AWQ are', String(bits));
  }
}

function planar(
  [rows, columns, span]: readonly [number, number, number],
  codes: Uint8Array,
  values: PlaneValues,
  zeros: Uint8Array,
): PlanarWeight {
  return {
    rows,
    columns,
    bits: kBits,
    codes,
    levels,
    grid: { kind: 'tiles', rows: 1, columns: span },
    scale: { values },
    zero: { dtype: 'u8', data: zeros },
  };
}

function readGemm(layer: LayerReader): PlanarLayer<AwqLayout> {
  const qweight = layer.matrix('qweight', ['I32']);
  const scales = layer.matrix('scales', kFloats);
  const qzeros = layer.matrix('qzeros', ['I32']);
  const [K, words] = qweight.size;
  const N = words * kPerWord;
  const [groups] = scales.size;
  const why = `qweight ${listed(qweight.shape)} of version gemm`;
  layer.requireShape('scales', scales, [groups, N], why);
  layer.requireShape('qzeros', qzeros, [groups, words], `scales ${listed(scales.shape)}`);
  if (K % groups !== 0) {
    layer.refuse('ERR_SHAPE', 'scales', `of groups that divide K = ${K}`, `${groups} groups`);
  }
  const span = K / groups;
  const said = layer.groupSize(K);
  if (said !== undefined && said !== span) {
    const expected = `${span}, as scales ${listed(scales.shape)} say for K = ${K}`;
    layer.refuse('ERR_FORMAT', 'group_size in the config', expected, String(said));
  }
  const codes = readCodes(qweight, gemmFields(N, K));
  const zeros = readCodes(qzeros, gemmFields(N, groups));
  const values = transposedValues(planeValues(scales), groups, N);
  const weight = planar([N, K, span], codes, values, zeros);
  return { weight, layout: { name: 'awq', version: 'gemm' } };
}

/** The first `columns` of each row, after which only zeros follow. */
function cropped<T extends Uint8Array | Uint16Array | Float32Array>(
  layer: LayerReader,
  key: string,
  data: T,
  [rows, pitch, columns]: readonly [number, number, number],
): T {
  const bad = data.findIndex((value, i) => i % pitch >= columns && value !== 0);
  if (bad >= 0) {
    const expected = `0 after the ${columns} groups of a row, as padding is`;
    layer.refuse('ERR_FORMAT', key, expected, `${data[bad]} at ${bad}`);
  }
  const result = data.slice(0, rows * columns) as T;
  for (let n = 0; n < rows; n++) {
    result.set(data.subarray(n * pitch, n * pitch + columns), n * columns);
  }
  return result;
}

function croppedValues(
  layer: LayerReader,
  plane: PlaneValues,
  size: readonly [number, number, number],
): PlaneValues {
  if (plane.dtype === 'f32') return { ...plane, data: cropped(layer, 'scales', plane.data, size) };
  if (plane.dtype === 'u8') return plane;
  return { ...plane, data: cropped(layer, 'scales', plane.data, size) };
}

function readGemv(layer: LayerReader): PlanarLayer<AwqLayout> {
  const qweight = layer.matrix('qweight', ['I32']);
  const scales = layer.matrix('scales', kFloats);
  const qzeros = layer.matrix('qzeros', ['I32']);
  const [N, codeWords] = qweight.size;
  const K = codeWords * kPerWord;
  const span = layer.groupSize(K);
  if (span === undefined) {
    const expected = 'a number: scales of version gemv are padded and do not say it';
    return layer.refuse('ERR_FORMAT', 'group_size in the config', expected, 'none');
  }
  if (K % span !== 0) {
    const expected = `a divisor of the ${K} columns of qweight`;
    layer.refuse('ERR_FORMAT', 'group_size in the config', expected, String(span));
  }
  const groups = K / span;
  const words = gemvWords(span, groups);
  const why = `${groups} groups of ${span} in rows of qweight ${listed(qweight.shape)}`;
  layer.requireShape('qzeros', qzeros, [N, words], why);
  layer.requireShape('scales', scales, [N, kPerWord * words], why);
  const padded = kPerWord * words;
  const size = [N, padded, groups] as const;
  const zeros = readCodes(qzeros, gemvFields(N, padded, words));
  const weight = planar(
    [N, K, span],
    readCodes(qweight, gemvFields(N, K, codeWords)),
    croppedValues(layer, planeValues(scales), size),
    cropped(layer, 'qzeros', zeros, size),
  );
  return { weight, layout: { name: 'awq', version: 'gemv' } };
}

function padded<T extends Uint8Array | Uint16Array | Float32Array>(
  data: T,
  columns: number,
  pitch: number,
): T {
  const rows = data.length / columns;
  const View = data.constructor as new (length: number) => T;
  const result = new View(rows * pitch);
  for (let n = 0; n < rows; n++) {
    result.set(data.subarray(n * columns, (n + 1) * columns), n * pitch);
  }
  return result;
}

export const awqCodec: Codec<AwqLayout> = {
  name: 'awq',
  keys: ['qweight'],
  suffixes: ['qweight', 'qzeros', 'scales'],
  others: [],
  matches: (layer) =>
    layer.qweight !== undefined &&
    layer.g_idx === undefined &&
    (looksLikeAwq(layer) || !looksLikeGptq(layer)),
  announcedBy: ({ quant_method }) => quant_method === 'awq',
  read(layer) {
    confirm(layer);
    const version = layer.text('version')?.toLowerCase();
    if (version === undefined || version === 'gemm') return readGemm(layer);
    if (version === 'gemv') return readGemv(layer);
    return layer.refuse('ERR_FORMAT', 'version in the config', 'gemm or gemv', version);
  },
  write(op, weight, { version }) {
    const { rows: N, columns: K, bits, codes, grid } = weight;
    if (bits !== kBits) unfit(op, 'bits', '4 in AWQ', String(bits));
    if (grid.kind !== 'tiles' || grid.rows !== 1 || K % Math.min(grid.columns, K) !== 0) {
      return unfit(op, 'grid', `groups that divide K = ${K}`, grid.kind);
    }
    const span = Math.min(grid.columns, K);
    const groups = K / span;
    const scales = floatScales(op, weight);
    const zeros = integerZeros(op, weight, N * groups);
    if (version === 'gemm') {
      if (N % kPerWord !== 0) unfit(op, 'rows', 'a multiple of 8 in AWQ', String(N));
      const words = N / kPerWord;
      return {
        qweight: rawTensor(
          'I32',
          [K, words],
          wordsOf(packCodes(codes, gemmFields(N, K), 4 * K * words)),
        ),
        qzeros: rawTensor(
          'I32',
          [groups, words],
          wordsOf(packCodes(zeros, gemmFields(N, groups), 4 * groups * words)),
        ),
        scales: tensorOfPlane(transposedValues(scales, N, groups), [groups, N]),
      };
    }
    if (K % kPerWord !== 0) unfit(op, 'columns', 'a multiple of 8 in AWQ', String(K));
    const [codeWords, words] = [K / kPerWord, gemvWords(span, groups)];
    const pitch = kPerWord * words;
    const values: PlaneValues =
      scales.dtype === 'f32'
        ? { ...scales, data: padded(scales.data, groups, pitch) }
        : { ...scales, data: padded(scales.data, groups, pitch) };
    const packed = packCodes(zeros, gemvFields(N, groups, words), 4 * N * words);
    return {
      qweight: rawTensor(
        'I32',
        [N, codeWords],
        wordsOf(packCodes(codes, gemvFields(N, K, codeWords), 4 * N * codeWords)),
      ),
      qzeros: rawTensor('I32', [N, words], wordsOf(packed)),
      scales: tensorOfPlane(values, [N, pitch]),
    };
  },
};
