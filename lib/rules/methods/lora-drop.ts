import { defineRule } from '../definition/define.js';
import type { RuleLayer, RuleRun } from '../definition/run.js';
import { factorsOf } from '../parts/gates.js';
import { noSteps, stepsOf } from '../parts/steps.js';

/** Settings of {@link loraDrop}. */
export interface LoraDropSettings {
  /** Steps of all adapters, before the choice; below 1 a share of the run's. */
  readonly sample: number;
  /** Share of the importance that the layers with an adapter of their own have together. */
  readonly threshold: number;
  /** Batches on which outputs are measured. */
  readonly batches: number;
}

type Run = RuleRun<LoraDropSettings>;

/**
 * After a few steps of all adapters, a layer's importance is the mean of `‖scaling · B · A · x‖²`, over the sum of all layers.
 * The most important layers, until they have `threshold` of it, get a new adapter each; all others of one size and kind share
 * one. The rest of the run trains these, with a new optimiser and a new schedule.
 */
export const loraDrop = defineRule<LoraDropSettings>({
  rule: 'lora-drop',
  reference:
    'Zhou et al., LoRA-drop: Efficient LoRA Parameter Pruning based on Output Evaluation, 2024, arXiv:2402.07721',
  defaults: { sample: 0.1, threshold: 0.9, batches: 4 },
  claims: ['step', 'rate'],
  adapters: ['lora'],
  resetsOptimizer: true,
  check: ({ sample, threshold, batches }, { steps }) =>
    noSteps('sample', sample) ??
    (threshold > 0 && threshold <= 1
      ? undefined
      : (['threshold', 'above 0, at most 1', String(threshold)] as const)) ??
    (Number.isInteger(batches) && batches >= 1
      ? undefined
      : (['batches', 'a whole number of at least 1', String(batches)] as const)) ??
    (stepsOf(sample, steps) >= 1 && stepsOf(sample, steps) < steps
      ? undefined
      : ['sample', `from 1 to below the steps (${steps})`, String(sample)]),
  // The index of the layer whose adapter a layer has, and 1 more; 0 before the choice.
  state: ({ layers }) => ({
    leader: [layers.length],
    importance: [layers.length],
  }),
  rate: ({ step, steps, warmup, schedule, settings }) => {
    const sample = stepsOf(settings.sample, steps);
    const [begin, length] = step < sample ? [0, sample] : [sample, steps - sample];
    return schedule(step - begin, Math.ceil((warmup * length) / steps), length);
  },
  gradients: (run) => {
    // The layers of a group are one adapter: the first has the sum of their gradients, and the others follow it.
    for (const [layer, leader] of followers(run)) {
      for (const [part, own] of Object.entries(layer.parameters)) {
        const sum = leader.parameters[part]?.gradient;
        own.gradient?.forEach((value, i) => {
          if (sum !== undefined) sum[i] = (sum[i] as number) + value;
        });
        own.gradient = undefined;
      }
    }
  },
  after: (run) => {
    const sample = stepsOf(run.settings.sample, run.steps);
    if (run.step < sample) return;
    if (run.step === sample) choose(run);
    for (const [layer, leader] of followers(run)) {
      for (const [part, own] of Object.entries(layer.parameters)) {
        own.write(leader.parameters[part]?.values() as Float32Array);
      }
    }
  },
});

/** Layers that have the adapter of another, with that one. */
function followers({ layers, state }: Run): readonly (readonly [RuleLayer, RuleLayer])[] {
  return layers.flatMap((layer, i) => {
    const leader = (state.leader?.[i] as number) - 1;
    return leader < 0 || leader === i ? [] : [[layer, layers[leader] as RuleLayer] as const];
  });
}

function choose(run: Run): void {
  const { layers, settings, state } = run;
  const importance = state.importance as Float64Array;
  importance.set(measured(run));
  const order = Array.from(layers.keys()).sort(
    (a, b) => (importance[b] as number) - (importance[a] as number),
  );
  const own = new Set<number>();
  let sum = 0;
  for (const i of order) {
    if (sum >= settings.threshold) break;
    own.add(i);
    sum += importance[i] as number;
  }
  const first = new Map<string, number>();
  for (const [i, layer] of layers.entries()) {
    const key = [layer.module.split('.').at(-1), layer.N, layer.K, layer.r].join(' ');
    if (!own.has(i) && !first.has(key)) first.set(key, i);
    (state.leader as Float64Array)[i] = 1 + (own.has(i) ? i : (first.get(key) as number));
    const fresh = layer.initial(run.seedOf('choose', i));
    for (const [part, parameter] of Object.entries(layer.parameters)) {
      parameter.write(fresh[part] as Float32Array);
    }
  }
  run.optimizer.restart();
}

/** The share of each layer in the mean of `‖scaling · B · A · x‖²`. */
function measured(run: Run): readonly number[] {
  const { layers, settings } = run;
  const at = new Map(layers.map((layer, i) => [layer.module, { layer, i, ...valuesOf(layer) }]));
  const sums = layers.map(() => 0);
  for (let batch = 0; batch < settings.batches; batch++) {
    run.observeInputs({ part: 0, parts: 1, index: batch }, (module, x) => {
      const found = at.get(module);
      if (found === undefined) return;
      sums[found.i] = (sums[found.i] as number) + outputSize(found, x);
    });
  }
  const whole = sums.reduce((a, b) => a + b, 0);
  return sums.map((sum) => (whole === 0 ? 1 / layers.length : sum / whole));
}

const valuesOf = (layer: RuleLayer) => {
  const { loraA, loraB } = factorsOf(layer);
  return { a: loraA.values(), b: loraB.values() };
};

/** Mean over the rows x of `‖scaling · B · A · x‖²`, by the Gram matrix of B. */
function outputSize(
  {
    layer,
    a,
    b,
  }: { readonly layer: RuleLayer; readonly a: Float32Array; readonly b: Float32Array },
  x: Float32Array,
): number {
  const { r, N, K, scaling } = layer;
  const gram = new Float64Array(r * r);
  for (let n = 0; n < N; n++) {
    for (let i = 0; i < r; i++) {
      for (let j = 0; j < r; j++) {
        const at = i * r + j;
        gram[at] = (gram[at] as number) + (b[n * r + i] as number) * (b[n * r + j] as number);
      }
    }
  }
  const rows = x.length / K;
  const h = new Float64Array(r);
  let sum = 0;
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < r; i++) {
      let dot = 0;
      for (let k = 0; k < K; k++) dot += (a[i * K + k] as number) * (x[row * K + k] as number);
      h[i] = dot;
    }
    for (let i = 0; i < r; i++) {
      for (let j = 0; j < r; j++) {
        sum += (gram[i * r + j] as number) * (h[i] as number) * (h[j] as number);
      }
    }
  }
  return (scaling * scaling * sum) / rows;
}
