import { defineRule } from '../definition/define.js';
import type { RuleLayer, RuleRun } from '../definition/run.js';
import { below, outside } from '../parts/checks.js';
import { uniformValues } from '../parts/draw.js';
import { factorsOf, gateOf, kGated, silence } from '../parts/gates.js';
import { noSteps, stepsOf } from '../parts/steps.js';

/** Settings of {@link doraDynamic}. */
export interface DoraDynamicSettings {
  /** Mean rank of a layer in the end. */
  readonly target: number;
  /** Steps with all ranks; below 1 a share of the run's. */
  readonly initial: number;
  /** Steps with the ranks that are left; below 1 a share of the run's. */
  readonly final: number;
  /** Steps between two choices of ranks. */
  readonly every: number;
  /** Of the smoothed shares. */
  readonly beta: number;
  /** Weight of the mean variance within rows of `loraA` and columns of `loraB`. */
  readonly variance: number;
}

type Run = RuleRun<DoraDynamicSettings>;

const kEps = 1e-7;

/**
 * DoRA in the sense of dynamic ranks: a component of a layer has the share `‖c bᵢ aᵢᵀ‖ / ‖ΔW‖` of its update, smoothed over the
 * steps. Between `initial` and `final` the components with the smallest shares of all layers have their gate set to 0, with a
 * cubic curve from r to `target` ranks a layer; after it they stay 0. A penalty keeps the entries of each vector alike. Gates begin
 * at 0 and both factors at random, as in the authors' program.
 */
export const doraDynamic = defineRule<DoraDynamicSettings>({
  rule: 'dora-dynamic',
  reference:
    'Mao et al., DoRA: Enhancing Parameter-Efficient Fine-Tuning with Dynamic Rank Distribution, 2024, arXiv:2405.17357',
  defaults: { target: 4, initial: 0.15, final: 0.5, every: 5, beta: 0.9, variance: 0.1 },
  claims: ['shapes'],
  adapters: kGated,
  check: ({ target, initial, final, every, beta, variance }, { steps }) =>
    below('target', target, 1) ??
    noSteps('initial', initial) ??
    noSteps('final', final) ??
    below('every', every, 1) ??
    outside('beta', beta, 0, 1) ??
    (variance >= 0 ? undefined : (['variance', 'at least 0', String(variance)] as const)) ??
    (stepsOf(initial, steps) + stepsOf(final, steps) < steps
      ? undefined
      : ['initial and final', `below the steps (${steps}) together`, `${initial} and ${final}`]),
  state: ({ layers }) =>
    Object.fromEntries(
      layers.flatMap(({ module, r }) => [
        [`share/${module}`, [r]],
        [`kept/${module}`, [r]],
      ]),
    ),
  prepare: (run) => {
    for (const [i, layer] of run.layers.entries()) {
      const { loraA, loraB } = factorsOf(layer);
      const bounds = [Math.sqrt(6 / layer.K), Math.sqrt(6 / layer.r)];
      for (const [at, factor] of [loraA, loraB].entries()) {
        const size = factor.values().length;
        factor.write(uniformValues(size, bounds[at] as number, run.seedOf(factor.part, i)));
      }
      gateOf(layer).write(new Float32Array(layer.r));
      keptOf(run, layer).fill(1);
    }
  },
  gradients: (run) => {
    const { at, whole } = pruningOf(run, run.step + 1);
    if (at <= whole) addVariance(run.layers, run.settings.variance);
  },
  after: (run) => {
    const { layers, settings } = run;
    const { at, whole } = pruningOf(run, run.step);
    if (at > whole) {
      for (const layer of layers) silence(layer, keptOf(run, layer));
      return;
    }
    for (const layer of layers) smooth(shareOf(run, layer), sharesNow(layer), settings.beta);
    if (at < 0 || !(at % settings.every === 0 || at === whole)) return;
    const all = layers.flatMap((layer) => [...shareOf(run, layer)]).sort((a, b) => a - b);
    const mean = all.length / layers.length;
    const share = Math.max(0, (mean - settings.target) / mean) * (at / whole) ** 3;
    const count = Math.floor(all.length * share);
    const limit = count === 0 ? Number.NEGATIVE_INFINITY : (all[count - 1] as number);
    for (const layer of layers) {
      const kept = keptOf(run, layer);
      for (const [i, own] of shareOf(run, layer).entries()) kept[i] = own > limit ? 1 : 0;
      silence(layer, kept);
    }
  },
  finish: (run) => {
    for (const layer of run.layers) layer.keepRanks(keptOf(run, layer));
  },
});

const shareOf = ({ state }: Run, { module }: RuleLayer) => state[`share/${module}`] as Float64Array;
const keptOf = ({ state }: Run, { module }: RuleLayer) => state[`kept/${module}`] as Float64Array;

/** Steps since pruning began, and how many it takes. */
function pruningOf({ steps, settings: { initial, final } }: Run, step: number) {
  const first = stepsOf(initial, steps);
  return { at: step - first, whole: steps - first - stepsOf(final, steps) };
}

function smooth(values: Float64Array, now: Float64Array, beta: number): void {
  for (let i = 0; i < values.length; i++) {
    values[i] = beta * (values[i] as number) + (1 - beta) * (now[i] as number);
  }
}

/** `‖c bᵢ aᵢᵀ‖ / ‖B diag(c) A‖` of each component. */
function sharesNow(layer: RuleLayer): Float64Array {
  const { r, N, K } = layer;
  const { loraA, loraB } = factorsOf(layer);
  const [a, b, c] = [loraA.values(), loraB.values(), gateOf(layer).values()];
  const gramA = gram(a, r, K, K, 1);
  const gramB = gram(b, r, N, 1, r);
  let whole = 0;
  for (let i = 0; i < r; i++) {
    for (let j = 0; j < r; j++) {
      const at = i * r + j;
      whole += (c[i] as number) * (c[j] as number) * (gramA[at] as number) * (gramB[at] as number);
    }
  }
  const norm = Math.sqrt(Math.max(0, whole)) + kEps;
  return Float64Array.from(c, (gate, i) => {
    const at = i * r + i;
    return (Math.abs(gate) * Math.sqrt((gramA[at] as number) * (gramB[at] as number))) / norm;
  });
}

/** Inner products of r vectors of n entries. */
function gram(p: Float32Array, r: number, n: number, row: number, entry: number): Float64Array {
  return Float64Array.from({ length: r * r }, (_, at) => {
    const [i, j] = [Math.floor(at / r), at % r];
    let sum = 0;
    for (let k = 0; k < n; k++) {
      sum += (p[i * row + k * entry] as number) * (p[j * row + k * entry] as number);
    }
    return sum;
  });
}

/** Adds the gradient of `weight · mean(var(vector))` over all rows of `loraA` and columns of `loraB`. */
function addVariance(layers: readonly RuleLayer[], weight: number): void {
  if (weight === 0) return;
  const count = layers.reduce((sum, { r }) => sum + 2 * r, 0);
  for (const layer of layers) {
    const { r, N, K } = layer;
    const { loraA, loraB } = factorsOf(layer);
    for (const [factor, n, row, entry] of [
      [loraA, K, K, 1],
      [loraB, N, 1, r],
    ] as const) {
      const { gradient } = factor;
      if (gradient === undefined || n < 2) continue;
      const values = factor.values();
      for (let i = 0; i < r; i++) {
        let mean = 0;
        for (let k = 0; k < n; k++) mean += (values[i * row + k * entry] as number) / n;
        for (let k = 0; k < n; k++) {
          const at = i * row + k * entry;
          const slope = (2 * ((values[at] as number) - mean)) / (n - 1);
          gradient[at] = (gradient[at] as number) + (weight / count) * slope;
        }
      }
    }
  }
}
