/** What a folder has of a LoRA layer: the adapter, what its start took from the base, and what rules merged into it. */

import type { Adapter } from '../adapters/definition/adapter.js';
import { type AlphaConfig, scalingOf } from '../adapters/parts/scaling.js';
import type { PeftAdapterParts } from '../checkpoint/peft/peft.js';
import type { RawTensor } from '../checkpoint/raw-tensor.js';
import type { Tensor } from '../core/tensor.js';
import { factoredSvd } from '../linalg/factored-svd.js';
import { transposed } from '../linalg/rows.js';
import type { RuleUpdate } from '../rules/definition/run.js';
import { type SignedFactors, stackedFactors } from '../starts/parts/converted.js';
import type { AdaptedLayer, AdapterSet } from '../train/adapter-set.js';

/** A LoRA layer as PEFT stores it, with its rank and its alpha. */
export type LoraModule = PeftAdapterParts['modules'][number] & {
  readonly r: number;
  readonly loraAlpha: number;
};

interface Factors {
  readonly a: Float32Array;
  readonly b: Float32Array;
  readonly r: number;
}

const raw = (data: Float32Array, shape: readonly number[]): RawTensor => ({
  dtype: 'F32',
  shape,
  data,
});

const factorsOf = (tensors: Readonly<Record<string, Tensor>>, sign: 1 | -1): SignedFactors => ({
  a: (tensors.loraA as Tensor).readSync(),
  b: (tensors.loraB as Tensor).readSync(),
  sign,
});

/**
 * A layer as LoRA over the weight of the files. Over a base that was replaced or merged into, it is the sum of all updates,
 * whose rank is the sum of theirs, or that of the sum where this is above what the weight can have.
 * @param merged what rules merged into the base of the layer
 */
export function loraModule(
  { startFactors }: AdapterSet,
  { place: { module }, adapter }: AdaptedLayer,
  biased: boolean,
  merged: readonly RuleUpdate[] = [],
): LoraModule {
  const config = adapter.config as unknown as AlphaConfig;
  const { inFeatures: K, outFeatures: N, parameters } = adapter as Adapter;
  const { loraBias } = parameters as Readonly<Record<string, Tensor>>;
  const bias = biased && loraBias ? { loraBias: raw(loraBias.readSync(), loraBias.shape) } : {};
  const start = startFactors.get(module);
  const all: readonly SignedFactors[] = [
    factorsOf(parameters, 1),
    ...(start === undefined ? [] : [factorsOf(start, -1)]),
    ...merged.map(({ a, b }) => ({ a, b, sign: 1 as const })),
  ];
  // An adapter that adds nothing has no place beside what was merged.
  const parts = merged.length > 0 && all[0]?.b.every((value) => value === 0) ? all.slice(1) : all;
  const stacked = stackedFactors(parts, { N, K });
  const { a, b, r } =
    stacked.r > Math.min(N, K) && parts.length > 1 ? reduced(stacked, N, K) : stacked;
  const scaling = scalingOf(config);
  const loraAlpha =
    r === config.r ? config.loraAlpha : scaling * (config.rslora ? Math.sqrt(r) : r);
  return { module, loraA: raw(a, [r, K]), loraB: raw(b, [N, r]), ...bias, r, loraAlpha };
}

/** The same product with as few columns as it has singular values above 0, at least one. */
function reduced({ a, b, r: R }: Factors, N: number, K: number): Factors {
  const left = transposed(Float64Array.from(b), N, R);
  const { u, s, v } = factoredSvd(left, Float64Array.from(a), R, N, K, Math.min(N, K));
  const r = Math.max(1, s.length);
  const loraA = new Float32Array(r * K);
  const loraB = new Float32Array(N * r);
  for (let i = 0; i < s.length; i++) {
    const root = Math.sqrt(s[i] as number);
    for (let k = 0; k < K; k++) loraA[i * K + k] = root * (v[i * K + k] as number);
    for (let n = 0; n < N; n++) loraB[n * r + i] = root * (u[i * N + n] as number);
  }
  return { a: loraA, b: loraB, r };
}
