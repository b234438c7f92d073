import { defineRule } from '../definition/define.js';
import type { RuleLayer, RuleRun } from '../definition/run.js';
import { below, outside } from '../parts/checks.js';
import { factorsOf, gateOf } from '../parts/gates.js';
import { addOrthogonality } from '../parts/orthogonal.js';
import { noSteps, stepsOf } from '../parts/steps.js';

/** Settings of {@link increlora}. */
export interface IncreloraSettings {
  /** Ranks of a layer in the beginning; its adapter has room for r. */
  readonly begin: number;
  /** Mean rank of a layer in the end. */
  readonly target: number;
  /** Steps before the first growth; below 1 a share of the run's. */
  readonly initial: number;
  /** Steps between two growths. */
  readonly every: number;
  /** Layers that grow at once. */
  readonly top: number;
  /** Of the sensitivity. */
  readonly beta1: number;
  /** Of its uncertainty. */
  readonly beta2: number;
  /** Weight of the penalty that keeps the factors orthonormal. */
  readonly orthogonal: number;
}

type Run = RuleRun<IncreloraSettings>;

/** The factor of a rank that is trained in advance. */
const kReserve = 1e-5;

/**
 * Ranks are added: every `every` steps the `top` layers with the largest score get one, until all have `target` on average. The score
 * is the smoothed sensitivity of a layer's update times its uncertainty; the sensitivity is `Σ |ΔW ⊙ dW| / √(N K)` with the
 * gradient of the loss by the weight. The vectors of the next rank of each layer are trained in advance, with a factor of 1e-5. The
 * scaling is that of r ranks.
 */
export const increlora = defineRule<IncreloraSettings>({
  rule: 'increlora',
  reference:
    'Zhang et al., IncreLoRA: Incremental Parameter Allocation Method for Parameter-Efficient Fine-tuning, 2023, arXiv:2308.12043',
  defaults: {
    ...{ begin: 1, target: 4, initial: 0.1, every: 2, top: 4 },
    ...{ beta1: 0.85, beta2: 0.85, orthogonal: 0.1 },
  },
  claims: ['shapes', 'step'],
  adapters: ['adalora'],
  check: ({ begin, target, initial, every, top, beta1, beta2, orthogonal }) =>
    below('begin', begin, 1) ??
    below('target', target, begin) ??
    noSteps('initial', initial) ??
    below('every', every, 1) ??
    below('top', top, 1) ??
    outside('beta1', beta1, 0, 1) ??
    outside('beta2', beta2, 0, 1) ??
    (orthogonal >= 0 ? undefined : ['orthogonal', 'at least 0', String(orthogonal)]),
  state: ({ layers }) => ({
    ranks: [layers.length],
    sensitivity: [layers.length],
    uncertainty: [layers.length],
  }),
  prepare: (run) => {
    for (const [i, { r }] of run.layers.entries()) {
      (run.state.ranks as Float64Array)[i] = Math.min(r, run.settings.begin);
    }
    setReserves(run);
  },
  before: (run) => {
    if (isWhole(run)) return;
    const { beta1, beta2 } = run.settings;
    const gradients = run.weightGradients();
    const [s, u] = [run.state.sensitivity, run.state.uncertainty] as [Float64Array, Float64Array];
    for (const [i, layer] of run.layers.entries()) {
      const now = sensitivityOf(layer, gradients.get(layer.module) as Float32Array);
      const smooth = beta1 * (s[i] as number) + (1 - beta1) * now;
      s[i] = smooth;
      u[i] = beta2 * (u[i] as number) + (1 - beta2) * Math.abs(now - smooth);
    }
  },
  mask: (run, name) => {
    const i = run.layers.findIndex(({ module }) => run.parameters.get(name)?.module === module);
    const layer = run.layers[i];
    if (layer === undefined) return undefined;
    const { r, K } = layer;
    const active = run.state.ranks?.[i] as number;
    const trained = Math.min(r, active + (isWhole(run) ? 0 : 1));
    const { role, shape } = run.parameters.get(name) as { role: string; shape: readonly number[] };
    const size = shape.reduce((a, b) => a * b, 1);
    const rankOf = (at: number) => (role === 'down' ? Math.floor(at / K) : at % r);
    const limit = role === 'down' || role === 'up' ? trained : active;
    return Uint8Array.from({ length: size }, (_, at) => (rankOf(at) < limit ? 1 : 0));
  },
  gradients: (run) => addOrthogonality(run, run.settings.orthogonal),
  after: (run) => {
    const { step, steps, settings, layers } = run;
    if (step <= stepsOf(settings.initial, steps) || step % settings.every !== 0) return;
    if (isWhole(run)) return;
    const ranks = run.state.ranks as Float64Array;
    const [s, u] = [run.state.sensitivity, run.state.uncertainty] as [Float64Array, Float64Array];
    const score = (i: number) => (s[i] as number) * (u[i] as number);
    const free = Array.from(layers.keys()).filter(
      (i) => (ranks[i] as number) < (layers[i]?.r ?? 0),
    );
    const order = free.sort((a, b) => score(b) - score(a));
    for (const i of order.slice(0, Math.min(settings.top, missing(run)))) {
      ranks[i] = (ranks[i] as number) + 1;
    }
    setReserves(run);
  },
  finish: (run) => {
    for (const [i, layer] of run.layers.entries()) {
      const active = run.state.ranks?.[i] as number;
      const gate = gateOf(layer);
      gate.write(gate.values().map((value, rank) => (rank < active ? value : 0)));
      layer.keepRanks(Array.from({ length: layer.r }, (_, rank) => (rank < active ? 1 : 0)));
    }
  },
});

/** Ranks that are still to be added. */
function missing({ layers, state, settings }: Run): number {
  const room = layers.reduce((sum, { r }) => sum + r, 0);
  const target = Math.min(room, settings.target * layers.length);
  return target - (state.ranks as Float64Array).reduce((a, b) => a + b, 0);
}

const isWhole = (run: Run): boolean => missing(run) <= 0;

/** The factors of the ranks that are trained in advance; 0 behind them, and when no rank is to be added. */
function setReserves(run: Run): void {
  const reserve = isWhole(run) ? 0 : kReserve;
  for (const [i, layer] of run.layers.entries()) {
    const active = run.state.ranks?.[i] as number;
    const gate = gateOf(layer);
    gate.write(
      gate.values().map((value, rank) => (rank < active ? value : rank === active ? reserve : 0)),
    );
  }
}

/** `Σ |ΔW ⊙ dW| / √(N K)`, without the update's scaling. */
function sensitivityOf(layer: RuleLayer, gradient: Float32Array): number {
  const { r, N, K } = layer;
  const { loraA, loraB } = factorsOf(layer);
  const [a, b, e] = [loraA.values(), loraB.values(), gateOf(layer).values()];
  const row = new Float64Array(K);
  let sum = 0;
  for (let n = 0; n < N; n++) {
    row.fill(0);
    for (let i = 0; i < r; i++) {
      const factor = (b[n * r + i] as number) * (e[i] as number);
      if (factor === 0) continue;
      for (let k = 0; k < K; k++) row[k] = (row[k] as number) + factor * (a[i * K + k] as number);
    }
    for (let k = 0; k < K; k++)
      sum += Math.abs((row[k] as number) * (gradient[n * K + k] as number));
  }
  return sum / Math.sqrt(N * K);
}
