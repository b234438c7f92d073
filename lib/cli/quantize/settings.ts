/** What `lowrank quantize` is asked for: formats, layouts, and the options that belong to them. */

import type { LayoutName } from '../../checkpoint/codecs/registry.js';
import {
  isFp8,
  layoutsOf,
  type PlanarFormat,
  planarFormats,
} from '../../checkpoint/quantize/formats.js';
import type { QuantizePlanarOptions, ScaleStrategy } from '../../checkpoint/quantize/options.js';
import { bitsandbytesStored, type StoredFormat } from '../../core/formats.js';
import type { Device } from '../../index.js';
import type { Arguments } from '../command/arguments.js';
import { readDevice } from '../command/device-option.js';

/** Settings for quantising a checkpoint. */
export interface QuantizeSettings {
  readonly format: StoredFormat | PlanarFormat;
  readonly layout: LayoutName;
  readonly blocksize?: number;
  readonly doubleQuant: boolean;
  readonly groupSize?: number;
  readonly strategy?: ScaleStrategy;
  readonly zeroPoints?: boolean;
  /** Tensors whose names contain one of these stay unchanged. */
  readonly skip: readonly string[];
  readonly device?: Device;
}

/** The formats of the command: those of bitsandbytes, then those that a layout of another library holds. */
export const commandFormats: readonly (StoredFormat | PlanarFormat)[] = [
  ...bitsandbytesStored,
  ...planarFormats.filter(
    (format) => layoutsOf[format].length > 0 && !(bitsandbytesStored as string[]).includes(format),
  ),
];

/** Layouts that hold a format in a folder, the first by default. That of gpt-oss holds experts alone. */
export function layoutsFor(format: StoredFormat | PlanarFormat): readonly LayoutName[] {
  if (format === 'int8-rowwise') return ['llm-int8'];
  const own = (bitsandbytesStored as string[]).includes(format) ? ['bitsandbytes' as const] : [];
  const planar = planarFormats.includes(format as PlanarFormat)
    ? layoutsOf[format as PlanarFormat].filter((layout) => layout !== 'mxfp4')
    : [];
  return [...own, ...planar];
}

/** All layouts of the command. */
export const commandLayouts: readonly LayoutName[] = [
  ...new Set(commandFormats.flatMap((format) => layoutsFor(format))),
];

/** Does bitsandbytes have the layout? */
export const isBitsandbytesLayout = (layout: LayoutName): boolean =>
  layout === 'bitsandbytes' || layout === 'llm-int8';

const kStrategies: readonly ScaleStrategy[] = ['tensor', 'channel', 'group', 'block'];

/** The format of settings in another layout than those of bitsandbytes, with its options. */
export function planarOptions(settings: QuantizeSettings): QuantizePlanarOptions {
  const { format, layout, groupSize, strategy, zeroPoints } = settings;
  return {
    format: format as PlanarFormat,
    layout,
    ...(groupSize === undefined ? {} : { groupSize }),
    ...(strategy === undefined ? {} : { strategy }),
    ...(zeroPoints === undefined ? {} : { symmetric: !zeroPoints }),
  };
}

/** Parts of names whose tensors stay as they are. */
const kSkipped = ['lm_head', 'embed', 'norm'];

/** The settings of a format alone, in a layout that model folders are read from. */
export function defaultSettings(format: string): QuantizeSettings {
  const own = format as QuantizeSettings['format'];
  // openHfModel reads no layers in blockwise codes of 8 bits.
  const known = (layout: LayoutName) => layout !== 'bitsandbytes' || own !== 'int8';
  const layout = layoutsFor(own).find(known) as LayoutName;
  return { format: own, layout, doubleQuant: false, skip: kSkipped };
}

/** @throws UsageError */
export function readSettings(parsed: Arguments): QuantizeSettings {
  const format = parsed.choice('format', 'nf4', commandFormats);
  const layouts = layoutsFor(format);
  const layout = parsed.choice('layout', layouts[0] as LayoutName, commandLayouts);
  if (!layouts.includes(layout)) {
    throw parsed.refuse('layout', `one of ${layouts.join(', ')} with --format ${format}`, layout);
  }
  const blocksize = parsed.powerOfTwo('blocksize', 32, 4096);
  const groupSize = parsed.integer('group-size', 0, 1, 2 ** 20) || undefined;
  const strategy =
    parsed.text('strategy') === undefined
      ? undefined
      : parsed.choice('strategy', 'channel', kStrategies);
  const doubleQuant = parsed.flag('double-quant');
  const zeroPoints = parsed.flag('zero-points') || undefined;
  const device = readDevice(parsed);
  const skip = (parsed.text('skip') ?? kSkipped.join()).split(',').map((part) => part.trim());
  const own = optionsOf(format, layout);
  const given = {
    blocksize: blocksize?.toString(),
    'double-quant': doubleQuant ? '--double-quant' : undefined,
    'group-size': groupSize?.toString(),
    strategy,
    'zero-points': zeroPoints ? '--zero-points' : undefined,
  };
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || own.includes(name)) continue;
    const why = format === 'int8-rowwise' ? ', which has a scale a row' : ` in layout ${layout}`;
    throw parsed.refuse(name, `left out with --format ${format}${why}`, value);
  }
  if (groupSize !== undefined && strategy !== undefined && strategy !== 'group') {
    throw parsed.refuse('group-size', `left out with --strategy ${strategy}`, String(groupSize));
  }
  return {
    format,
    layout,
    ...(blocksize === undefined ? {} : { blocksize }),
    doubleQuant,
    ...(groupSize === undefined ? {} : { groupSize }),
    ...(strategy === undefined ? {} : { strategy }),
    ...(zeroPoints === undefined ? {} : { zeroPoints }),
    skip: skip.filter((part) => part !== ''),
    ...(device === undefined ? {} : { device }),
  };
}

/** Options that belong to a format in a layout. */
function optionsOf(format: StoredFormat | PlanarFormat, layout: LayoutName): readonly string[] {
  if (layout === 'bitsandbytes') return ['blocksize', 'double-quant'];
  if (layout === 'llm-int8') return [];
  if (layout === 'hqq') return ['group-size'];
  if (format.startsWith('int')) return ['group-size', 'strategy', 'zero-points'];
  return isFp8(format as PlanarFormat) ? ['group-size', 'strategy'] : ['group-size'];
}
