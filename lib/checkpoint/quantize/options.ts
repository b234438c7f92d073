/** What a caller asks the quantisers for, checked. */
import { fail, shown, wrongType } from '../../core/errors.js';
import { orDefault, readOptions } from '../../core/validate.js';
import type { LayoutName } from '../codecs/registry.js';
import {
  bitsOf,
  integerBits,
  isFp8,
  isMx,
  layoutsOf,
  type PlanarFormat,
  planarFormats,
} from './formats.js';
import { kMxGroup, type MxScaleRule, mxScaleRules } from './mx.js';
import { kNvfp4Group, type Nvfp4Rule, nvfp4Rules } from './nvfp4.js';

/** Which elements share a scale, as compressed-tensors names it. */
export type ScaleStrategy = 'tensor' | 'channel' | 'group' | 'block';

/** Options of {@link quantizePlanar} and {@link quantizeLayer}. */
export interface QuantizePlanarOptions {
  format: PlanarFormat;
  /**
   * The layout of checkpoints whose numbers come out. It decides the dtype of scales, which zero-points there are, and the
   * quantiser of integers: `hqq` searches, the others round. Default: `fp8`, `mxfp4-pack-quantized`, `nvfp4-pack-quantized` or
   * `pack-quantized`; `hqq` for int1.
   */
  layout?: LayoutName;
  /**
   * Which elements share a scale: all (`tensor`), a row (`channel`), `groupSize` of a row (`group`) or a tile (`block`, FP8
   * alone). Default: `channel` for FP8 and `int-quantized`, `group` for other integers.
   */
  strategy?: ScaleStrategy;
  /** Elements of a group; they divide K. Default: 128 for integers, 64 for `hqq`; always 32 for MX and 16 for NVFP4. */
  groupSize?: number;
  /** FP8 by `block`: rows and columns of a tile, of which those at the edges may be short. Default [128, 128]. */
  blockSize?: readonly [number, number];
  /** FP8: `ue8m0` makes scales powers of two, as DeepSeek V3.1 has them. Default `float`. */
  scaleFormat?: 'float' | 'ue8m0';
  /**
   * Integers: whether codes lie around zero, without zero-points of their own. Default true, false for `awq`. HQQ always has
   * zero-points.
   */
  symmetric?: boolean;
  /**
   * MX: how the power of two follows from the largest magnitude of a group. `floor` is OCP's rule, `rceil` NVIDIA's and that of
   * compressed-tensors, `even` rounds the magnitude first, `modelopt` is ModelOpt's, with ties to the smaller magnitude. Default
   * `rceil`. NVFP4: the library whose bytes come out; default that of the layout.
   */
  scaleRule?: MxScaleRule | Nvfp4Rule;
  /** NVFP4: whether the tensor has a factor beside the scales of its groups. Default true. */
  tensorScale?: boolean;
  /** HQQ: whether groups lie in rows (1), or are columns of the weight reshaped to [groupSize, N · K / groupSize] (0). Default 1. */
  axis?: 0 | 1;
  /** HQQ: whether to search for zero-points. Default true. */
  optimize?: boolean;
  /** HQQ: whether the search begins at an integer. Default false. */
  roundZero?: boolean;
}

/** The options with their defaults. Those of other formats mean nothing. */
export type Plan = Required<Omit<QuantizePlanarOptions, 'layout'>> & {
  readonly layout: LayoutName | undefined;
};

const kKnown = {
  format: true,
  layout: true,
  strategy: true,
  groupSize: true,
  blockSize: true,
  scaleFormat: true,
  symmetric: true,
  scaleRule: true,
  tensorScale: true,
  axis: true,
  optimize: true,
  roundZero: true,
} as const;

/** Options that a format or layout has; `format` and `layout` are for all. */
function ownOptions(format: PlanarFormat, layout: LayoutName | undefined): readonly string[] {
  if (isFp8(format)) return ['strategy', 'groupSize', 'blockSize', 'scaleFormat'];
  if (isMx(format)) return ['groupSize', 'scaleRule'];
  if (format === 'nvfp4') return ['groupSize', 'scaleRule', 'tensorScale'];
  if (layout === 'hqq') return ['groupSize', 'axis', 'optimize', 'roundZero'];
  return ['strategy', 'groupSize', 'symmetric'];
}

function choice<T>(op: string, name: string, value: unknown, known: readonly T[]): T {
  if (!known.includes(value as T)) {
    fail('ERR_VALUE', op, name, `one of ${known.join(', ')}`, shown(value));
  }
  return value as T;
}

function positive(op: string, name: string, value: unknown): number {
  if (!Number.isSafeInteger(value) || (value as number) < 1) {
    fail('ERR_VALUE', op, name, 'a positive integer', shown(value));
  }
  return value as number;
}

function flag(op: string, name: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw wrongType(op, name, 'a boolean', value);
  return value;
}

function strategiesOf(format: PlanarFormat, layout: LayoutName | undefined): ScaleStrategy[] {
  if (isFp8(format)) return ['tensor', 'channel', 'group', 'block'];
  const compressed = layout === 'pack-quantized' || layout === 'int-quantized';
  return compressed ? ['tensor', 'channel', 'group'] : ['channel', 'group'];
}

function defaultStrategy(format: PlanarFormat, given: Partial<QuantizePlanarOptions>) {
  if (given.groupSize !== undefined) return 'group';
  if (given.blockSize !== undefined) return 'block';
  return isFp8(format) || given.layout === 'int-quantized' ? 'channel' : 'group';
}

function blockSizeOf(op: string, value: unknown): readonly [number, number] {
  if (!Array.isArray(value) || value.length !== 2) {
    throw wrongType(op, 'blockSize', 'an array of two integers', value);
  }
  return [positive(op, 'blockSize[0]', value[0]), positive(op, 'blockSize[1]', value[1])];
}

function groupSizeOf(
  op: string,
  value: unknown,
  format: PlanarFormat,
  layout?: LayoutName,
): number {
  const fixed = isMx(format) ? kMxGroup : format === 'nvfp4' ? kNvfp4Group : undefined;
  const size = positive(op, 'groupSize', orDefault(value, fixed ?? (layout === 'hqq' ? 64 : 128)));
  if (fixed !== undefined && size !== fixed) {
    fail('ERR_VALUE', op, 'groupSize', `${fixed} for ${format}`, String(size));
  }
  return size;
}

/** The layout, by name or by default. */
function layoutOf(
  op: string,
  format: PlanarFormat,
  value: unknown,
  scaleRule: unknown,
): LayoutName | undefined {
  const known = layoutsOf[format];
  const multiplies = scaleRule === 'modelopt' || scaleRule === 'torchao';
  if (value === undefined && format === 'nvfp4' && multiplies) return 'modelopt-nvfp4';
  if (value === undefined || known.includes(value as LayoutName)) {
    return (value as LayoutName | undefined) ?? known[0];
  }
  const holds = known.length === 0 ? 'left out' : `one of ${known.join(', ')}`;
  return fail('ERR_FORMAT', op, 'layout', `${holds} for ${format}`, shown(value));
}

/** @throws ERR_TYPE, ERR_FORMAT, ERR_VALUE */
export function planOf(op: string, options: QuantizePlanarOptions): Plan {
  const given = readOptions<QuantizePlanarOptions>(op, options, kKnown);
  const { format } = given;
  if (typeof format !== 'string') throw wrongType(op, 'format', 'a format name', format);
  if (!planarFormats.includes(format)) {
    fail('ERR_FORMAT', op, 'format', `one of ${planarFormats.join(', ')}`, shown(format));
  }
  const layout = layoutOf(op, format, given.layout, given.scaleRule);
  const own = ownOptions(format, layout);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || name === 'format' || name === 'layout' || own.includes(name))
      continue;
    const what = layout === undefined ? format : `${format} in ${layout}`;
    fail('ERR_VALUE', op, name, `left out for ${what}`, shown(value));
  }
  const strategy = orDefault(given.strategy, defaultStrategy(format, given));
  const nvfp4Rule: Nvfp4Rule = layout === 'modelopt-nvfp4' ? 'modelopt' : 'compressed-tensors';
  const plan: Plan = {
    format,
    layout,
    strategy: choice(op, 'strategy', strategy, strategiesOf(format, layout)),
    groupSize: groupSizeOf(op, given.groupSize, format, layout),
    blockSize: blockSizeOf(op, orDefault(given.blockSize, [128, 128])),
    scaleFormat: choice(op, 'scaleFormat', orDefault(given.scaleFormat, 'float'), [
      'float',
      'ue8m0',
    ]),
    symmetric: flag(op, 'symmetric', orDefault(given.symmetric, layout !== 'awq')),
    scaleRule:
      format === 'nvfp4'
        ? choice(op, 'scaleRule', orDefault(given.scaleRule, nvfp4Rule), nvfp4Rules)
        : choice(op, 'scaleRule', orDefault(given.scaleRule, 'rceil'), mxScaleRules),
    tensorScale: flag(op, 'tensorScale', orDefault(given.tensorScale, true)),
    axis: choice(op, 'axis', orDefault(given.axis, 1), [0, 1] as const),
    optimize: flag(op, 'optimize', orDefault(given.optimize, true)),
    roundZero: flag(op, 'roundZero', orDefault(given.roundZero, false)),
  };
  checkPair(op, plan, given);
  return plan;
}

/** Options that contradict each other. */
function checkPair(op: string, plan: Plan, given: Partial<QuantizePlanarOptions>): void {
  const { format, layout, strategy, scaleRule } = plan;
  if (given.groupSize !== undefined && given.strategy !== undefined && strategy !== 'group') {
    fail(
      'ERR_VALUE',
      op,
      'groupSize',
      `left out with strategy ${strategy}`,
      shown(given.groupSize),
    );
  }
  if (given.blockSize !== undefined && strategy !== 'block') {
    fail('ERR_VALUE', op, 'blockSize', `left out with strategy ${strategy}`, 'a size');
  }
  const divides = layout === 'nvfp4-pack-quantized';
  if (format === 'nvfp4' && divides !== (scaleRule === 'compressed-tensors')) {
    const expected = divides ? 'compressed-tensors' : 'modelopt or torchao';
    fail('ERR_VALUE', op, 'scaleRule', `${expected} in ${layout}`, scaleRule);
  }
  const bits = layout === undefined ? undefined : integerBits[layout];
  if (bits !== undefined && !bits.includes(bitsOf(format))) {
    fail('ERR_FORMAT', op, 'layout', `one that has ${format}`, layout as string);
  }
}
