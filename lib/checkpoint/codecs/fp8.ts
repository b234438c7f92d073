/**
 * FP8, `w = value(code) · scale`:
 *
 *   weight            F8_E4M3 or F8_E5M2 [N, K]
 *   weight_scale_inv  a multiplier, whatever its name says: F32 or BF16 [ceil(N / 128), ceil(K / 128)] (DeepSeek, Qwen), or
 *   weight_scale      of the tensor, of rows [N, 1], of tiles or of groups (compressed-tensors, fbgemm, ModelOpt)
 *
 * Scales may also be powers of two in a byte (e8m0). Tiles at the lower and right edge may be short.
 */
import { e4m3Levels, e5m2Levels, e8m0Table, sameLevels } from '../planar/levels.js';
import type { PlanarWeight, PlaneValues } from '../planar/planar-weight.js';
import { bytesOf, type RawDType, type RawTensor, rawToFloat32 } from '../raw-tensor.js';
import type { Codec } from './codec.js';
import { announcesFormat, announcesModelopt } from './config.js';
import { type LayerReader, listed } from './layer-reader.js';
import {
  kE8m0,
  kFloats,
  plainScales,
  planeValues,
  rawTensor,
  requireNoOffsets,
  tensorOfPlane,
  unfit,
} from './planes.js';
import { type ScaleHints, scaleGrid, writtenShape } from './scale-grid.js';

/** What a layer of FP8 has beside its weight. */
export interface Fp8Layout {
  readonly name: 'fp8';
  readonly scaleName: 'weight_scale_inv' | 'weight_scale';
  /** The shape of the scales, where it is not [tiles of rows, tiles of columns]. */
  readonly scaleShape?: readonly number[];
  /** The dtype of scales that are powers of two in a byte; F8_E8M0 if absent. */
  readonly scaleDType?: RawDType;
  /** Tensors of activations. */
  readonly others?: Readonly<Record<string, RawTensor>>;
}

const kLevels: readonly (readonly [RawDType, Float32Array])[] = [
  ['F8_E4M3', e4m3Levels],
  ['F8_E5M2', e5m2Levels],
];
const kDTypes = kLevels.map(([dtype]) => dtype);
const kActivations = ['input_scale', 'output_scale', 'input_scale_ub', 'activation_scale'];
const kTile = 128;

/** Names of the elements in configs. */
const kNames: Readonly<Record<string, RawDType>> = {
  e4m3: 'F8_E4M3',
  e4m3fn: 'F8_E4M3',
  float8_e4m3fn: 'F8_E4M3',
  e5m2: 'F8_E5M2',
  float8_e5m2: 'F8_E5M2',
};

function confirmElement(layer: LayerReader, dtype: RawDType): void {
  const said = layer.text('fmt');
  if (said === undefined) return;
  const named = Object.hasOwn(kNames, said) ? kNames[said] : undefined;
  if (named !== dtype) {
    const expected = `the ${dtype} of weight`;
    layer.refuse('ERR_FORMAT', 'fmt in the config', expected, `"${said}"`);
  }
}

/** With `scale_fmt: ue8m0` scales are powers of two, also where they are stored as floats. */
function confirmPowers(layer: LayerReader, key: string, scale: RawTensor): void {
  if (layer.text('scale_fmt') !== 'ue8m0' || kE8m0.includes(scale.dtype)) return;
  const values = rawToFloat32(scale);
  const bad = values.findIndex((value) => !(value > 0) || !Number.isInteger(Math.log2(value)));
  if (bad < 0) return;
  const expected = 'powers of two, as scale_fmt ue8m0 in the config says';
  layer.refuse('ERR_FORMAT', key, expected, `${values[bad]} at ${bad}`);
}

/** What decides the grid: the config, or the tiles of 128 that files without one have. */
function hintsOf(layer: LayerReader, scale: RawTensor, [N, K]: readonly [number, number]) {
  const block = layer.pair('weight_block_size') ?? layer.pair('block_structure');
  const strategy = layer.text('strategy');
  const group = layer.text('format') === 'mxfp8-quantized' ? 32 : layer.groupSize(K);
  const hints: ScaleHints = { strategy, group, block };
  if (strategy !== undefined || group !== undefined || block !== undefined) return hints;
  const tiled = [Math.ceil(N / kTile), Math.ceil(K / kTile)];
  const more = tiled.some((count) => count > 1);
  return more && listed(scale.shape) === listed(tiled) && scale.shape[0] !== N
    ? { ...hints, block: [kTile, kTile] as const }
    : hints;
}

export const fp8Codec: Codec<Fp8Layout> = {
  name: 'fp8',
  keys: ['weight_scale_inv', 'weight_scale'],
  suffixes: ['weight', 'weight_scale_inv', 'weight_scale', ...kActivations],
  others: kActivations,
  matches: ({ weight }) => weight !== undefined && kDTypes.includes(weight.dtype),
  announcedBy(config) {
    const compressed = announcesFormat('float-quantized', 'naive-quantized', 'mxfp8-quantized');
    const method = config.quant_method;
    return (
      method === 'fp8' ||
      method === 'fbgemm_fp8' ||
      compressed(config) ||
      announcesModelopt(/FP8|MIXED/)(config)
    );
  },
  read(layer) {
    const codes = layer.matrix('weight', kDTypes);
    confirmElement(layer, codes.dtype);
    const [N, K] = codes.size;
    const scaleName = layer.has('weight_scale_inv') ? 'weight_scale_inv' : 'weight_scale';
    const scale = layer.tensor(scaleName, [...kFloats, ...kE8m0]);
    confirmPowers(layer, scaleName, scale);
    const grid = scaleGrid(layer, scaleName, scale, [N, K], hintsOf(layer, scale, [N, K]));
    const weight: PlanarWeight = {
      rows: N,
      columns: K,
      bits: 8,
      codes: bytesOf(codes.data).slice(),
      levels: codes.dtype === 'F8_E4M3' ? e4m3Levels : e5m2Levels,
      grid,
      scale: { values: planeValues(scale) },
    };
    const scaleDType = kE8m0.includes(scale.dtype) ? { scaleDType: scale.dtype } : {};
    const others = layer.others(kActivations);
    const scaleShape = [...scale.shape];
    return { weight, layout: { name: 'fp8', scaleName, scaleShape, ...scaleDType, others } };
  },
  write(op, weight, { scaleName, scaleShape, scaleDType = 'F8_E8M0', others }) {
    const { rows, columns, grid, levels } = weight;
    requireNoOffsets(op, weight);
    const dtype = kLevels.find(([, known]) => sameLevels(known, levels))?.[0];
    if (dtype === undefined) return unfit(op, 'levels', 'those of e4m3fn or e5m2', 'other levels');
    if (grid.kind !== 'tiles') unfit(op, 'grid', 'tiles', grid.kind);
    const values: PlaneValues = plainScales(op, weight.scale);
    if (values.dtype === 'u8' && !sameLevels(values.table, e8m0Table)) {
      unfit(op, 'scale', 'floats or powers of two', 'bytes of another table');
    }
    return {
      weight: rawTensor(dtype, [rows, columns], weight.codes.slice()),
      [scaleName]: tensorOfPlane(values, writtenShape(weight, scaleShape), scaleDType),
      ...others,
    };
  },
};
