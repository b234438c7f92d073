import { defineRule } from '../definition/define.js';
import type { RuleLayer, RuleParameter, RuleRun } from '../definition/run.js';
import { below } from '../parts/checks.js';

/** Settings of {@link lte}. */
export interface LteSettings {
  readonly heads: number;
  /** Steps of a head between two merges. */
  readonly every: number;
}

type Run = RuleRun<LteSettings>;

/** Which head takes a step, in which round, and how many steps it has taken. */
function placeOf(step: number, { heads, every }: LteSettings) {
  const round = Math.floor(step / (heads * every));
  return { round, head: Math.floor(step / every) % heads, own: round * every + (step % every) };
}

/**
 * LoRA the explorer: `heads` adapters, each on a part of the sequences of its own and with its own optimiser, whose updates are
 * averaged every `every` steps. Nothing is reset: the base becomes W + mean(Δₘ), and head n trains over it less its own Δₙ, so
 * that its function begins at the mean. Heads do not see each other between merges, so the run trains them one after another;
 * `every` steps of each are a round. In the end the folder has the mean.
 */
export const lte = defineRule<LteSettings>({
  rule: 'lte',
  reference:
    'Huh et al., Training Neural Networks from Scratch with Parallel Low-Rank Adapters, 2024, arXiv:2402.16828',
  defaults: { heads: 2, every: 5 },
  claims: ['base', 'rate', 'data'],
  adapters: ['lora'],
  resetsOptimizer: true,
  writesStates: true,
  check: ({ heads, every }, { steps }) =>
    below('heads', heads, 1) ??
    below('every', every, 1) ??
    (steps % (heads * every) === 0
      ? undefined
      : ['heads times every', `a divisor of the steps (${steps})`, String(heads * every)]),
  state: ({ parameters, settings: { heads } }) =>
    Object.fromEntries(
      Array.from({ length: heads }, (_, head) =>
        [...parameters.values()].flatMap(({ name, shape, states }) => [
          [`begin/${head}/${name}`, shape],
          [`head/${head}/${name}`, shape],
          ...states.map((state) => [`${state}/${head}/${name}`, shape] as const),
        ]),
      ).flat(),
    ),
  rate: ({ step, steps, warmup, schedule, settings }) => {
    const { heads } = settings;
    return schedule(placeOf(step, settings).own, Math.ceil(warmup / heads), steps / heads);
  },
  data: ({ step, settings }) => {
    const { head, own } = placeOf(step, settings);
    return { part: head, parts: settings.heads, index: own };
  },
  prepare: (run) => {
    for (const [i, layer] of run.layers.entries()) {
      for (let head = 0; head < run.settings.heads; head++) {
        const fresh = layer.initial(run.seedOf('head', head, i));
        for (const { name, part } of Object.values(layer.parameters)) {
          arrayOf(run, 'head', head, name).set(fresh[part] as Float32Array);
        }
      }
    }
  },
  before: (run) => {
    const { settings, step } = run;
    if (step % settings.every !== 0) return;
    const { round, head } = placeOf(step, settings);
    if (head === 0) beginRound(run);
    for (const layer of run.layers) rebase(run, layer, 'begin', round === 0 ? undefined : head);
    run.optimizer.restart(round * settings.every);
    for (const parameter of run.parameters.values()) {
      const { name } = parameter;
      parameter.write(Float32Array.from(arrayOf(run, 'head', head, name)));
      for (const state of parameter.states) {
        parameter.writeState(state, Float32Array.from(arrayOf(run, state, head, name)));
      }
    }
  },
  after: (run) => {
    if (run.step % run.settings.every !== 0) return;
    const { head } = placeOf(run.step - 1, run.settings);
    for (const parameter of run.parameters.values()) {
      const { name } = parameter;
      arrayOf(run, 'head', head, name).set(parameter.values());
      for (const state of parameter.states) {
        arrayOf(run, state, head, name).set(parameter.state(state));
      }
    }
  },
  finish: (run) => {
    for (const layer of run.layers) {
      rebase(run, layer, 'head', undefined);
      const { loraB } = layer.parameters;
      loraB?.write(new Float32Array(loraB.values().length));
    }
  },
});

const arrayOf = ({ state }: Run, kind: string, head: number, name: string) =>
  state[`${kind}/${head}/${name}`] as Float64Array;

function beginRound(run: Run): void {
  for (const { name } of run.parameters.values()) {
    for (let head = 0; head < run.settings.heads; head++) {
      arrayOf(run, 'begin', head, name).set(arrayOf(run, 'head', head, name));
    }
  }
}

/** The base with the mean of all heads, less the update of the one that trains over it. */
function rebase(run: Run, layer: RuleLayer, kind: 'begin' | 'head', own: number | undefined): void {
  const { heads } = run.settings;
  const [a, b] = [layer.parameters.loraA, layer.parameters.loraB] as [RuleParameter, RuleParameter];
  const updates = Array.from({ length: heads }, (_, head) => {
    const share = 1 / heads - (head === own ? 1 : 0);
    const up = arrayOf(run, kind, head, b.name);
    return {
      a: Float32Array.from(arrayOf(run, kind, head, a.name)),
      b: Float32Array.from(up, (value) => value * share),
    };
  });
  layer.rebase(updates.filter((update) => update.b.some((value) => value !== 0)));
}
