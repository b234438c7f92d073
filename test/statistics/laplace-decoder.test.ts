// Laplace-LoRA on a decoder: logits of answers, memory, and what is rejected.
import { describe, expect, it } from 'vitest';
import {
  choiceLogits,
  type LabelledPass,
  LaplacePosterior,
  type LogitsPass,
  laplace,
  memoryUsage,
  scope,
  synchronize,
  Tensor,
} from '../../lib/index.js';
import { randomValues } from '../finetune/setup.js';
import { startedTrainer } from './setup.js';

const near = (mine: number, expected: number, scale: number, what: string) =>
  expect(Math.abs(mine - expected), `${what}: ${mine}, ${expected}`).toBeLessThan(2e-4 * scale);

function decoderCase(method: Readonly<Record<string, unknown>> = {}) {
  const { trainer } = startedTrainer({ adapter: method });
  const { decoder, adapters, data } = trainer;
  const { T } = data.train;
  const adapted = { adapters: adapters.byModule };
  const logitsOf =
    (indices: number[], tokens: number[]): LogitsPass =>
    (tape) => {
      const { ids } = data.train.batch(indices);
      const { features } = decoder.forward(tape, { ids, B: indices.length, T }, adapted);
      const positions = indices.map((i) => (i % 2 === 0 ? T - 1 : 2));
      return choiceLogits(decoder, tape, features, { positions, tokens });
    };
  return { trainer, decoder, data, T, adapted, logitsOf };
}

describe('a language model', () => {
  it('gives the logits of its answers and their gradients', () => {
    const { trainer, decoder, data, T, adapted } = decoderCase();
    const [indices, tokens] = [
      [0, 1, 4],
      [3, 17, 5],
    ] as const;
    const positions = [T - 1, 2, 0];
    const weights = randomValues(9, 8);
    const { ids } = data.train.batch(indices);
    const { vocabSize } = decoder.config;
    scope(() => {
      const run = (few: boolean) =>
        trainer.trainer.rehearse((t) => {
          const { features } = decoder.forward(t, { ids, B: 3, T }, adapted);
          const chosen = few
            ? choiceLogits(decoder, t, features, { positions, tokens: [...tokens] })
            : decoder.logits(t, features);
          const size = few ? 9 : 3 * T * vocabSize;
          const mask = new Float32Array(size);
          for (let b = 0; b < 3; b++) {
            for (let c = 0; c < 3; c++) {
              const at = (b * T + (positions[b] as number)) * vocabSize + (tokens[c] as number);
              mask[few ? 3 * b + c : at] = weights[3 * b + c] as number;
            }
          }
          const flat = t.reshape(chosen, [1, size]);
          const picked = t.multiply(flat, t.own(Tensor.from(mask, [1, size], { device: 'cpu' })));
          return t.reshape(t.sum(picked, 1), [1]);
        });
      const [few, all] = [run(true), run(false)];
      near(few.loss.readSync()[0] as number, all.loss.readSync()[0] as number, 1, 'loss');
      few.gradients.forEach((gradient, p) => {
        const [a, b] = [gradient, all.gradients[p]].map((g) => (g as Tensor).readSync()) as [
          Float32Array,
          Float32Array,
        ];
        const scale = Math.max(...b.map(Math.abs));
        a.forEach((value, i) => {
          near(value, b[i] as number, scale, `gradient ${p}`);
        });
      });
    });
  });

  it('has a posterior, and frees what it made', async () => {
    const { logitsOf } = decoderCase();
    const tokens = [3, 17, 5];
    const passes: LabelledPass[] = [
      { pass: logitsOf([0, 1], tokens), labels: [0, 2] },
      { pass: logitsOf([2, 3, 4], tokens), labels: [1, 1, 0] },
    ];
    const use = async () => {
      using posterior = await laplace(passes, { rank: 4 });
      posterior.fitPriorPrecision();
      posterior.priorPrecision = 1;
      const { covariance, examples, classes } = posterior.predict(logitsOf([5, 6], tokens));
      expect([examples, classes, covariance.length]).toEqual([2, 3, 18]);
      for (const n of [0, 1]) {
        for (const c of [0, 1, 2]) {
          const at = (a: number, b: number) => covariance[n * 9 + 3 * a + b] as number;
          expect(at(c, c)).toBeGreaterThan(0);
          expect(at(c, (c + 1) % 3)).toBe(at((c + 1) % 3, c));
          expect(at(c, (c + 1) % 3) ** 2).toBeLessThanOrEqual(
            at(c, c) * at((c + 1) % 3, (c + 1) % 3),
          );
        }
      }
    };
    const live = async () => {
      await synchronize('cpu');
      return memoryUsage('cpu').liveTensors;
    };
    await use();
    const before = await live();
    await use();
    expect(await live()).toBe(before);
  });

  it('rejects what it cannot do, and works afterwards', async () => {
    const { logitsOf, decoder, adapted, data, T } = decoderCase();
    const tokens = [3, 17, 5];
    const pass = logitsOf([0, 1], tokens);
    const refused = (promise: Promise<unknown>, text: string) =>
      expect(promise).rejects.toThrow(text);
    await refused(laplace([]), 'passes must be at least one');
    await refused(laplace(undefined as never), 'passes must be an array');
    await refused(laplace([{ pass, labels: [0] }]), 'labels must be of 2 examples, got 1');
    await refused(
      laplace([{ pass, labels: [0, 3] }]),
      'labels[1] must be an integer from 0 to 2, got 3',
    );
    await refused(
      laplace([{ pass, labels: [0, 1] }], { priorPrecision: 0 }),
      'priorPrecision must be above 0',
    );
    await refused(laplace([{ pass, labels: [0, 1] }], { rank: 0 }), 'rank must be an integer');
    await refused(
      laplace([{ pass: (t) => t.own(Tensor.zeros([4])), labels: [0] }]),
      'the logits must be',
    );
    await refused(
      laplace([{ pass: (t) => t.own(Tensor.zeros([1, 2])), labels: [0] }]),
      'with trained factors',
    );
    const other = decoderCase({ method: 'dora' });
    await refused(
      laplace([{ pass: other.logitsOf([0], tokens), labels: [0] }]),
      'the trained tensors must be',
    );
    const choose = (choice: object) => () =>
      scope(() =>
        laplace([
          {
            labels: [0],
            pass: (tape) => {
              const { ids } = data.train.batch([0]);
              const { features } = decoder.forward(tape, { ids, B: 1, T }, adapted);
              return choiceLogits(decoder, tape, features, choice as never);
            },
          },
        ]),
      );
    await refused(
      choose({ positions: [T], tokens })(),
      `positions[0] must be an integer from 0 to ${T - 1}`,
    );
    await refused(choose({ positions: [0], tokens: [1e6] })(), 'tokens[0] must be an integer');
    await refused(choose({ positions: [], tokens })(), 'positions must be an array of 1 numbers');
    expect(() => new LaplacePosterior(undefined as never, 1)).toThrow('made by laplace');
    const posterior = await laplace([{ pass, labels: [0, 1] }]);
    expect(() => {
      posterior.priorPrecision = -1;
    }).toThrow('above 0, got -1');
    posterior.dispose();
    expect(() => posterior.predict(pass)).toThrow('this must be live');
  });
});
