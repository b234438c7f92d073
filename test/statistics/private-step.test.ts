// Private steps: what is clipped, what is divided, what the noise is, who is taken; and that they can be repeated.
import { describe, expect, it } from 'vitest';
import { optimizers, scope, Tensor, Trainer, type TrainerOptions } from '../../lib/index.js';
import { derivedSeed, poissonSample } from '../../lib/statistics/privacy/draws.js';
import type { ModelTrainer, TrainOptions } from '../../lib/train/model-trainer.js';
import { gradientOf, valuesOf } from '../finetune/setup.js';
import { startedTrainer } from './setup.js';

function tiny(options: Partial<TrainOptions>): ModelTrainer {
  return startedTrainer(options).trainer;
}

/** The gradient of a sequence alone, by a trainer without privacy. */
function gradientsOf(sequences: readonly number[], seed: number): Float32Array[] {
  const plain = tiny({ batch: 1, seed });
  return sequences.map((sequence) =>
    scope(() => {
      const { data, decoder, adapters } = plain;
      const { ids, targets } = data.train.batch([sequence]);
      const { gradients } = plain.trainer.rehearse((tape) => {
        const call = { adapters: adapters.byModule };
        const { T } = data.train;
        const { features } = decoder.forward(tape, { ids, B: 1, T }, call);
        return decoder.loss(tape, features, targets, { ...call, scale: 1 / T }).loss;
      });
      return Float32Array.from(gradients.flatMap((g) => [...(g as Tensor).readSync()]));
    }),
  );
}

const normOf = (values: ArrayLike<number>): number => Math.hypot(...Array.from(values));

/** The first step from a number on that takes at least this many sequences. */
function stepWith(trainer: ModelTrainer, least: number): number {
  for (let step = 0; ; step++) if (trainer.sequencesOfStep(step).length >= least) return step;
}

describe('a private step', () => {
  it('is the sum of clipped gradients over the mean number of sequences', () => {
    const clip = 0.4;
    const trainer = tiny({ batch: 3, privacy: { noise: 0 }, clip });
    const step = stepWith(trainer, 4); // two passes
    trainer.trainer.resumeAt(step);
    const taken = trainer.sequencesOfStep(step);
    const own = gradientsOf(taken, 3);
    const factors = own.map((g) => Math.min(1, clip / (normOf(g) + 1e-6)));
    expect(factors.some((factor) => factor < 0.9)).toBe(true);
    const { gradient } = gradientOf(trainer);
    const expected = Float64Array.from(gradient, (_, i) =>
      own.reduce((sum, g, n) => sum + ((factors[n] as number) * (g[i] as number)) / 3, 0),
    );
    const error = normOf(gradient.map((value, i) => value - (expected[i] as number)));
    expect(error).toBeLessThan(3e-5 * normOf(expected));
  });

  it('has the mean loss of its sequences', async () => {
    const trainer = tiny({ batch: 3, privacy: { noise: 1 }, clip: 1 });
    const step = stepWith(trainer, 4);
    trainer.trainer.resumeAt(step);
    const plain = tiny({ batch: 1 });
    const taken = trainer.sequencesOfStep(step);
    const losses = taken.map((sequence) =>
      scope(() => {
        const { data, decoder, adapters } = plain;
        const { T } = data.train;
        const { ids, targets } = data.train.batch([sequence]);
        const call = { adapters: adapters.byModule };
        return plain.trainer
          .rehearse((tape) => {
            const { features } = decoder.forward(tape, { ids, B: 1, T }, call);
            return decoder.loss(tape, features, targets, { scale: 1 / T }).loss;
          })
          .loss.readSync()[0] as number;
      }),
    );
    const { loss, tokens } = await trainer.train();
    const mean = losses.reduce((sum, each) => sum + each, 0) / losses.length;
    expect(Math.abs(loss - mean)).toBeLessThan(1e-5 * mean);
    expect(tokens).toBe(taken.length * trainer.data.train.T);
  });

  it('adds normal noise of the right size, other in each step and parameter', () => {
    const [noise, clip, batch] = [1.5, 0.4, 3];
    const quiet = tiny({ batch, privacy: { noise: 0 }, clip });
    const noisy = tiny({ batch, privacy: { noise }, clip });
    const drawn = (step: number): Float32Array => {
      quiet.trainer.resumeAt(step);
      noisy.trainer.resumeAt(step);
      const [a, b] = [gradientOf(noisy).gradient, gradientOf(quiet).gradient];
      return a.map((value, i) => (value - (b[i] as number)) / ((noise * clip) / batch));
    };
    const steps = [0, 1, 2].map(drawn) as [Float32Array, Float32Array, Float32Array];
    const n = steps[0].length;
    const correlation = (a: Float32Array, b: Float32Array) =>
      a.reduce((sum, value, i) => sum + value * (b[i] as number), 0) / Math.sqrt(n);
    for (const z of steps) {
      // Five standard deviations of each estimate.
      expect(Math.abs(z.reduce((sum, v) => sum + v, 0) / n)).toBeLessThan(5 / Math.sqrt(n));
      const variance = z.reduce((sum, v) => sum + v * v, 0) / n;
      expect(Math.abs(variance - 1)).toBeLessThan(5 * Math.sqrt(2 / n));
      const fourth = z.reduce((sum, v) => sum + v ** 4, 0) / n;
      expect(Math.abs(fourth - 3)).toBeLessThan(5 * Math.sqrt(96 / n));
    }
    expect(Math.abs(correlation(steps[0], steps[1]))).toBeLessThan(5);
    expect(Math.abs(correlation(steps[1], steps[2]))).toBeLessThan(5);
    // Parameters of one size do not share their draws.
    const parameters = noisy.trainer.parameters.map(({ tensor }) => tensor.size);
    const firsts = parameters.map((_, p) => {
      const at = parameters.slice(0, p).reduce((sum, size) => sum + size, 0);
      return (steps[0][at] as number).toFixed(3);
    });
    expect(new Set(firsts).size).toBeGreaterThan(0.9 * firsts.length);
  });

  it('trains on noise alone where it took no sequence', async () => {
    const trainer = tiny({ batch: 1, privacy: { noise: 1 }, clip: 1, warmup: 0 });
    let step = 0;
    while (trainer.sequencesOfStep(step).length > 0) step++;
    trainer.trainer.resumeAt(step);
    const before = valuesOf(trainer);
    const result = await trainer.train();
    expect(result.loss).toBe(0);
    expect(result.tokens).toBe(0);
    expect(result.gradientNorm).toBeGreaterThan(0);
    expect(valuesOf(trainer)).not.toEqual(before);
  });

  it('counts only what the optimiser trains', () => {
    const clip = 0.3;
    const options = { batch: 3, privacy: { noise: 0 }, clip, optimizer: optimizers.loraFa };
    const trainer = tiny(options);
    const step = stepWith(trainer, 2);
    trainer.trainer.resumeAt(step);
    const taken = trainer.sequencesOfStep(step);
    const up = trainer.trainer.parameters.flatMap(({ role, tensor }) =>
      new Array<boolean>(tensor.size).fill(role === 'up'),
    );
    const own = gradientsOf(taken, 3).map((g) => g.filter((_, i) => up[i]));
    const { gradient } = gradientOf(trainer);
    const mine = gradient.filter((_, i) => up[i]);
    const expected = mine.map((_, i) =>
      own.reduce(
        (sum, g) => sum + (Math.min(1, clip / (normOf(g) + 1e-6)) * (g[i] as number)) / 3,
        0,
      ),
    );
    const error = normOf(mine.map((value, i) => value - (expected[i] as number)));
    expect(error).toBeLessThan(3e-5 * normOf(expected));
  });

  it('has the same bits again, and after a resume', async () => {
    const options = { batch: 2, accumulate: 2, privacy: { noise: 0.7 }, clip: 0.5 };
    const whole = tiny(options);
    for (let i = 0; i < 6; i++) await whole.train();
    const first = tiny(options);
    for (let i = 0; i < 3; i++) await first.train();
    const second = tiny(options);
    for (const [i, own] of second.trainer.stored.entries()) {
      own.write(first.trainer.stored[i]?.read() as Float32Array);
    }
    second.trainer.resumeAt(3);
    for (let i = 0; i < 3; i++) await second.train();
    expect(valuesOf(second)).toEqual(valuesOf(whole));
    const other = tiny({ ...options, seed: 4 });
    for (let i = 0; i < 6; i++) await other.train();
    expect(valuesOf(other)).not.toEqual(valuesOf(whole));
  });

  it('is not captured, and says so', () => {
    const trainer = tiny({ batch: 2, privacy: { noise: 1 }, clip: 1 });
    expect(trainer.notCaptured).toBe('private steps differ in their sequences');
    expect(() => trainer.trainer.capture(() => undefined as never)).toThrow('privacy must be none');
  });

  it('rejects options that are none, and passes that are not private', () => {
    scope(() => {
      const tensor = Tensor.zeros([2, 2], { device: 'cpu' });
      const parameters = [{ name: 'p', role: 'other' as const, tensor }];
      const trainer = (options: object) => () => new Trainer(parameters, options as TrainerOptions);
      const privacy = { noise: 1, examples: 4 };
      expect(trainer({ privacy })).toThrow('clip must be given with privacy');
      expect(trainer({ clip: 1, privacy: { noise: 1 } })).toThrow(
        'privacy.examples must be a number',
      );
      expect(trainer({ clip: 1, privacy: { ...privacy, noise: -1 } })).toThrow(
        'at least 0, got -1',
      );
      expect(trainer({ clip: 1, privacy: { ...privacy, examples: 0 } })).toThrow('above 0, got 0');
      expect(trainer({ clip: 1, privacy: { ...privacy, epsilon: 3 } })).toThrow('epsilon');
      const fine = trainer({ clip: 1, privacy })();
      const loss = (tape: { constant(t: Tensor): unknown }) => tape.constant(Tensor.zeros([1]));
      expect(() => fine.step(loss as never)).toThrow('examples must be the number of examples');
      const added = (tape: { constant(t: Tensor): unknown }) => ({
        ...{ loss: loss(tape), examples: 1 },
        added: [[tensor, tensor]],
      });
      expect(() => fine.step(added as never)).toThrow('added must be without gradients');
      expect(fine.steps).toBe(0);
    });
  });
});

describe('random choices', () => {
  it('takes each example with the rate, independently', () => {
    const [count, rate, steps] = [400, 0.07, 500];
    const times = new Float64Array(count);
    let pairs = 0;
    const sizes = Array.from({ length: steps }, (_, step) => {
      const taken = poissonSample(count, rate, 9, 'sequences', step);
      for (const i of taken) times[i] = (times[i] as number) + 1;
      if (taken.includes(3) && taken.includes(4)) pairs++;
      expect(new Set(taken).size).toBe(taken.length);
      return taken.length;
    });
    const mean = sizes.reduce((sum, size) => sum + size, 0) / steps;
    const deviation = Math.sqrt(count * rate * (1 - rate));
    expect(Math.abs(mean - count * rate)).toBeLessThan((5 * deviation) / Math.sqrt(steps));
    const variance = sizes.reduce((sum, size) => sum + (size - mean) ** 2, 0) / steps;
    expect(variance / deviation ** 2).toBeGreaterThan(0.7);
    expect(variance / deviation ** 2).toBeLessThan(1.35);
    const each = Math.sqrt(steps * rate * (1 - rate));
    for (const n of times) expect(Math.abs(n - steps * rate)).toBeLessThan(5 * each);
    expect(pairs).toBeLessThan(15); // 2.45 on average
    expect(poissonSample(50, 1, 1)).toEqual(Uint32Array.from({ length: 50 }, (_, i) => i));
    expect(poissonSample(50, 0, 1)).toHaveLength(0);
    expect(poissonSample(400, 0.5, 1, 'a')).toEqual(poissonSample(400, 0.5, 1, 'a'));
    expect(poissonSample(400, 0.5, 1, 'a')).not.toEqual(poissonSample(400, 0.5, 2, 'a'));
  });

  it('derives seeds of 53 bits, of which none follow from another', () => {
    const seeds = Array.from({ length: 2000 }, (_, i) => derivedSeed(5, 'noise', i, 'p'));
    expect(new Set(seeds).size).toBe(2000);
    expect(seeds.every((seed) => Number.isSafeInteger(seed) && seed >= 0)).toBe(true);
    const high = seeds.filter((seed) => seed >= 2 ** 52).length;
    expect(Math.abs(high - 1000)).toBeLessThan(5 * Math.sqrt(500));
    expect(derivedSeed(1, 'ab')).not.toBe(derivedSeed(1, 'a', 'b'));
  });
});
