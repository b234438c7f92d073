/**
 * Captured training on the emulated GPU: losses, norms and values have the bits of uncaptured steps, a step is one
 * launch without an allocation, and what cannot be captured runs as before.
 */
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { restoreRunState, saveRunState } from '../../lib/finetune/run-state.js';
import {
  defineOptimizer,
  Indices,
  launchCount,
  memoryUsage,
  resetPeakMemory,
  scope,
  synchronize,
  Tensor,
  Trainer,
  type TrainPass,
  workspaceBytes,
} from '../../lib/index.js';
import type { ModelTrainer, TrainOptions } from '../../lib/train/model-trainer.js';
import { codeOf } from '../checkpoint/raw-file.js';
import { type TinyTrainer, temporaryFolder, tinyTrainer, valuesOf } from '../finetune/setup.js';

const device = 'cuda-emulated';
const kTiny = { hiddenSize: 16, intermediateSize: 24, headDim: 4, numHiddenLayers: 1 };
const kSteps = 4;

type Settings = Parameters<typeof tinyTrainer>[2];

const make = (settings: Settings): TinyTrainer =>
  tinyTrainer(kTiny, { format: 'nf4' }, { T: 5, batch: 1, steps: kSteps, ...settings });

async function train(trainer: ModelTrainer, steps: number) {
  const found: { loss: number; gradientNorm: number; lr: number }[] = [];
  for (let i = 0; i < steps; i++) {
    const { loss, gradientNorm, lr } = await trainer.train();
    found.push({ loss, gradientNorm, lr });
  }
  return found;
}

/** The steps of a run, and the values after it. */
async function run(settings: Settings, steps = kSteps) {
  const { trainer, dispose } = make(settings);
  const results = await train(trainer, steps);
  const values = valuesOf(trainer);
  const { notCaptured } = trainer;
  dispose();
  return { results, values, notCaptured };
}

const kCases: readonly (readonly [string, Partial<TrainOptions> & Settings])[] = [
  ['dropout, two passes, clipping', { adapter: { dropout: 0.25 }, accumulate: 2, clip: 0.5 }],
  [
    'bf16, recomputed blocks, dropout',
    { adapter: { dropout: 0.3 }, dtype: 'bf16', recompute: true },
  ],
];

describe('captured steps of a decoder', () => {
  it.each(kCases)(
    'have the bits of uncaptured ones, and the losses of the CPU: %s',
    async (_, settings) => {
      const captured = await run({ ...settings, device });
      expect(captured.notCaptured).toBeUndefined();
      const plain = await run({ ...settings, device, capture: false });
      expect(captured.results).toEqual(plain.results);
      expect(captured.values).toEqual(plain.values);
      const { results } = captured;
      expect(new Set(results.map(({ loss }) => loss)).size).toBe(kSteps);
      expect(new Set(results.map(({ lr }) => lr)).size).toBeGreaterThan(2);
      const cpu = await run(settings);
      expect(cpu.notCaptured).toMatch(/cpu is no CUDA device/);
      const bound = settings.dtype === 'bf16' ? 2e-2 : 2e-5;
      for (const [i, { loss }] of results.entries()) {
        const expected = (cpu.results[i] as { loss: number }).loss;
        expect(Math.abs(loss - expected)).toBeLessThan(bound * expected);
      }
    },
  );

  it('is one launch and no allocation a step, in memory that is freed', async () => {
    await synchronize(device);
    const empty = memoryUsage(device);
    const { trainer, dispose } = make({ device, accumulate: 2, adapter: { dropout: 0.1 } });
    await train(trainer, 3);
    await synchronize(device);
    resetPeakMemory(device);
    const [launches, { liveBytes, liveTensors }, workspace] = [
      launchCount(device),
      memoryUsage(device),
      workspaceBytes(device),
    ];
    await train(trainer, 2);
    await synchronize(device);
    expect(launchCount(device) - launches).toBe(2);
    expect(memoryUsage(device)).toEqual({ liveBytes, liveTensors, peakBytes: liveBytes });
    expect(workspaceBytes(device)).toBe(workspace);
    dispose();
    await synchronize(device);
    const left = memoryUsage(device);
    expect([left.liveBytes, left.liveTensors]).toEqual([empty.liveBytes, empty.liveTensors]);
  });

  it('goes on from a checkpoint in the middle with the bits of a run that never stopped', async () => {
    const settings = { device, adapter: { dropout: 0.25 }, steps: 5 } as const;
    const whole = await run(settings, 5);
    const first = make(settings);
    const early = await train(first.trainer, 3);
    const file = path.join(temporaryFolder(), 'state');
    const history = { train: early.map(({ loss }) => loss), heldOut: [] };
    saveRunState(file, first.trainer, {}, history);
    first.dispose();
    const second = make(settings);
    await train(second.trainer, 3); // captured before the state is restored into its tensors
    restoreRunState('test', file, second.trainer, {});
    const late = await train(second.trainer, 2);
    expect([...early, ...late]).toEqual(whole.results);
    expect(valuesOf(second.trainer)).toEqual(whole.values);
    second.dispose();
  });

  it('runs without a graph where a method draws on the host, and says which', async () => {
    const settings = { device, adapter: { method: 'dylora', r: 2 } } as const;
    const found = await run(settings, 3);
    expect(found.notCaptured).toMatch(
      /^dylora\.forward: the method must be one that draws nothing on the host/,
    );
    const plain = await run({ ...settings, capture: false }, 3);
    expect(found.results).toEqual(plain.results);
    expect(found.values).toEqual(plain.values);
  });
});

describe('Trainer.capture', () => {
  /** half of the squared distance to rows of a table, chosen by ids. */
  const distance =
    (p: Tensor, goal: Tensor, place: { seen: number }): TrainPass =>
    (tape) => {
      place.seen++;
      const difference = tape.add(tape.variable(p), tape.constant(goal), 1, -1);
      const flat = tape.dropout(tape.reshape(difference, [1, p.size]), 0.5);
      return tape.reshape(tape.sum(tape.multiply(flat, flat, 0.5), 1), [1]);
    };

  it.each(['cpu', device] as const)(
    'follows what its tensors hold, and alternates with other steps: %s',
    async (on) => {
      await scope(async () => {
        const found = await Promise.all(
          [true, false].map(async (capture) => {
            const p = Tensor.from([1, 2, 3, 4], [4], { device: on });
            const goal = Tensor.zeros([4], { device: on });
            const other = Tensor.from([5, 5, 5, 5], [4], { device: on });
            const place = { seen: 0 };
            const trainer = new Trainer([{ name: 'p', role: 'other', tensor: p }], { clip: 3 });
            const pass = distance(p, goal, place);
            const captured = trainer.capture(pass, { warmup: 1 });
            const steps = [];
            for (let i = 0; i < 5; i++) {
              goal.write([i, -i, 0, 1]);
              const options = { lr: 0.1 / (i + 1) };
              steps.push(capture ? captured.step(options) : trainer.step(pass, options));
              if (i === 3) steps.push(trainer.step(distance(p, other, { seen: 0 }), options));
            }
            const ran = place.seen;
            expect(captured.launches === undefined).toBe(!(capture && on === device));
            const numbers = await Promise.all(steps.map((step) => step.read()));
            return { ran, steps: trainer.steps, numbers, values: [...p.readSync()] };
          }),
        );
        const [captured, plain] = found as [(typeof found)[0], (typeof found)[0]];
        expect(captured).toEqual({ ...plain, ran: on === device ? 2 : 5 });
        expect(captured.steps).toBe(6);
      });
    },
  );

  it('rejects what it cannot replay, and leaves the trainer usable', async () => {
    await scope(async () => {
      const p = Tensor.from([1, 2], [2], { device });
      const parameters = [{ name: 'p', role: 'other', tensor: p }] as const;
      const sgd = defineOptimizer({
        optimizer: 'sgd',
        reference: 'Robbins and Monro, 1951',
        defaults: {},
        state: () => ({}),
        step: () => {},
      });
      expect(() => new Trainer(parameters, { optimizer: sgd }).capture(() => p as never)).toThrow(
        'Trainer.capture: the optimiser must be capturable, got "sgd"',
      );
      const trainer = new Trainer(parameters);
      const misspelt = (options: object) => trainer.capture(() => p as never, options);
      expect(() => misspelt({ warmUp: 1 })).toThrow('(did you mean warmup?)');
      expect(() => misspelt({ warmup: 1 }).step({ lR: 1 } as never)).toThrow('(did you mean lr?)');
      const goal = Tensor.zeros([2], { device });
      const pass = distance(p, goal, { seen: 0 });
      const bad = trainer.capture(
        (tape, place) => {
          Indices.from([1], { limit: 2, device });
          return pass(tape, place) as never;
        },
        { warmup: 0 },
      );
      const before = p.readSync();
      expect(() => bad.step()).toThrow(/^Indices\.from: data must be on the device before/);
      expect(codeOf(() => bad.step())).toBe('ERR_UNSUPPORTED');
      expect([trainer.steps, p.readSync()]).toEqual([0, before]);
      const good = trainer.capture(pass, { warmup: 0 });
      expect((await good.step().read()).loss).toBeGreaterThan(0);
      expect(p.readSync()).not.toEqual(before);
      goal.dispose();
      expect(codeOf(() => good.step())).toBe('ERR_DISPOSED');
      expect(trainer.steps).toBe(1);
      good.dispose();
      expect(codeOf(() => good.step())).toBe('ERR_DISPOSED');
      expect(codeOf(() => trainer.capture(pass, { warmup: -1 }))).toBe('ERR_VALUE');
    });
  });
});
