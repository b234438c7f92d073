/** NVFP4: e2m1 in groups of 16 with a scale in e4m3 and a factor of the tensor, by the rules of three libraries. */
import { e2m1Levels, e4m3Levels } from '../planar/levels.js';
import type { PlanarWeight } from '../planar/planar-weight.js';
import { e2m1, e4m3 } from './minifloat.js';
import { encodeTiles, type Source, tileMaxima, tiles } from './source.js';

/**
 * The library whose bytes come out. They differ in how a group of zeros is stored (scale 1, 0.125 or 2^-6), in what the factor
 * does (ModelOpt and torchao multiply, compressed-tensors divides), and in where they round.
 */
export type Nvfp4Rule = 'modelopt' | 'compressed-tensors' | 'torchao';

interface Recipe {
  /** The tensor's factor by its largest magnitude. */
  readonly factor: (most: number) => number;
  /** The code of a group's scale by the largest magnitude and the factor. */
  readonly scale: (most: number, factor: number) => number;
  /** A scale with the factor applied, as it decodes. */
  readonly combine: (scale: number, factor: number) => number;
  /** What a weight becomes before it is rounded to e2m1, by a number of its group. */
  readonly steps: (value: number, own: number) => number;
  /** That number, by the scale and the factor. */
  readonly own: (scale: number, factor: number) => number;
}

const f32 = Math.fround;
export const kNvfp4Group = 16;
const kRange = e2m1.largest * e4m3.largest;
/** torchao's least scale. */
const kLeastScale = 2 ** -6;
/** compressed-tensors' scale where rounding gives 0. */
const kZeroScale = e4m3.encode(2 ** -3);

const multiply = (scale: number, factor: number): number => f32(scale * factor);
const divide = (scale: number, factor: number): number => f32(scale / factor);

const kRecipes: Readonly<Record<Nvfp4Rule, Recipe>> = {
  modelopt: {
    factor: (most) => f32(most / kRange),
    scale: (most, factor) => e4m3.encode(most === 0 ? 1 : f32(most / f32(e2m1.largest * factor))),
    combine: multiply,
    own: multiply,
    steps: (value, own) => f32(value / own),
  },
  'compressed-tensors': {
    factor: (most) => f32(kRange / most),
    scale: (most, factor) => e4m3.encode(f32(factor * f32(most / e2m1.largest))) || kZeroScale,
    combine: divide,
    own: divide,
    steps: (value, own) => f32(value / own),
  },
  torchao: {
    factor: (most) => f32(most / kRange),
    scale: (most, factor) =>
      e4m3.encode(Math.max(f32(f32(most / e2m1.largest) / factor), kLeastScale)),
    combine: multiply,
    own: (scale, factor) => f32(f32(1 / factor) / scale),
    steps: (value, own) => f32(value * own),
  },
};

export const nvfp4Rules = Object.keys(kRecipes) as readonly Nvfp4Rule[];

/** A factor that divides or multiplies nothing, for tensors without a number but 0. */
const kNoFactor = 1;

/** @param twoLevels whether the tensor has a factor; 1 otherwise */
export function quantizeNvfp4(
  source: Source,
  rule: Nvfp4Rule,
  twoLevels: boolean,
): { readonly weight: PlanarWeight; readonly factor: number } {
  const { rows, columns } = source;
  const recipe = kRecipes[rule];
  const grid = tiles(1, kNvfp4Group);
  const maxima = tileMaxima(source, grid);
  const most = maxima.reduce((a, b) => Math.max(a, b), 0);
  const wanted = twoLevels ? recipe.factor(most) : kNoFactor;
  const factor = wanted > 0 && Number.isFinite(wanted) ? wanted : kNoFactor;
  const scales = Uint8Array.from(maxima, (largest) => recipe.scale(largest, factor));
  const own = Float32Array.from(scales, (code) => recipe.own(e4m3Levels[code] as number, factor));
  const codes = encodeTiles(source, grid, (value, tile) => {
    // A scale that rounded to 0 makes no number of 0.
    return e2m1.encode(value === 0 ? value : recipe.steps(value, own[tile] as number));
  });
  const table = e4m3Levels.map((scale) => recipe.combine(scale, factor));
  const scale = { values: { dtype: 'u8', data: scales, table } } as const;
  return { weight: { rows, columns, bits: 4, codes, levels: e2m1Levels, grid, scale }, factor };
}
