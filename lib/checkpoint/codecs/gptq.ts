/**
 * GPTQ, `w = scale · (code - zero)` for the group of a column:
 *
 *   qweight  I32 [K · bits / 32, N], the codes of a row of w run down along K from the low bits of a word; with 3 bits
 *            some lie in two words
 *   qzeros   I32 [groups, N · bits / 32], along N; version 1 stores each zero-point less one
 *   scales   F16 [groups, N]
 *   g_idx    I32 [K], the group of each column; in order unless the file is of act-order
 *
 * Version 1 of GPTQModel subtracts and adds the one in whole words, so that a zero-point of 0 borrows from its neighbour.
 * AutoGPTQ, and both with 3 bits, have each field by itself.
 */
import { integerLevels } from '../planar/levels.js';
import type { Grid, PlanarWeight } from '../planar/planar-weight.js';
import type { RawTensor } from '../raw-tensor.js';
import type { Codec } from './codec.js';
import { type LayerReader, listed } from './layer-reader.js';
import { packCodes, readCodes, streams } from './packing.js';
import {
  floatScales,
  integersOf,
  integerZeros,
  kFloats,
  planeValues,
  rawTensor,
  tensorOfPlane,
  transposed,
  transposedValues,
  unfit,
  wordsOf,
} from './planes.js';
import { looksLikeAwq, looksLikeGptq } from './qweight.js';

/** What a layer of GPTQ has beside its weight. */
export interface GptqLayout {
  readonly name: 'gptq';
  /** Of `checkpoint_format`: 1 for gptq, 2 for gptq_v2. */
  readonly version: 1 | 2;
  /** Version 1: whether whole words of zero-points have the one subtracted (GPTQModel), or each field (AutoGPTQ). */
  readonly zeroWords?: boolean;
  /** Whether the layer has a `g_idx`; it has if absent. */
  readonly groupIndex?: boolean;
}

const kBits = [2, 3, 4, 8];

/** Columns side by side share a group: how many; `undefined` if they do not. */
export function groupSpan(group: Int32Array, groups: number): number | undefined {
  const end = group.findIndex((g) => g !== 0);
  const span = end < 0 ? group.length : end;
  const inOrder = span > 0 && group.every((g, k) => g === Math.floor(k / span));
  return inOrder && Math.ceil(group.length / span) === groups ? span : undefined;
}

/** The group of each column of a grid. @throws ERR_FORMAT unless all groups lie within a row */
export function groupIndex(op: string, { columns, grid }: PlanarWeight): Int32Array<ArrayBuffer> {
  if (grid.kind === 'ordered') return Int32Array.from(grid.group);
  if (grid.kind !== 'tiles' || grid.rows !== 1) {
    return unfit(op, 'grid', 'groups of columns in a row', grid.kind);
  }
  return Int32Array.from({ length: columns }, (_, k) => Math.floor(k / grid.columns));
}

/**
 * The grid of groups that a tensor names. @throws ERR_FORMAT if it names one that is not there
 */
export function indexedGrid(
  layer: LayerReader,
  key: string,
  group: Int32Array,
  groups: number,
): Grid {
  const bad = group.findIndex((g) => g < 0 || g >= groups);
  if (bad >= 0) {
    const expected = `groups from 0 to ${groups - 1}, as the scales have`;
    layer.refuse('ERR_FORMAT', key, expected, `${group[bad]} at ${bad}`);
  }
  const span = groupSpan(group, groups);
  return span === undefined
    ? { kind: 'ordered', groups, group }
    : { kind: 'tiles', rows: 1, columns: span };
}

const codeFields = (N: number, K: number, bits: number) =>
  streams({ rows: N, columns: K, bits, rowPitch: 32, wordPitch: 32 * N });

const zeroFields = (groups: number, N: number, bits: number) =>
  streams({ rows: groups, columns: N, bits, rowPitch: N * bits });

/** `by` times the one of every field of a word. */
function addToWords(bytes: Uint8Array<ArrayBuffer>, bits: number, by: 1 | -1): void {
  const words = wordsOf(bytes);
  const ones = (2 ** 32 - 1) / (2 ** bits - 1);
  for (let i = 0; i < words.length; i++) words[i] = (words[i] as number) + by * ones;
}

function addToFields(zeros: Uint8Array, bits: number, by: 1 | -1): void {
  for (let i = 0; i < zeros.length; i++) zeros[i] = ((zeros[i] as number) + by) & (2 ** bits - 1);
}

/** Zero-points [groups, N]. */
function readZeros(
  qzeros: RawTensor,
  [groups, N, bits]: readonly [number, number, number],
  { version, zeroWords }: GptqLayout,
): Uint8Array<ArrayBuffer> {
  const words = integersOf(qzeros);
  if (version === 1 && zeroWords === true) {
    addToWords(new Uint8Array(words.buffer as ArrayBuffer), bits, 1);
  }
  const zeros = readCodes({ ...qzeros, data: words }, zeroFields(groups, N, bits));
  if (version === 1 && zeroWords !== true) addToFields(zeros, bits, 1);
  return zeros;
}

/** Bits of a code by the tensors, which the config must confirm. */
function bitsOf(layer: LayerReader, qzeros: RawTensor, words: number, N: number): number {
  const bits = (words * 32) / N;
  const said = layer.integer('bits', 1, 32);
  const why = `qzeros ${listed(qzeros.shape)} and ${N} columns of scales say`;
  if (!kBits.includes(bits)) {
    const expected = `packed 2, 3, 4 or 8 bits a zero-point for ${N} columns of scales`;
    layer.refuse('ERR_SHAPE', 'qzeros', expected, listed(qzeros.shape));
  }
  if (said !== undefined && said !== bits) {
    layer.refuse('ERR_FORMAT', 'bits in the config', `${bits}, as ${why}`, String(said));
  }
  return bits;
}

function versionOf(layer: LayerReader, bits: number): GptqLayout {
  const format = layer.text('checkpoint_format') ?? 'gptq';
  if (format !== 'gptq' && format !== 'gptq_v2') {
    layer.refuse('ERR_FORMAT', 'checkpoint_format in the config', 'gptq or gptq_v2', format);
  }
  if (format === 'gptq_v2') return { name: 'gptq', version: 2 };
  const { meta } = layer.config as { meta?: { quantizer?: unknown } | null };
  const makers = [meta?.quantizer].flat().map(String);
  const byGptqModel = makers.some((maker) => maker.startsWith('gptqmodel'));
  return { name: 'gptq', version: 1, zeroWords: byGptqModel && bits !== 3 };
}

/** Groups side by side of a size that the config and the number of groups say. */
function sizedGrid(layer: LayerReader, K: number, groups: number): Grid {
  const size = layer.groupSize(K) ?? Math.ceil(K / groups);
  if (Math.ceil(K / size) !== groups) {
    const expected = `a size that gives the ${groups} groups of scales for K = ${K}`;
    layer.refuse('ERR_FORMAT', 'group_size in the config', expected, String(size));
  }
  return { kind: 'tiles', rows: 1, columns: Math.min(size, K) };
}

function gridOf(layer: LayerReader, K: number, groups: number): Grid {
  const sized = (): Grid => sizedGrid(layer, K, groups);
  if (!layer.has('g_idx')) {
    if (layer.flag('desc_act') === true) {
      layer.refuse('ERR_FORMAT', 'g_idx', 'a tensor, as desc_act in the config says', 'none');
    }
    return sized();
  }
  const tensor = layer.tensor('g_idx', ['I32']);
  layer.requireShape('g_idx', tensor, [K], `the ${K} rows of w that qweight packs`);
  const grid = indexedGrid(layer, 'g_idx', integersOf(tensor), groups);
  if (grid.kind === 'tiles') {
    const said = layer.groupSize(K);
    if (said !== undefined && Math.min(said, K) !== grid.columns) {
      const expected = `${grid.columns}, as g_idx says`;
      layer.refuse('ERR_FORMAT', 'group_size in the config', expected, String(said));
    }
    return grid;
  }
  if (layer.flag('desc_act') === false) {
    const expected = 'in order, as desc_act: false in the config says';
    layer.refuse('ERR_FORMAT', 'g_idx', expected, 'another order');
  }
  sized();
  return grid;
}

export const gptqCodec: Codec<GptqLayout> = {
  name: 'gptq',
  keys: ['qweight'],
  suffixes: ['qweight', 'qzeros', 'scales', 'g_idx'],
  others: [],
  matches: (layer) =>
    layer.qweight !== undefined &&
    (layer.g_idx !== undefined || looksLikeGptq(layer) || !looksLikeAwq(layer)),
  announcedBy: ({ quant_method }) => quant_method === 'gptq',
  read(layer) {
    const qweight = layer.matrix('qweight', ['I32']);
    const scales = layer.matrix('scales', kFloats);
    const qzeros = layer.matrix('qzeros', ['I32']);
    const [[words, N], [groups, columns]] = [qweight.size, scales.size];
    if (columns !== N) {
      const expected = `of shape [groups, ${N}] for qweight ${listed(qweight.shape)}`;
      layer.refuse('ERR_SHAPE', 'scales', expected, listed(scales.shape));
    }
    const bits = bitsOf(layer, qzeros, qzeros.size[1], N);
    const why = `scales ${listed(scales.shape)}`;
    layer.requireShape('qzeros', qzeros, [groups, qzeros.size[1]], why);
    const K = (words * 32) / bits;
    if (!Number.isInteger(K) || (K * bits) % 32 !== 0) {
      const expected = `of whole words of ${bits} bits a code`;
      layer.refuse('ERR_SHAPE', 'qweight', expected, listed(qweight.shape));
    }
    const grid = gridOf(layer, K, groups);
    const layout = versionOf(layer, bits);
    const zeros = readZeros(qzeros, [groups, N, bits], layout);
    const weight: PlanarWeight = {
      rows: N,
      columns: K,
      bits,
      codes: readCodes(qweight, codeFields(N, K, bits)),
      levels: integerLevels(bits),
      grid,
      scale: { values: transposedValues(planeValues(scales), groups, N) },
      zero: { dtype: 'u8', data: transposed(zeros, groups, N) },
    };
    return { weight, layout: { ...layout, groupIndex: layer.has('g_idx') } };
  },
  write(op, weight, layout) {
    const { rows: N, columns: K, bits, codes } = weight;
    if (!kBits.includes(bits)) unfit(op, 'bits', '2, 3, 4 or 8 in GPTQ', String(bits));
    if ((K * bits) % 32 !== 0) unfit(op, 'columns', 'whole words of 32 bits', String(K));
    if ((N * bits) % 32 !== 0) unfit(op, 'rows', 'whole words of 32 bits', String(N));
    const index = groupIndex(op, weight);
    const { grid } = weight;
    const groups = grid.kind === 'ordered' ? grid.groups : (index[K - 1] as number) + 1;
    if (layout.groupIndex === false && grid.kind === 'ordered') {
      unfit(op, 'grid', 'groups in order without a g_idx', 'another order');
    }
    const scales = transposedValues(floatScales(op, weight), N, groups);
    const zeros = transposed(integerZeros(op, weight, N * groups), N, groups);
    const words = layout.zeroWords === true;
    if (layout.version === 1 && !words) addToFields(zeros, bits, -1);
    const packed = packCodes(zeros, zeroFields(groups, N, bits), (groups * N * bits) / 8);
    if (layout.version === 1 && words) addToWords(packed, bits, -1);
    const qweight = packCodes(codes, codeFields(N, K, bits), (N * K * bits) / 8);
    return {
      qweight: rawTensor('I32', [(K * bits) / 32, N], wordsOf(qweight)),
      qzeros: rawTensor('I32', [groups, (N * bits) / 32], wordsOf(packed)),
      scales: tensorOfPlane(scales, [groups, N]),
      ...(layout.groupIndex === false ? {} : { g_idx: rawTensor('I32', [K], index) }),
    };
  },
};
