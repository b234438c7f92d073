// Every optimiser on the bundled model: a resumed run has the bits of one that never stopped, and the loss of what it saw falls.
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { restoreRunState, saveRunState } from '../../lib/finetune/run-state.js';
import { type AnyOptimizer, adapters, optimizerList } from '../../lib/index.js';
import type { TrainedMethod } from '../../lib/train/adapter-set.js';
import type { ModelTrainer, TrainOptions } from '../../lib/train/model-trainer.js';
import { temporaryFolder } from '../finetune/setup.js';
import { type Bundled, loadBundled, trainerOf } from './bundled.js';

const kSteps = 6;

/** Settings with which small tensors take the path of large ones, and what is rare happens in a short run. */
const SETTINGS: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  galore: { rank: 4, gap: 2, scale: 1 },
  flora: { rank: 4, kappa: 2 },
  'schedule-free': { warmupSteps: 2 },
  'lora-rite': { skip: 0 },
};

const settingsOf = ({ optimizer, defaults }: AnyOptimizer) => ({
  ...('minSize' in defaults ? { minSize: 0 } : {}),
  ...SETTINGS[optimizer],
});

let bundled: Bundled;
beforeAll(async () => {
  bundled = await loadBundled(32);
});
afterAll(() => bundled.decoder.dispose());

function make(optimizer: AnyOptimizer, more: Partial<TrainOptions> = {}): ModelTrainer {
  const methods = { sora: adapters.sora, 't-sign-sgd': adapters.lotaQaf };
  const method = methods[optimizer.optimizer as keyof typeof methods] ?? adapters.lora;
  return trainerOf(
    bundled,
    { optimizer, optimizerSettings: settingsOf(optimizer), weightDecay: 0.01, ...more },
    method as unknown as TrainedMethod,
    ['q_proj', 'v_proj', 'down_proj'],
  );
}

const contents = ({ trainer }: ModelTrainer) =>
  trainer.stored.map(({ name, read }) => [name, read().slice()] as const);

/** Mean loss of the sequences of the run's steps, with what the optimiser evaluates. */
const lossOf = async (trainer: ModelTrainer): Promise<number> => {
  const { train } = trainer.data;
  const seen = Array.from({ length: kSteps }, (_, step) => trainer.sequencesOfStep(step)).flat();
  const of = (indices: number[]) => train.batch(indices.map((i) => seen[i] as number));
  const { length: count } = seen;
  const { T } = train;
  return trainer.evaluate({ count, T, learned: count * T, whole: true, batch: of });
};

const free = (trainer: ModelTrainer) => {
  trainer.dispose();
  trainer.adapters.dispose();
};

describe.each(optimizerList.map((optimizer) => [optimizer.optimizer, optimizer] as const))(
  '%s',
  (_, optimizer) => {
    it('resumes in the middle with the same bits, and lowers the loss', async () => {
      const whole = make(optimizer);
      const before = await lossOf(whole);
      for (let i = 0; i < kSteps; i++) await whole.train();
      const first = make(optimizer);
      for (let i = 0; i < kSteps / 2; i++) await first.train();
      const file = path.join(temporaryFolder(), 'state');
      // An evaluation before the state is saved changes nothing.
      await lossOf(first);
      saveRunState(file, first, {}, { train: [3, 2, 1], heldOut: [] });
      const second = make(optimizer);
      restoreRunState('test', file, second, {});
      for (let i = 0; i < kSteps / 2; i++) await second.train();
      expect(contents(second)).toEqual(contents(whole));
      expect(await lossOf(whole)).toBeLessThan(before);
      for (const trainer of [whole, first, second]) free(trainer);
    });
  },
);

it('a state of another optimiser is refused, with both names and what to do', () => {
  const [adamw, lion] = ['adamw', 'lion'].map(
    (name) => optimizerList.find(({ optimizer }) => optimizer === name) as AnyOptimizer,
  ) as [AnyOptimizer, AnyOptimizer];
  const [from, to] = [make(lion), make(adamw)];
  const file = path.join(temporaryFolder(), 'state');
  saveRunState(file, from, {}, { train: [], heldOut: [] });
  const kept = contents(to);
  const call = () => restoreRunState('test', file, to, {});
  expect(call).toThrow(
    /must have the state of the optimizer adamw, got that of "lion"\. Name that one with --optimizer/,
  );
  expect(call).toThrow(expect.objectContaining({ code: 'ERR_CHECKPOINT' }));
  expect(contents(to)).toEqual(kept);
  free(from);
  free(to);
});
