/** Quantises weights to planar formats: the calls. */
import { fail } from '../../core/errors.js';
import type { PlanarLayer } from '../codecs/codec.js';
import { hqqLayoutOf } from '../codecs/hqq.js';
import type { QuantizedLayout } from '../codecs/registry.js';
import type { PlanarWeight } from '../planar/planar-weight.js';
import { checkRawTensor, type RawTensor, rawToFloat32 } from '../raw-tensor.js';
import { bitsOf, isFp8, isMx } from './formats.js';
import { fp8Elements, quantizeFp8 } from './fp8.js';
import { quantizeHqq } from './hqq.js';
import { quantizeIntegers } from './integers.js';
import { type MxScaleRule, mxElements, quantizeMx } from './mx.js';
import { type Nvfp4Rule, quantizeNvfp4 } from './nvfp4.js';
import { type Plan, planOf, type QuantizePlanarOptions } from './options.js';
import { requireFinite } from './requantize.js';
import { type Source, type SourceDType, type Tiles, tiles } from './source.js';

const kDTypes: readonly string[] = ['F32', 'BF16', 'F16'] satisfies readonly SourceDType[];

/** @throws ERR_TYPE, ERR_DTYPE, ERR_SHAPE, ERR_NON_FINITE */
function sourceOf(op: string, w: RawTensor): Source {
  checkRawTensor(op, 'w', w);
  const { dtype, shape } = w;
  if (!kDTypes.includes(dtype)) fail('ERR_DTYPE', op, 'w', 'F32, BF16 or F16', dtype);
  const [rows, columns] = shape;
  if (shape.length !== 2 || !rows || !columns) {
    return fail('ERR_SHAPE', op, 'w', '[N, K] with both at least 1', `[${shape.join(', ')}]`);
  }
  const values = rawToFloat32(w);
  requireFinite(op, 'w', values);
  return { values, rows, columns, dtype: dtype as SourceDType };
}

function requireGroups(op: string, length: number, what: string, size: number): void {
  if (length % size === 0) return;
  fail('ERR_SHAPE', op, 'w', `of ${what} that groups of ${size} divide`, String(length));
}

function tilesOf(op: string, plan: Plan, { rows, columns }: Source): Tiles {
  switch (plan.strategy) {
    case 'tensor':
      return tiles(rows, columns);
    case 'channel':
      return tiles(1, columns);
    case 'block':
      return tiles(...plan.blockSize);
    case 'group':
      requireGroups(op, columns, 'columns', plan.groupSize);
      return tiles(1, plan.groupSize);
  }
}

/** Scales of f16 that came out infinite. */
function requireFiniteScales(op: string, { scale }: PlanarWeight): void {
  const { values } = scale;
  if (values.dtype !== 'f16') return;
  if (values.data.some((bits) => (bits & 0x7c00) === 0x7c00)) {
    fail('ERR_VALUE', op, 'w', 'small enough for scales in f16', 'larger values');
  }
}

function integers(op: string, plan: Plan, source: Source): Made {
  const { layout, symmetric, groupSize } = plan;
  const bits = bitsOf(plan.format);
  if (layout === 'hqq') {
    const { axis, optimize, roundZero } = plan;
    requireGroups(op, source.values.length, 'elements', groupSize);
    const weight = quantizeHqq(source, { bits, size: groupSize, axis, optimize, roundZero });
    return { weight, layout: hqqLayoutOf(op, weight, { groupSize, axis, optimize, roundZero }) };
  }
  const halves = layout === 'gptq' || layout === 'awq';
  const weight = quantizeIntegers(source, {
    bits,
    grid: tilesOf(op, plan, source),
    symmetric,
    zeroPlane: halves,
    ...(halves ? { scaleDType: 'F16' } : {}),
  });
  requireFiniteScales(op, weight);
  switch (layout) {
    case 'gptq':
      // Version 1 has no unambiguous zero-point of 0.
      return { weight, layout: { name: 'gptq', version: symmetric ? 1 : 2 } };
    case 'awq':
      return { weight, layout: { name: 'awq', version: 'gemm' } };
    case 'int-quantized':
    case 'pack-quantized': {
      const scaleShape = plan.strategy === 'tensor' ? { scaleShape: [1] } : {};
      return { weight, layout: { name: layout, zeros: !symmetric, ...scaleShape } };
    }
    default:
      return { weight, layout: undefined };
  }
}

interface Made {
  readonly weight: PlanarWeight;
  readonly layout: QuantizedLayout | undefined;
}

function made(op: string, w: RawTensor, plan: Plan): Made {
  const source = sourceOf(op, w);
  const { format, layout } = plan;
  if (isFp8(format)) {
    const powers = plan.scaleFormat === 'ue8m0';
    const weight = quantizeFp8(source, fp8Elements[format], tilesOf(op, plan, source), powers);
    const scaleName = plan.strategy === 'block' ? 'weight_scale_inv' : 'weight_scale';
    const scaleShape = plan.strategy === 'tensor' ? { scaleShape: [1] } : {};
    return { weight, layout: { name: 'fp8', scaleName, ...scaleShape } };
  }
  if (isMx(format)) {
    requireGroups(op, source.columns, 'columns', plan.groupSize);
    const weight = quantizeMx(source, mxElements[format], plan.scaleRule as MxScaleRule);
    if (layout === undefined) return { weight, layout };
    if (layout === 'mxfp4') return { weight, layout: { name: layout, experts: 1 } };
    if (layout === 'mxfp4-pack-quantized') return { weight, layout: { name: layout } };
    return { weight, layout: { name: 'fp8', scaleName: 'weight_scale', scaleDType: 'U8' } };
  }
  if (format !== 'nvfp4') return integers(op, plan, source);
  requireGroups(op, source.columns, 'columns', plan.groupSize);
  const { scaleRule, tensorScale } = plan;
  const { weight, factor } = quantizeNvfp4(source, scaleRule as Nvfp4Rule, tensorScale);
  const name = layout === 'modelopt-nvfp4' ? layout : 'nvfp4-pack-quantized';
  return { weight, layout: { name, factor, factorShape: name === layout ? [] : [1] } };
}

/**
 * Quantises a weight [N, K] to codes and scales, from the weight alone.
 *
 * - FP8, MX, NVFP4 and integers round to the nearest level and give the bytes of the libraries that write these layouts. They
 *   compute in the dtype of w where these do.
 * - Integers in the layout `hqq` get the zero-points of a half-quadratic search: HQQ of M. Badri and A. Shaji (2023).
 *
 * @param w F32, BF16 or F16 as a checkpoint has it, all finite
 * @returns the weight for {@link QuantizedWeight.fromPlanes} and {@link planarToFloat32}
 * @throws `ERR_TYPE` · LowrankError `ERR_DTYPE`, `ERR_SHAPE` if groups do not divide K · `ERR_FORMAT` for an unknown format, or
 *   a layout that does not hold it · `ERR_VALUE` for options that the format does not have, or scales that f16 does not hold ·
 *   `ERR_NON_FINITE`
 * @example
 * const planes = quantizePlanar({ dtype: 'F32', shape: [4096, 4096], data }, { format: 'mxfp4' });
 * const w = QuantizedWeight.fromPlanes(planes);
 */
export function quantizePlanar(w: RawTensor, options: QuantizePlanarOptions): PlanarWeight {
  const op = 'quantizePlanar';
  return made(op, w, planOf(op, options)).weight;
}

/**
 * Quantises a layer of a checkpoint, as {@link quantizePlanar} does, for {@link writeQuantizedLayer}.
 *
 * @param w F32, BF16 or F16, all finite
 * @param options the format and the layout; MXFP6 has no layout that libraries agree on
 * @returns the weight, and what its layout keeps beside it
 * @throws as {@link quantizePlanar}; `ERR_FORMAT` for MXFP6, and for shapes that the layout cannot hold
 * @example
 * const layer = quantizeLayer(tensors.get('model.layers.0.mlp.up_proj.weight'), { format: 'int4', groupSize: 128 });
 * const parts = writeQuantizedLayer(layer); // weight_packed, weight_scale, weight_shape
 */
export function quantizeLayer(
  w: RawTensor,
  options: QuantizePlanarOptions,
): PlanarLayer<QuantizedLayout> {
  const op = 'quantizeLayer';
  const plan = planOf(op, options);
  const { layout } = plan;
  if (layout === undefined) {
    const expected =
      'one that a layout of checkpoints holds (quantizePlanar makes it for products)';
    return fail('ERR_FORMAT', op, 'format', expected, plan.format);
  }
  const layer = made(op, w, plan);
  return { weight: layer.weight, layout: layer.layout as QuantizedLayout };
}
