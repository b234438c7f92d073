import type { RefusedSetting } from '../../core/refused-setting.js';
import type { LoraUpdate } from '../definition/definition.js';

/** A bound on the factors that an SVD gives. */
export interface Clamp {
  /** Quantile of the entries of both factors; 0 for no bound. */
  readonly clamp: number;
}

/** Refuses what is no quantile. */
export function checkClamp({ clamp }: Clamp): RefusedSetting | undefined {
  return clamp >= 0 && clamp <= 1 ? undefined : ['clamp', 'a quantile in [0, 1]', String(clamp)];
}

/**
 * Bounds both factors by the quantile of all their entries, which interpolates between two of them: what PEFT does for
 * `svd_clamp`. The entries have signs, so that the result depends on those of the singular vectors.
 */
export function clampFactors(update: LoraUpdate, clamp: number): LoraUpdate {
  if (clamp === 0) return update;
  const { loraA, loraB } = update;
  const all = new Float32Array(loraA.length + loraB.length);
  all.set(loraB);
  all.set(loraA, loraB.length);
  all.sort();
  const place = clamp * (all.length - 1);
  const low = all[Math.floor(place)] as number;
  const high = all[Math.ceil(place)] as number;
  const bound = low + (high - low) * (place - Math.floor(place));
  const within = (value: number) => Math.min(Math.max(value, -bound), bound);
  return { ...update, loraA: loraA.map(within), loraB: loraB.map(within) };
}
