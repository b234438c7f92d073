import { defineRule } from '../definition/define.js';
import type { RuleLayer, RuleRun } from '../definition/run.js';
import { below } from '../parts/checks.js';
import { factorsOf, gateOf, kGated } from '../parts/gates.js';
import { noSplit, trainingPart, validationPart } from '../parts/splits.js';
import { noSteps, stepsOf } from '../parts/steps.js';

/** Settings of {@link alora}. */
export interface AloraSettings {
  /** Ranks of a layer in the beginning; its adapter has room for r. 0: half of them. */
  readonly begin: number;
  /** Ranks that move in each round. */
  readonly move: number;
  readonly rounds: number;
  /** Steps before the first round and between rounds; below 1 a share of the run's. */
  readonly every: number;
  /** Share of the sequences that scores ranks, in tenths. */
  readonly validation: number;
}

type Run = RuleRun<AloraSettings>;

/**
 * Ranks are moved between layers by ablation. In each round every rank has a score: the loss of the model without
 * this rank, less the loss of the model with this rank alone, on sequences that are not trained on. The `move`
 * ranks with the smallest scores of all layers are removed, and layers that lost none get a new rank each, those with the largest
 * mean score first, where the adapter has room. A new rank begins with a loraB of 0. All ranks have a gate of 1 that is not
 * trained.
 */
export const alora = defineRule<AloraSettings>({
  rule: 'alora',
  reference:
    'Liu et al., ALoRA: Allocating Low-Rank Adaptation for Fine-tuning Large Language Models, 2024, arXiv:2403.16187',
  defaults: { begin: 0, move: 4, rounds: 3, every: 0.2, validation: 0.1 },
  claims: ['shapes', 'step', 'data'],
  adapters: kGated,
  writesStates: true,
  check: ({ begin, move, rounds, every, validation }, { steps }) =>
    below('begin', begin, 0) ??
    below('move', move, 1) ??
    below('rounds', rounds, 1) ??
    noSteps('every', every) ??
    noSplit('validation', validation) ??
    (stepsOf(every, steps) >= 1 && stepsOf(every, steps) * rounds < steps
      ? undefined
      : ['every times rounds', `from 1 to below the steps (${steps})`, `${every} times ${rounds}`]),
  state: ({ layers }) =>
    Object.fromEntries(layers.map(({ module, r }) => [`active/${module}`, [r]])),
  data: ({ settings }) => trainingPart(settings.validation),
  trains: (run, name) => run.layers.every((layer) => gateOf(layer).name !== name),
  prepare: (run) => {
    for (const layer of run.layers) {
      const { r } = layer;
      const begin = Math.min(r, run.settings.begin || Math.ceil(r / 2));
      activeOf(run, layer).fill(1, 0, begin);
      const { loraB } = factorsOf(layer);
      loraB.write(new Float32Array(loraB.values().length));
      openGates(run, layer);
    }
  },
  after: (run) => {
    const { step, steps, settings } = run;
    const every = stepsOf(settings.every, steps);
    const round = step / every;
    if (!Number.isInteger(round) || round < 1 || round > settings.rounds) return;
    const scores = run.layers.map((layer) => ({ layer, ranks: scoresOf(run, layer, round) }));
    moveRanks(run, scores);
  },
  finish: (run) => {
    for (const layer of run.layers) layer.keepRanks(activeOf(run, layer));
  },
});

interface Scored {
  readonly layer: RuleLayer;
  /** Of the active ranks. */
  readonly ranks: readonly { readonly rank: number; readonly score: number }[];
}

const activeOf = ({ state }: Run, { module }: RuleLayer) =>
  state[`active/${module}`] as Float64Array;

const setGates = (layer: RuleLayer, on: (rank: number) => boolean) =>
  gateOf(layer).write(Float32Array.from({ length: layer.r }, (_, rank) => (on(rank) ? 1 : 0)));

const openGates = (run: Run, layer: RuleLayer) =>
  setGates(layer, (rank) => activeOf(run, layer)[rank] === 1);

/** The loss without a rank, less the loss with it alone, for each active rank of a layer. */
function scoresOf(run: Run, layer: RuleLayer, round: number): Scored['ranks'] {
  const pass = { ...validationPart(run.settings.validation), index: round };
  const active = activeOf(run, layer);
  const ranks = Array.from(active.keys()).filter((rank) => active[rank] === 1);
  return ranks.map((rank) => {
    setGates(layer, (own) => active[own] === 1 && own !== rank);
    const without = run.lossOf(pass);
    for (const each of run.layers) setGates(each, (own) => each === layer && own === rank);
    const alone = run.lossOf(pass);
    for (const each of run.layers) openGates(run, each);
    return { rank, score: without - alone };
  });
}

/** Removes the ranks with the smallest scores, and gives them to layers that lost none. */
function moveRanks(run: Run, scored: readonly Scored[]): void {
  const all = scored.flatMap(({ layer, ranks }) => ranks.map((own) => ({ layer, ...own })));
  const lost = all.sort((a, b) => a.score - b.score).slice(0, run.settings.move);
  for (const { layer, rank } of lost) activeOf(run, layer)[rank] = 0;
  const mean = ({ ranks }: Scored) =>
    ranks.reduce((sum, { score }) => sum + score, 0) / Math.max(1, ranks.length);
  const winners = scored
    .filter(({ layer }) => lost.every((own) => own.layer !== layer))
    .filter(({ layer }) => activeOf(run, layer).includes(0))
    .sort((a, b) => mean(b) - mean(a))
    .slice(0, lost.length);
  for (const { layer } of winners) grow(run, layer);
  for (const { layer } of scored) openGates(run, layer);
}

/** Opens the first rank that is free: a new row of loraA, a column of 0 of loraB, and no memory of the optimiser. */
function grow(run: Run, layer: RuleLayer): void {
  const active = activeOf(run, layer);
  const rank = active.indexOf(0);
  active[rank] = 1;
  const { r, K } = layer;
  const { loraA, loraB } = factorsOf(layer);
  const fresh = layer.initial(run.seedOf(layer.module, run.step)).loraA as Float32Array;
  const inRow = (i: number) => Math.floor(i / K) === rank;
  const inColumn = (i: number) => i % r === rank;
  loraA.write(loraA.values().map((value, i) => (inRow(i) ? (fresh[i] as number) : value)));
  loraB.write(loraB.values().map((value, i) => (inColumn(i) ? 0 : value)));
  for (const [factor, own] of [
    [loraA, inRow],
    [loraB, inColumn],
  ] as const) {
    for (const name of factor.states) {
      if (factor.state(name).length !== factor.values().length) continue;
      factor.writeState(
        name,
        factor.state(name).map((value, i) => (own(i) ? 0 : value)),
      );
    }
  }
}
