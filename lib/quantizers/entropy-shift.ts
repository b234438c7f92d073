import { entryValues } from '../checkpoint/planar/decode.js';
import type { PlanarWeight, ScalePlane } from '../checkpoint/planar/planar-weight.js';
import { absmaxOf, eachBlock, encodeBlocks, nestedPlane, plainPlane } from './blocks.js';
import { kNormalFloatDeviation, normalFloatLevels } from './normal-float.js';

/** How {@link quantizeByEntropy} works. */
export interface EntropyShift {
  /** Bits of a code, 2 to 8. */
  readonly bits: number;
  /** Elements of a block. */
  readonly blocksize: number;
  /** Reach of the search around the median, in deviations of the block. */
  readonly range: number;
  /** Shifts that are tried on each side. */
  readonly tries: number;
  /** Are scales and shifts stored as bytes? */
  readonly doubleQuant: boolean;
}

/** The shift of a block, of all that are tried, whose codes have the most entropy; the first of several. */
function bestShift(
  sorted: Float32Array,
  levels: Float32Array,
  { range, tries }: EntropyShift,
  entropies: Float64Array,
): number {
  const length = sorted.length;
  const [least, most] = [sorted[0] as number, sorted[length - 1] as number];
  const median = sorted[(length - 1) >> 1] as number;
  const width = Math.max(median - least, most - median) * range * kNormalFloatDeviation;
  let [best, found] = [median, Number.NEGATIVE_INFINITY];
  for (let turn = -tries; turn <= tries; turn++) {
    const shift = Math.fround(median + (tries === 0 ? 0 : turn / tries) * width);
    const absmax = Math.max(shift - least, most - shift);
    let entropy = 0;
    for (let code = 0, from = 0; code < levels.length && from < length; code++) {
      const next = levels[code + 1];
      const bound =
        next === undefined
          ? Number.POSITIVE_INFINITY
          : shift + (absmax * ((levels[code] as number) + next)) / 2;
      let to = from;
      while (to < length && (sorted[to] as number) <= bound) to++;
      entropy += entropies[to - from] as number;
      from = to;
    }
    if (entropy > found + 1e-12) [best, found] = [shift, entropy];
  }
  return best;
}

/** −p · log₂ p of a share of `count` out of `length`, by count. */
const entropyOfCounts = (length: number): Float64Array =>
  Float64Array.from({ length: length + 1 }, (_, count) =>
    count === 0 ? 0 : (-count / length) * Math.log2(count / length),
  );

/**
 * Information calibration quantisation: blocks of NormalFloat codes of `w − τ`, where each block has the τ around its median
 * whose codes have the most entropy, `w ≈ absmax · level + τ` (Qin et al., Accurate LoRA-Finetuning Quantization of LLMs via
 * Information Retention, 2024, arXiv:2402.05445). As in the authors' program τ is `median + f · max|w − median|`, for
 * `2 · tries + 1` factors f within `range` deviations of a normal distribution that NormalFloat assumes.
 * @param values [N, K], row by row, all finite
 */
export function quantizeByEntropy(
  values: Float32Array,
  rows: number,
  columns: number,
  how: EntropyShift,
): PlanarWeight {
  const { bits, blocksize, doubleQuant } = how;
  const levels = normalFloatLevels(bits);
  const blocks = Math.ceil(values.length / blocksize);
  const shifts = new Float32Array(blocks);
  let entropies: Float64Array = new Float64Array();
  eachBlock(values.length, blocksize, ({ begin, end }, block) => {
    if (entropies.length !== end - begin + 1) entropies = entropyOfCounts(end - begin);
    shifts[block] = bestShift(values.slice(begin, end).sort(), levels, how, entropies);
  });
  const plane = (numbers: Float32Array, centred: boolean): ScalePlane =>
    doubleQuant ? nestedPlane(numbers, centred) : plainPlane(numbers);
  const min = plane(
    shifts.map((shift) => -shift),
    false,
  );
  // Scales and codes are those of what is stored: of the shift as it is read back.
  const stored = entryValues(min);
  const absmax = new Float32Array(blocks);
  eachBlock(values.length, blocksize, (range, block) => {
    absmax[block] = absmaxOf(values, range, -(stored[block] as number));
  });
  const scale = plane(absmax, true);
  const codes = encodeBlocks(values, blocksize, levels, entryValues(scale), stored);
  return {
    rows,
    columns,
    bits,
    codes,
    levels,
    grid: { kind: 'flat', span: blocksize },
    scale,
    min,
  };
}
