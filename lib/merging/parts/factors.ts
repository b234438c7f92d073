import type { RefusedSetting } from '../../core/refused-setting.js';
import { factoredSvd } from '../../linalg/factored-svd.js';
import type { LoraUpdate, MergeCall } from '../definition/definition.js';
import { sameRank, sameScaling } from './same.js';

/** How much of a merged update is kept. */
export interface Truncation {
  /** Rank of the result. */
  readonly rank: number;
}

/** Refuses a rank that is none. */
export function checkRank({ rank }: Truncation): RefusedSetting | undefined {
  return Number.isInteger(rank) && rank >= 0 && rank < 2 ** 31
    ? undefined
    : ['rank', 'a non-negative integer', String(rank)];
}

/** `Σ weights[i] · tensors[i]`, rounded once. */
export function sumOf(tensors: readonly Float32Array[], weights: readonly number[]): Float32Array {
  const [first] = tensors as readonly [Float32Array];
  return first.map((_, i) => {
    let sum = 0;
    for (let t = 0; t < tensors.length; t++) {
      sum += ((tensors[t] as Float32Array)[i] as number) * (weights[t] as number);
    }
    return sum;
  });
}

/** A merge of A and of B, each by weights of its own. Ranks and scalings must be equal. */
export function sumOfFactors(
  call: Pick<MergeCall<object>, 'updates' | 'module'>,
  ofA: readonly number[],
  ofB: readonly number[],
): LoraUpdate {
  sameRank(call);
  sameScaling(call);
  const [first] = call.updates as readonly [LoraUpdate];
  return {
    ...first,
    loraA: sumOf(
      call.updates.map(({ loraA }) => loraA),
      ofA,
    ),
    loraB: sumOf(
      call.updates.map(({ loraB }) => loraB),
      ofB,
    ),
  };
}

/** `Σ weights[i] · loraB[i] · loraA[i]` as one adapter of rank Σr and scaling 1; the weights are multiplied into A. */
export function concatenated(
  updates: readonly LoraUpdate[],
  weights: readonly number[],
): LoraUpdate {
  const [{ inFeatures: K, outFeatures: N }] = updates as readonly [LoraUpdate];
  const R = updates.reduce((sum, { r }) => sum + r, 0);
  const loraA = new Float32Array(R * K);
  const loraB = new Float32Array(N * R);
  let from = 0;
  updates.forEach(({ loraA: a, loraB: b, r }, t) => {
    const weight = weights[t] as number;
    for (let i = 0; i < a.length; i++) loraA[from * K + i] = (a[i] as number) * weight;
    for (let n = 0; n < N; n++) loraB.set(b.subarray(n * r, (n + 1) * r), n * R + from);
    from += r;
  });
  return { loraA, loraB, r: R, inFeatures: K, outFeatures: N, scaling: 1 };
}

/** Rows [Σr, N] and [Σr, K] in float64 of all factors, with the weights in the left ones. */
export function stackedRows(updates: readonly LoraUpdate[], weights: readonly number[]) {
  const [{ inFeatures: K, outFeatures: N }] = updates as readonly [LoraUpdate];
  const R = updates.reduce((sum, { r }) => sum + r, 0);
  const left = new Float64Array(R * N);
  const right = new Float64Array(R * K);
  let from = 0;
  updates.forEach(({ loraA, loraB, r }, t) => {
    const weight = weights[t] as number;
    right.set(loraA, from * K);
    for (let n = 0; n < N; n++) {
      for (let i = 0; i < r; i++) {
        left[(from + i) * N + n] = (loraB[n * r + i] as number) * weight;
      }
    }
    from += r;
  });
  return { left, right, R, N, K };
}

/**
 * The nearest update of a rank to `Σ weights[i] · loraB[i] · loraA[i]`, from the factors: A has orthonormal rows, B the
 * singular values.
 * @param rank 0 for the largest rank of the adapters
 */
export function truncatedSum(
  updates: readonly LoraUpdate[],
  weights: readonly number[],
  rank: number,
): LoraUpdate {
  const { left, right, R, N, K } = stackedRows(updates, weights);
  const r = rankOf(updates, rank);
  const { u, s, v } = factoredSvd(left, right, R, N, K, r);
  return fromTriplets(
    u.map((value, i) => value * (s[Math.floor(i / N)] as number)),
    v,
    r,
    N,
    K,
  );
}

/** The rank of a truncated result: at most that of its matrix. */
export function rankOf(updates: readonly LoraUpdate[], rank: number): number {
  const [{ inFeatures, outFeatures }] = updates as readonly [LoraUpdate];
  const wanted = rank === 0 ? Math.max(...updates.map(({ r }) => r)) : rank;
  return Math.min(wanted, inFeatures, outFeatures);
}

/** An update of rank r and scaling 1 of up to r rows of each factor; the rows that are missing are 0. */
export function fromTriplets(
  left: ArrayLike<number>,
  right: ArrayLike<number>,
  r: number,
  N: number,
  K: number,
): LoraUpdate {
  const loraA = new Float32Array(r * K);
  const loraB = new Float32Array(N * r);
  loraA.set(right);
  for (let i = 0; i < left.length / N; i++) {
    for (let n = 0; n < N; n++) loraB[n * r + i] = left[i * N + n] as number;
  }
  return { loraA, loraB, r, inFeatures: K, outFeatures: N, scaling: 1 };
}
