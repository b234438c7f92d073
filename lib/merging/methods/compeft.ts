import type { RefusedSetting } from '../../core/refused-setting.js';
import { defineMerge } from '../definition/definition.js';
import { sumOfFactors } from '../parts/factors.js';
import { checkDensity, keepFromBound } from '../parts/prune.js';

/** Settings of {@link compeft}. */
export interface CompeftSettings {
  /** The fraction of entries that are kept. */
  readonly density: number;
  /**
   * `std`: ComPEFT's magnitude, `scale` times the standard deviation. `mean-abs`: STC's, the mean magnitude of the kept entries.
   * `mean`: what ComPEFT's program computes for STC, the mean of the kept entries with their signs.
   */
  readonly magnitude: string;
  readonly scale: number;
}

const kMagnitudes = ['std', 'mean', 'mean-abs'];

function checkSettings(settings: CompeftSettings): RefusedSetting | undefined {
  const { magnitude } = settings;
  if (!kMagnitudes.includes(magnitude)) {
    return ['magnitude', kMagnitudes.join(' or '), JSON.stringify(magnitude)];
  }
  return checkDensity(settings);
}

/** Signs of the entries of largest magnitude in all tensors together, and the one magnitude that they get. */
export function ternaryOf(
  tensors: readonly Float32Array[],
  { density, magnitude, scale }: CompeftSettings,
): { readonly signs: readonly Int8Array[]; readonly alpha: number } {
  const n = tensors.reduce((sum, { length }) => sum + length, 0);
  const all = new Float32Array(n);
  let at = 0;
  for (const tensor of tensors) {
    all.set(tensor, at);
    at += tensor.length;
  }
  const keep = keepFromBound(all, density);
  const signs = tensors.map((tensor) => Int8Array.from(tensor, (value) => Math.sign(keep(value))));
  let [kept, magnitudes, count, sum] = [0, 0, 0, 0];
  for (const value of all) {
    sum += value;
    if (keep(value) === 0) continue;
    kept += value;
    magnitudes += Math.abs(value);
    count += 1;
  }
  if (magnitude !== 'std') {
    return { signs, alpha: (magnitude === 'mean' ? kept : magnitudes) / Math.max(count, 1) };
  }
  let squares = 0;
  for (const value of all) squares += (value - sum / n) ** 2;
  return { signs, alpha: scale * Math.sqrt(squares / Math.max(n - 1, 1)) };
}

/**
 * ComPEFT: each adapter is compressed to signs and one magnitude before the adapters are added as `pem` adds them. The entries
 * of largest magnitude in all factors of an adapter are kept, one more than ⌊density · n⌋ as in the authors' program, and all
 * become α · sign. One adapter alone is only compressed. STC (Sattler et al., 2019, arXiv:1903.02891) is
 * `magnitude: 'mean-abs'`.
 */
export const compeft = defineMerge<CompeftSettings>({
  merge: 'compeft',
  reference:
    'Yadav et al., ComPEFT: Compression for Communicating Parameter Efficient Updates via Sparsification and Quantization, 2023, arXiv:2311.13171',
  defaults: { density: 0.2, magnitude: 'std', scale: 1 },
  check: checkSettings,
  prepare: (tensors, settings) => {
    const { signs, alpha } = ternaryOf(tensors, settings);
    return signs.map((own) => Float32Array.from(own, (sign) => sign * alpha));
  },
  layer: (call) => sumOfFactors(call, call.weights.map(Math.abs), call.weights),
});
