// Per-example gradients against passes of one example each, whose gradients exist.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  type DType,
  full,
  ModelTape,
  memoryUsage,
  type PerExampleGradients,
  perExampleGradients,
  scope,
  synchronize,
  Tensor,
} from '../../lib/index.js';
import type { ModelTrainer } from '../../lib/train/model-trainer.js';
import { startedTrainer } from './setup.js';

const B = 5;

function tiny(
  method: Readonly<Record<string, unknown>>,
  device: Device,
  dtype: DType,
): ModelTrainer {
  return startedTrainer({ adapter: method, device, dtype, batch: B }).trainer;
}

/** All examples of the next step in one pass. */
function together({ decoder, adapters, data, options }: ModelTrainer) {
  const { T } = data.train;
  const { ids, targets } = data.train.batch(Uint32Array.from({ length: B }, (_, i) => i));
  const call = { adapters: adapters.byModule, dtype: options.dtype };
  return perExampleGradients((tape) => {
    const { features } = decoder.forward(tape, { ids, B, T }, call);
    return {
      loss: decoder.loss(tape, features, targets, { ...call, scale: 1 / T }).loss,
      examples: B,
    };
  });
}

/** The gradients of one example, by parameter. */
function alone({ decoder, adapters, data, options, trainer }: ModelTrainer, example: number) {
  return scope(() => {
    const { T } = data.train;
    const { ids, targets } = data.train.batch([example]);
    const call = { adapters: adapters.byModule, dtype: options.dtype };
    const tape = new ModelTape();
    const { features } = decoder.forward(tape, { ids, B: 1, T }, call);
    const { loss } = decoder.loss(tape, features, targets, { ...call, scale: 1 / T });
    const values = trainer.parameters.map(({ tensor }) => tape.variables.get(tensor)?.[0] as never);
    const one = full([1], 1, { device: loss.tensor.device });
    const found = tape.gradients('alone', loss, one, values, { release: true });
    return {
      loss: loss.tensor.readSync()[0] as number,
      gradients: found.map((g) => Float64Array.from((g as Tensor).readSync())),
    };
  });
}

/** What is allocated once the queue is empty. */
async function live() {
  await synchronize('cpu');
  const { liveBytes, liveTensors } = memoryUsage('cpu');
  return { liveBytes, liveTensors };
}

const normOf = (gradients: readonly Float64Array[]): number =>
  Math.sqrt(gradients.reduce((sum, g) => sum + g.reduce((s, v) => s + v * v, 0), 0));

function close(mine: ArrayLike<number>, expected: ArrayLike<number>, bound: number, what: string) {
  expect(mine.length, what).toBe(expected.length);
  const scale = Math.max(...Array.from(expected, Math.abs));
  for (let i = 0; i < expected.length; i++) {
    const error = Math.abs((mine[i] as number) - (expected[i] as number));
    expect(error, `${what}[${i}]`).toBeLessThanOrEqual(bound * scale);
  }
}

/** Σ weights · gradients, parameter by parameter. */
const sumOf = (all: readonly (readonly Float64Array[])[], weights: readonly number[]) =>
  (all[0] as readonly Float64Array[]).map((first, p) =>
    first.map((_, i) =>
      all.reduce(
        (sum, gradients, n) => sum + (weights[n] as number) * (gradients[p]?.[i] as number),
        0,
      ),
    ),
  );

function check(trainer: ModelTrainer, found: PerExampleGradients, bound: number) {
  const all = Array.from({ length: B }, (_, n) => alone(trainer, n));
  const gradients = all.map((each) => each.gradients);
  const norms = gradients.map(normOf);
  close(found.norms.readSync(), norms, bound, 'norms');
  const total = all.reduce((sum, { loss }) => sum + loss, 0);
  close(found.loss.readSync(), [total], bound, 'loss');
  const { parameters } = trainer.trainer;
  const compare = (
    mine: ReadonlyMap<Tensor, Tensor>,
    expected: readonly Float64Array[],
    what: string,
  ) => {
    expect(mine.size, what).toBe(parameters.length);
    for (const [p, { name, tensor }] of parameters.entries()) {
      const own = mine.get(tensor) as Tensor;
      expect(own.shape).toEqual(tensor.shape);
      close(own.readSync(), expected[p] as Float64Array, bound, `${what} of ${name}`);
    }
  };
  // A bound between the norms, so that some are clipped and some are not.
  const middle = [...norms].sort((a, b) => a - b)[2] as number;
  const clips = norms.map((norm) => Math.min(1, middle / (norm + 1e-6)));
  expect(clips.filter((c) => c === 1).length).toBeGreaterThan(0);
  expect(clips.filter((c) => c < 1).length).toBeGreaterThan(1);
  compare(found.clipped(middle), sumOf(gradients, clips), 'clipped');
  const weights = [0.5, -1, 2, 0, 3];
  const tensor = Tensor.from(weights, [B], { device: found.loss.device });
  compare(found.weighted(tensor), sumOf(gradients, weights), 'weighted');
  const squares = gradients.map((each) => each.map((g) => g.map((v) => v * v)));
  compare(found.squares(), sumOf(squares, [1, 1, 1, 1, 1]), 'squares');
}

const CASES: readonly [string, Readonly<Record<string, unknown>>, Device, DType, number][] = [
  ['lora on cpu', {}, 'cpu', 'f32', 3e-5],
  ['lora on reference', {}, 'reference', 'f32', 3e-5],
  ['lora in bf16', {}, 'cpu', 'bf16', 0.06],
  ['rslora of two layers', { rslora: true, targets: ['q_proj', 'down_proj'] }, 'cpu', 'f32', 3e-5],
  ['lora-fa', { method: 'lora-fa', r: 3 }, 'cpu', 'f32', 3e-5],
];

describe('perExampleGradients', () => {
  it.each(CASES)('%s', (_, method, device, dtype, bound) => {
    const trainer = tiny(method, device, dtype);
    scope(() => check(trainer, together(trainer), bound));
  });

  it('frees everything', async () => {
    const trainer = tiny({}, 'cpu', 'f32');
    const use = () => {
      using found = together(trainer);
      for (const sum of found.clipped(0.1).values()) sum.dispose();
    };
    use();
    const before = await live();
    use();
    expect(await live()).toEqual(before);
  });

  it.each([
    ['dropout', { dropout: 0.1 }],
    ['a bias of loraB', { loraBias: true }],
    ['dora', { method: 'dora' }],
    ['adalora', { method: 'adalora' }],
    ['vera', { method: 'vera', r: 4 }],
    ['ia3', { method: 'ia3' }],
  ])('rejects %s, frees what it made, and works afterwards', async (_, method) => {
    const trainer = tiny(method, 'cpu', 'f32');
    const refused = () =>
      expect(() => together(trainer)).toThrow(/perExampleGradients: .* must be/);
    refused(); // makes what the decoder keeps
    const before = await live();
    refused();
    expect(await live()).toEqual(before);
    const other = tiny({}, 'cpu', 'f32');
    scope(() => expect(together(other).examples).toBe(B));
  });

  it('rejects passes that are none', () => {
    const x = Tensor.zeros([6, 4], { device: 'cpu' });
    const [a, w] = [Tensor.zeros([2, 4]), Tensor.zeros([3, 4])];
    const run = (examples: unknown, twice = false) =>
      perExampleGradients((t) => {
        const input = t.constant(x);
        const h = t.shrink(input, t.variable(a));
        const again = twice ? t.shrink(input, t.variable(a)) : h;
        const loss = t.sum(t.reshape(t.add(h, again), [1, 12]), 1);
        return { loss: t.reshape(loss, [1]), examples: examples as number };
      });
    expect(() => run(4)).toThrow('examples must be a divisor of the 6 rows of a layer, got 4');
    expect(() => run(0)).toThrow('examples must be an integer from 1 to 1024, got 0');
    expect(() => run('2')).toThrow('examples must be a number');
    expect(() => run(2, true)).toThrow('must be factors loraA and loraB of one layer each');
    expect(() => perExampleGradients(undefined as never)).toThrow('pass must be a function');
    expect(() => perExampleGradients(() => undefined as never)).toThrow('result of the pass');
    const constant = (t: ModelTape) => ({ loss: t.constant(Tensor.zeros([1])), examples: 1 });
    expect(() => perExampleGradients(constant)).toThrow(
      'one with trained factors, got one without',
    );
    using found = run(3);
    expect(() => found.clipped(0)).toThrow('bound must be above 0, got 0');
    expect(() => found.weighted(Tensor.zeros([4]))).toThrow('weights must be of shape [3]');
    found.dispose();
    expect(() => found.clipped(1)).toThrow('this must be live');
    for (const tensor of [x, a, w]) tensor.dispose();
  });
});
