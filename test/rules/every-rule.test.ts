// Every rule on the bundled model: a resumed run has the bits of one that never stopped, and the loss of what it saw falls.
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { restoreRunState, saveRunState } from '../../lib/finetune/run-state.js';
import { type AnyRule, dequantize, QuantizedWeight, ruleList } from '../../lib/index.js';
import { linearsOf } from '../../lib/model/decoder-weights.js';
import type { ModelTrainer } from '../../lib/train/model-trainer.js';
import { temporaryFolder } from '../finetune/setup.js';
import {
  contents,
  free,
  loadText,
  lossOf,
  type RuledOptions,
  ruledTrainer,
  type Text,
} from './setup.js';

const kSteps = 6;

interface Short extends RuledOptions {
  readonly rule?: Readonly<Record<string, unknown>>;
}

/** Settings with which all that a rule does happens in a run of six steps, before and after the third. */
const SHORT: Readonly<Record<string, Short>> = {
  adalora: {
    ...{ method: 'adalora', settings: { r: 4 }, train: { lr: 1e-2 } },
    rule: { target: 2, initial: 1, final: 1, every: 2 },
  },
  aflora: {
    ...{ method: 'aflora', settings: { r: 4 }, train: { lr: 1e-2 } },
    rule: { initial: 1, final: 1 },
  },
  alora: { method: 'sora', settings: { r: 4 }, rule: { begin: 2, move: 3, rounds: 2, every: 2 } },
  autolora: { method: 'sora', settings: { r: 4 }, rule: { search: 4, threshold: 1 } },
  bilora: { method: 'adalora', settings: { r: 4 }, train: { lr: 1e-2 } },
  increlora: {
    ...{ method: 'adalora', settings: { r: 4 }, train: { lr: 1e-2 } },
    rule: { target: 2, initial: 1, every: 2, top: 2 },
  },
  'lora-drop': { rule: { sample: 2, threshold: 0.5, batches: 1 } },
  'dora-dynamic': {
    ...{ method: 'adalora', settings: { r: 4 }, train: { lr: 1e-2 } },
    rule: { target: 2, initial: 1, final: 1, every: 2 },
  },
  dropbp: { rule: { rate: 0.5, measure: 4 } },
  dylora: { method: 'dylora', settings: { r: 4 } },
  'gs-lora': { rule: { weight: 20, initial: 1 } },
  'i-lora': { rule: { keep: 0.5 } },
  lte: { rule: { heads: 3, every: 1 } },
  cola: { rule: { links: 3 } },
  'periodic-lora': { rule: { every: 2, momentum: 0.25 } },
  relora: { rule: { every: 2, rewarm: 1 } },
};

let text: Text;
beforeAll(async () => {
  text = await loadText(32);
});

function make(rule: AnyRule): ModelTrainer {
  const { rule: settings = {}, train, ...options } = SHORT[rule.rule] ?? {};
  const rules = [{ rule, settings }];
  return ruledTrainer(text, { ...options, train: { steps: kSteps, ...train, rules } });
}

/** The bits of the bases, which a checkpoint does not have. */
const bases = ({ decoder }: ModelTrainer) =>
  decoder.weights.layers.flatMap(linearsOf).map(({ place, w }) => {
    const dense = QuantizedWeight.is(w) ? dequantize(w) : w;
    return [place.module, dense.readSync()] as const;
  });

const train = async (trainer: ModelTrainer, steps: number) => {
  const losses: number[] = [];
  for (let i = 0; i < steps; i++) losses.push((await trainer.train()).loss);
  return losses;
};

describe.each(ruleList.map((rule) => [rule.rule, rule] as const))('%s', (_, rule) => {
  it('resumes in the middle with the same bits, and lowers the loss', async () => {
    const whole = make(rule);
    const before = await lossOf(whole, kSteps);
    const losses = await train(whole, kSteps);
    const first = make(rule);
    const early = await train(first, kSteps / 2);
    const file = path.join(temporaryFolder(), 'state');
    saveRunState(file, first, {}, { train: early, heldOut: [] });
    const second = make(rule);
    restoreRunState('test', file, second, {});
    const late = await train(second, kSteps / 2);
    expect([...early, ...late]).toEqual(losses);
    for (const trainer of [whole, second]) trainer.finish();
    expect(contents(second)).toEqual(contents(whole));
    expect(bases(second)).toEqual(bases(whole));
    // A run whose folder could not be written finishes twice.
    const finished = contents(whole);
    whole.finish();
    expect(contents(whole)).toEqual(finished);
    expect(await lossOf(whole, kSteps)).toBeLessThan(before);
    for (const trainer of [whole, first, second]) free(trainer);
  });
});
