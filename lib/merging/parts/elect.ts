import type { RefusedSetting } from '../../core/refused-setting.js';

/** How the sign of an entry is elected. */
export interface SignElection {
  /** `total`: the sign of the sum of the entries. `frequency`: that of the sum of their signs. */
  readonly sign: string;
}

const kElections = ['total', 'frequency'];

/** Refuses another election. */
export function checkElection({ sign }: SignElection): RefusedSetting | undefined {
  return kElections.includes(sign)
    ? undefined
    : ['sign', kElections.join(' or '), JSON.stringify(sign)];
}

/**
 * TIES' disjoint merge of one entry: the mean of the weighted values whose sign is the elected one. Weights take no part in
 * the election. A sum of 0 elects +, and a value of 0 agrees with neither sign.
 */
export function disjointMean(
  values: Float64Array,
  weights: readonly number[],
  sign: string,
): number {
  let vote = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    vote += sign === 'frequency' ? Math.sign(value) : value;
  }
  return meanOfSign(values, weights, vote >= 0);
}

/** The mean of the weighted values that have the sign; 0 if none has. */
export function meanOfSign(
  values: Float64Array,
  weights: readonly number[],
  positive: boolean,
): number {
  let sum = 0;
  let count = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    if (positive ? !(value > 0) : !(value < 0)) continue;
    sum += value * (weights[i] as number);
    count += 1;
  }
  return sum / Math.max(count, 1);
}

/** `Σ weights[i] · values[i]` */
export function weightedSum(values: Float64Array, weights: readonly number[]): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += (values[i] as number) * (weights[i] as number);
  return sum;
}
