/** The formats to quantise to, and the layouts of checkpoints that hold them. */
import type { LayoutName } from '../codecs/registry.js';
import { type Fp8Format, fp8Elements } from './fp8.js';
import { type MxFormat, mxElements } from './mx.js';

/** Integers of so many bits. */
export type IntegerFormat = 'int1' | 'int2' | 'int3' | 'int4' | 'int5' | 'int6' | 'int7' | 'int8';

/** What {@link quantizePlanar} and {@link quantizeLayer} quantise to. */
export type PlanarFormat = Fp8Format | MxFormat | 'nvfp4' | IntegerFormat;

const kIntegerLayouts: readonly LayoutName[] = [
  'pack-quantized',
  'int-quantized',
  'gptq',
  'awq',
  'hqq',
];

/** Bits that an integer layout takes. */
export const integerBits: Readonly<Partial<Record<LayoutName, readonly number[]>>> = {
  'pack-quantized': [2, 3, 4, 5, 6, 7, 8],
  'int-quantized': [8],
  gptq: [2, 3, 4, 8],
  awq: [4],
  hqq: [1, 2, 3, 4, 8],
};

function integerLayouts(bits: number): readonly LayoutName[] {
  return kIntegerLayouts.filter((layout) => integerBits[layout]?.includes(bits));
}

const kFp8: readonly LayoutName[] = ['fp8'];

/** By format, the layouts that hold it; the first is the default. MXFP6 has none that libraries agree on. */
export const layoutsOf: Readonly<Record<PlanarFormat, readonly LayoutName[]>> = {
  'fp8-e4m3': kFp8,
  'fp8-e5m2': kFp8,
  'mxfp8-e4m3': kFp8,
  'mxfp8-e5m2': kFp8,
  'mxfp6-e3m2': [],
  'mxfp6-e2m3': [],
  mxfp4: ['mxfp4-pack-quantized', 'mxfp4'],
  nvfp4: ['nvfp4-pack-quantized', 'modelopt-nvfp4'],
  int1: integerLayouts(1),
  int2: integerLayouts(2),
  int3: integerLayouts(3),
  int4: integerLayouts(4),
  int5: integerLayouts(5),
  int6: integerLayouts(6),
  int7: integerLayouts(7),
  int8: integerLayouts(8),
};

export const planarFormats = Object.keys(layoutsOf) as readonly PlanarFormat[];

export const isFp8 = (format: PlanarFormat): format is Fp8Format =>
  Object.hasOwn(fp8Elements, format);
export const isMx = (format: PlanarFormat): format is MxFormat => Object.hasOwn(mxElements, format);
/** Bits of an integer format. */
export const bitsOf = (format: PlanarFormat): number => Number(format.slice(3));
