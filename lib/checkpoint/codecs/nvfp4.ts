/**
 * NVFP4: e2m1 in groups of 16 with a scale in e4m3, and a factor of the tensor that multiplies or divides the scales before
 * they are used. Each of the 256 scales is rounded to f32 once, so the bits of either library come out.
 *
 *   ModelOpt            weight U8 [N, K / 2], weight_scale F8_E4M3 [N, K / 16], weight_scale_2 F32: w = e2m1(c) · (s · g)
 *   compressed-tensors  weight_packed, weight_scale likewise, weight_global_scale F32:              w = e2m1(c) · (s / g)
 *
 * The first code of a byte is in the low nibble.
 */
import { e2m1Levels, e4m3Levels, sameLevels } from '../planar/levels.js';
import type { PlanarWeight } from '../planar/planar-weight.js';
import { bytesOf, type RawTensor } from '../raw-tensor.js';
import type { Codec, PlanarLayer } from './codec.js';
import { announcesFormat, announcesModelopt } from './config.js';
import { type LayerReader, listed } from './layer-reader.js';
import type { LayerTensors } from './layer-tensors.js';
import { nibbles, packCodes, readCodes } from './packing.js';
import { plainScales, rawTensor, requireLevels, requireNoOffsets, unfit } from './planes.js';

const kGroup = 16;

interface Nvfp4Layout<Name extends string> {
  readonly name: Name;
  /** The factor of the tensor, an f32 value: ModelOpt multiplies by it, compressed-tensors divides. */
  readonly factor: number;
  /** The shape of the factor: [] or [1]. */
  readonly factorShape?: readonly number[];
  /** Tensors of activations. */
  readonly others?: Readonly<Record<string, RawTensor>>;
}

/** What a layer of ModelOpt's NVFP4 has beside its weight. */
export type ModeloptNvfp4Layout = Nvfp4Layout<'modelopt-nvfp4'>;
/** What a layer of compressed-tensors' NVFP4 has beside its weight. */
export type PackedNvfp4Layout = Nvfp4Layout<'nvfp4-pack-quantized'>;

interface Convention<Name extends string> {
  readonly name: Name;
  readonly codes: string;
  readonly factor: string;
  readonly combine: (scale: number, factor: number) => number;
  readonly others: readonly string[];
}

/** Every scale with the factor applied, rounded once. */
const tableOf = <Name extends string>({ combine }: Convention<Name>, factor: number) =>
  e4m3Levels.map((scale) => combine(scale, factor));

/** The one number of an F32 tensor. */
function factorOf(layer: LayerReader, key: string): { value: number; shape: readonly number[] } {
  const { shape, data } = layer.tensor(key, ['F32']);
  const values = new Float32Array(bytesOf(data).slice().buffer);
  if (shape.length > 1 || values.length !== 1) {
    layer.refuse('ERR_SHAPE', key, 'of shape [] or [1]', listed(shape));
  }
  const [value = Number.NaN] = values;
  if (!Number.isFinite(value)) layer.refuse('ERR_FORMAT', key, 'a finite number', String(value));
  return { value, shape: [...shape] };
}

function read<Name extends string>(
  layer: LayerReader,
  convention: Convention<Name>,
): PlanarLayer<Nvfp4Layout<Name>> {
  const { name, codes, factor } = convention;
  const packed = layer.matrix(codes, ['U8']);
  const [N, bytes] = packed.size;
  const K = 2 * bytes;
  if (K % kGroup !== 0) {
    layer.refuse('ERR_SHAPE', codes, 'of rows of 8 bytes a group', listed(packed.shape));
  }
  const said = layer.groupSize(K);
  if (said !== undefined && said !== kGroup) {
    layer.refuse('ERR_FORMAT', 'group_size in the config', '16 for NVFP4', String(said));
  }
  const scales = layer.tensor('weight_scale', ['F8_E4M3']);
  layer.requireShape('weight_scale', scales, [N, K / kGroup], `${codes} ${listed(packed.shape)}`);
  const { value, shape } = factorOf(layer, factor);
  const weight: PlanarWeight = {
    rows: N,
    columns: K,
    bits: 4,
    codes: readCodes(packed, nibbles(N, K, 'low')),
    levels: e2m1Levels,
    grid: { kind: 'tiles', rows: 1, columns: kGroup },
    scale: {
      values: {
        dtype: 'u8',
        data: bytesOf(scales.data).slice(),
        table: tableOf(convention, value),
      },
    },
  };
  const others = layer.others(convention.others);
  return { weight, layout: { name, factor: value, factorShape: shape, others } };
}

function write<Name extends string>(
  op: string,
  weight: PlanarWeight,
  layout: Nvfp4Layout<Name>,
  convention: Convention<Name>,
): LayerTensors {
  const { rows: N, columns: K, grid } = weight;
  requireLevels(op, weight, e2m1Levels, 'those of e2m1');
  requireNoOffsets(op, weight);
  const aligned = grid.kind === 'tiles' && grid.rows === 1 && grid.columns === kGroup;
  if (!aligned || K % kGroup !== 0) {
    unfit(op, 'grid', `rows of whole groups of ${kGroup}`, `${grid.kind} of K = ${K}`);
  }
  const { factor, factorShape = [], others } = layout;
  const values = plainScales(op, weight.scale);
  if (values.dtype !== 'u8' || !sameLevels(values.table, tableOf(convention, factor))) {
    return unfit(op, 'scale', `e4m3 with the factor ${factor}`, 'other scales');
  }
  const codes = packCodes(weight.codes, nibbles(N, K, 'low'), (N * K) / 2);
  return {
    [convention.codes]: rawTensor('U8', [N, K / 2], codes),
    weight_scale: rawTensor('F8_E4M3', [N, K / kGroup], values.data.slice()),
    [convention.factor]: rawTensor('F32', factorShape, Float32Array.of(factor)),
    ...others,
  };
}

const kModelopt: Convention<'modelopt-nvfp4'> = {
  name: 'modelopt-nvfp4',
  codes: 'weight',
  factor: 'weight_scale_2',
  combine: (scale, factor) => scale * factor,
  others: ['input_scale'],
};

const kPacked: Convention<'nvfp4-pack-quantized'> = {
  name: 'nvfp4-pack-quantized',
  codes: 'weight_packed',
  factor: 'weight_global_scale',
  combine: (scale, factor) => scale / factor,
  others: ['input_global_scale'],
};

const codecOf = <Name extends string>(
  convention: Convention<Name>,
  rest: Pick<Codec<Nvfp4Layout<Name>>, 'matches' | 'announcedBy'>,
): Codec<Nvfp4Layout<Name>> => ({
  ...rest,
  name: convention.name,
  keys: [convention.factor],
  suffixes: [convention.codes, 'weight_scale', convention.factor, ...convention.others],
  others: convention.others,
  read: (layer) => read(layer, convention),
  write: (op, weight, layout) => write(op, weight, layout, convention),
});

export const modeloptNvfp4Codec = codecOf(kModelopt, {
  matches: ({ weight, weight_scale_2 }) => weight?.dtype === 'U8' && weight_scale_2 !== undefined,
  announcedBy: announcesModelopt(/NVFP4|MIXED/),
});

export const packedNvfp4Codec = codecOf(kPacked, {
  matches: ({ weight_packed, weight_global_scale }) =>
    weight_packed?.dtype === 'U8' && weight_global_scale !== undefined,
  announcedBy: announcesFormat('nvfp4-pack-quantized'),
});
