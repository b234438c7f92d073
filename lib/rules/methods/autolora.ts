import { defineRule } from '../definition/define.js';
import type { RuleLayer, RuleRun } from '../definition/run.js';
import { hypergradient } from '../parts/bilevel.js';
import { factorsOf, gateOf, kGated } from '../parts/gates.js';
import { noSplit, trainingPart, validationPart } from '../parts/splits.js';
import { noSteps, stepsOf } from '../parts/steps.js';

/** Settings of {@link autolora}. */
export interface AutoloraSettings {
  /** Steps that look for ranks; below 1 a share of the run's. */
  readonly search: number;
  /** Share of the sequences that chooses ranks, in tenths. */
  readonly validation: number;
  /** Learning rate of the gates. */
  readonly gateRate: number;
  /** Times 1 / r: a rank with a smaller gate is removed. */
  readonly threshold: number;
  /** Do gradients of the gates look through a step of the factors? It takes three passes more, not one. */
  readonly unrolled: boolean;
}

type Run = RuleRun<AutoloraSettings>;

const kBeta1 = 0.5;
const kBeta2 = 0.999;
const kEps = 1e-8;

/**
 * Ranks by meta learning: in the `search` steps each rank of a layer has a gate, the softmax of a parameter. Factors are trained on
 * one part of the sequences, gates on the other, by the gradient of the loss after a step of the factors, with Adam. Ranks whose
 * gate is below `threshold / r` are removed then, at most all but one. The rest of the run trains new factors of those ranks on all
 * sequences, with gates of 1 and a new optimiser.
 */
export const autolora = defineRule<AutoloraSettings>({
  rule: 'autolora',
  reference:
    'Zhang et al., AutoLoRA: Automatically Tuning Matrix Ranks in Low-Rank Adaptation Based on Meta Learning, 2024, arXiv:2403.09113',
  defaults: { search: 0.5, validation: 0.3, gateRate: 0.01, threshold: 1, unrolled: true },
  claims: ['shapes', 'step', 'rate', 'data'],
  adapters: kGated,
  resetsOptimizer: true,
  check: ({ search, validation, gateRate, threshold }, { steps }) =>
    noSteps('search', search) ??
    noSplit('validation', validation) ??
    (gateRate >= 0 ? undefined : (['gateRate', 'at least 0', String(gateRate)] as const)) ??
    (threshold >= 0 ? undefined : (['threshold', 'at least 0', String(threshold)] as const)) ??
    (stepsOf(search, steps) < steps
      ? undefined
      : ['search', `below the steps (${steps})`, String(search)]),
  state: ({ layers }) =>
    Object.fromEntries(
      layers.flatMap(({ module, r }) =>
        ['theta', 'slope', 'm', 'v', 'kept'].map((name) => [`${name}/${module}`, [r]]),
      ),
    ),
  rate: ({ step, steps, warmup, schedule, settings }) => {
    const search = stepsOf(settings.search, steps);
    const [begin, length] = step < search ? [0, search] : [search, steps - search];
    return schedule(step - begin, Math.ceil((warmup * length) / steps), length);
  },
  data: ({ step, steps, settings }) =>
    step < stepsOf(settings.search, steps) ? trainingPart(settings.validation) : undefined,
  prepare: (run) => {
    for (const layer of run.layers) begin(run, layer, softmax(arrayOf(run, 'theta', layer)));
  },
  gradients: (run) => {
    const { layers, lr, step, steps, settings, parameters } = run;
    const upper = layers.map(gateOf);
    if (step < stepsOf(settings.search, steps)) {
      const gates = new Set<unknown>(upper);
      const found = hypergradient(run, {
        lower: [...parameters.values()].filter((parameter) => !gates.has(parameter)),
        upper,
        training: trainingPart(settings.validation),
        validation: validationPart(settings.validation),
        rate: settings.unrolled ? lr : 0,
      });
      for (const layer of layers) {
        arrayOf(run, 'slope', layer).set(found.get(gateOf(layer).name) as Float32Array);
      }
    }
    // The optimiser of the run leaves gates alone.
    for (const gate of upper) gate.gradient = undefined;
  },
  after: (run) => {
    const { step, steps, settings, layers } = run;
    const search = stepsOf(settings.search, steps);
    if (step <= search) for (const layer of layers) moveGates(run, layer);
    if (step < search) {
      for (const layer of layers) {
        gateOf(layer).write(Float32Array.from(softmax(arrayOf(run, 'theta', layer))));
      }
    } else if (step === search) {
      for (const layer of layers) {
        const gates = softmax(arrayOf(run, 'theta', layer));
        const most = gates.indexOf(Math.max(...gates));
        const kept = arrayOf(run, 'kept', layer);
        const limit = settings.threshold / layer.r;
        for (const [i, gate] of gates.entries()) kept[i] = gate >= limit || i === most ? 1 : 0;
        begin(run, layer, kept);
      }
      run.optimizer.restart();
    }
  },
  finish: (run) => {
    for (const layer of run.layers) layer.keepRanks(arrayOf(run, 'kept', layer));
  },
});

const arrayOf = ({ state }: Run, name: string, { module }: RuleLayer) =>
  state[`${name}/${module}`] as Float64Array;

function softmax(theta: Float64Array): Float64Array {
  const most = Math.max(...theta);
  const powers = theta.map((value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

/** New factors, with an update of 0, and these gates. */
function begin(run: Run, layer: RuleLayer, gates: Float64Array): void {
  const { loraA, loraB } = factorsOf(layer);
  loraA.write(layer.initial(run.seedOf(layer.module, run.step)).loraA as Float32Array);
  loraB.write(new Float32Array(loraB.values().length));
  gateOf(layer).write(Float32Array.from(gates));
}

/** A step of Adam on the parameters of the softmax. */
function moveGates(run: Run, layer: RuleLayer): void {
  const [theta, gradient, m, v] = ['theta', 'slope', 'm', 'v'].map((name) =>
    arrayOf(run, name, layer),
  ) as [Float64Array, Float64Array, Float64Array, Float64Array];
  const gates = softmax(theta);
  const mean = gates.reduce((sum, gate, i) => sum + gate * (gradient[i] as number), 0);
  const t = run.step;
  for (let i = 0; i < theta.length; i++) {
    const g = (gates[i] as number) * ((gradient[i] as number) - mean);
    m[i] = kBeta1 * (m[i] as number) + (1 - kBeta1) * g;
    v[i] = kBeta2 * (v[i] as number) + (1 - kBeta2) * g * g;
    const step = (m[i] as number) / (1 - kBeta1 ** t);
    const size = Math.sqrt((v[i] as number) / (1 - kBeta2 ** t)) + kEps;
    theta[i] = (theta[i] as number) - (run.settings.gateRate * step) / size;
  }
}
