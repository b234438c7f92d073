/**
 * MXFP4: e2m1 in groups of 32 that share a power of two, `w = e2m1(c) · 2^(E - 127)`. E = 255 is NaN.
 *
 * gpt-oss has `NAME_blocks` U8 [E, N, K / 32, 16] and `NAME_scales` U8 [E, N, K / 32], the first code of a byte in the low
 * nibble. The experts of a layer are one weight [E · N, K], because they are one tensor: rows n of expert e are rows
 * e · N + n, and products of experts take row ranges.
 *
 * compressed-tensors (mxfp4-pack-quantized) has `weight_packed` U8 [N, K / 2] and `weight_scale` U8 [N, K / 32].
 */
import { e2m1Levels, e8m0Table } from '../planar/levels.js';
import type { PlanarWeight } from '../planar/planar-weight.js';
import { bytesOf, type RawDType, type RawTensor } from '../raw-tensor.js';
import type { Codec } from './codec.js';
import { announcesFormat } from './config.js';
import { listed } from './layer-reader.js';
import { nibbles, packCodes, readCodes } from './packing.js';
import { kE8m0, powerScales, rawTensor, requireLevels, requireNoOffsets, unfit } from './planes.js';

const kGroup = 32;

/** The layout of gpt-oss. */
export interface GptOssLayout {
  readonly name: 'mxfp4';
  /** Weights that are stacked, of which each has as many rows. */
  readonly experts: number;
}

/** The layout of compressed-tensors' mxfp4-pack-quantized. */
export interface PackedMxfp4Layout {
  readonly name: 'mxfp4-pack-quantized';
  /** How the bytes of scales are named; U8 if absent. */
  readonly scaleDType?: RawDType;
}

function planar(rows: number, columns: number, blocks: RawTensor, scales: RawTensor): PlanarWeight {
  return {
    rows,
    columns,
    bits: 4,
    codes: readCodes(blocks, nibbles(rows, columns, 'low')),
    levels: e2m1Levels,
    grid: { kind: 'tiles', rows: 1, columns: kGroup },
    scale: { values: { dtype: 'u8', data: bytesOf(scales.data).slice(), table: e8m0Table } },
  };
}

/** Packed codes, and scales. @throws ERR_FORMAT */
function parts(op: string, weight: PlanarWeight) {
  const { rows, columns, grid } = weight;
  requireLevels(op, weight, e2m1Levels, 'those of e2m1');
  requireNoOffsets(op, weight);
  const aligned = grid.kind === 'tiles' && grid.rows === 1 && grid.columns === kGroup;
  if (!aligned || columns % kGroup !== 0) {
    unfit(op, 'grid', `rows of whole groups of ${kGroup}`, `${grid.kind} of K = ${columns}`);
  }
  const codes = packCodes(weight.codes, nibbles(rows, columns, 'low'), (rows * columns) / 2);
  return { codes, scales: powerScales(op, weight).slice(), groups: columns / kGroup };
}

export const gptOssCodec: Codec<GptOssLayout> = {
  name: 'mxfp4',
  keys: ['_blocks'],
  suffixes: ['_blocks', '_scales'],
  others: [],
  matches: (layer) => Object.hasOwn(layer, '_blocks'),
  announcedBy: ({ quant_method }) => quant_method === 'mxfp4',
  read(layer) {
    const blocks = layer.tensor('_blocks', ['U8']);
    const scales = layer.tensor('_scales', ['U8']);
    const [experts, rows, groups, bytes, ...more] = blocks.shape;
    if (bytes !== kGroup / 2 || more.length > 0) {
      const expected = 'of shape [experts, N, K / 32, 16]';
      return layer.refuse('ERR_SHAPE', '_blocks', expected, listed(blocks.shape));
    }
    const [E, N, G] = [experts as number, rows as number, groups as number];
    layer.requireShape('_scales', scales, [E, N, G], `_blocks ${listed(blocks.shape)}`);
    return {
      weight: planar(E * N, G * kGroup, blocks, scales),
      layout: { name: 'mxfp4', experts: E },
    };
  },
  write(op, weight, { experts }) {
    const { codes, scales, groups } = parts(op, weight);
    const N = weight.rows / experts;
    if (!Number.isInteger(N)) {
      unfit(op, 'rows', `a multiple of ${experts} experts`, String(weight.rows));
    }
    return {
      _blocks: rawTensor('U8', [experts, N, groups, kGroup / 2], codes),
      _scales: rawTensor('U8', [experts, N, groups], scales),
    };
  },
};

export const packedMxfp4Codec: Codec<PackedMxfp4Layout> = {
  name: 'mxfp4-pack-quantized',
  keys: ['weight_packed'],
  suffixes: ['weight_packed', 'weight_scale'],
  others: [],
  matches: ({ weight_packed, weight_scale, ...more }) =>
    weight_packed?.dtype === 'U8' &&
    weight_scale !== undefined &&
    kE8m0.includes(weight_scale.dtype) &&
    !Object.hasOwn(more, 'weight_global_scale'),
  announcedBy: announcesFormat('mxfp4-pack-quantized'),
  read(layer) {
    const packed = layer.matrix('weight_packed', ['U8']);
    const [N, bytes] = packed.size;
    const K = 2 * bytes;
    const group = layer.groupSize(K);
    if (group !== undefined && group !== kGroup) {
      layer.refuse('ERR_FORMAT', 'group_size in the config', '32 for MXFP4', String(group));
    }
    if (K % kGroup !== 0) {
      layer.refuse(
        'ERR_SHAPE',
        'weight_packed',
        'of rows of 16 bytes a group',
        listed(packed.shape),
      );
    }
    const scales = layer.tensor('weight_scale', kE8m0);
    const why = `weight_packed ${listed(packed.shape)}`;
    layer.requireShape('weight_scale', scales, [N, K / kGroup], why);
    return {
      weight: planar(N, K, packed, scales),
      layout: { name: 'mxfp4-pack-quantized', scaleDType: scales.dtype },
    };
  },
  write(op, weight, { scaleDType = 'U8' }) {
    const { codes, scales, groups } = parts(op, weight);
    const { rows, columns } = weight;
    return {
      weight_packed: rawTensor('U8', [rows, columns / 2], codes),
      weight_scale: rawTensor(scaleDType, [rows, groups], scales),
    };
  },
};
