// Statistics of layers against float64 sums over what a tape of this test sees.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  type CalibrationData,
  type Device,
  full,
  InputMoments,
  type InputSums,
  type ModelTape,
  memoryUsage,
  type ObserveOptions,
  observe,
  outputSquares,
  scope,
  synchronize,
  ModelTape as Tape,
  Tensor,
  updateSensitivity,
  type Value,
} from '../../lib/index.js';
import type { ModelTrainer } from '../../lib/train/model-trainer.js';
import { startedTrainer } from './setup.js';

function tiny(method: Readonly<Record<string, unknown>>, device: Device = 'cpu'): ModelTrainer {
  return startedTrainer({ adapter: method, device, batch: 2 }).trainer;
}

const dataOf = ({ data }: ModelTrainer, count = 3): CalibrationData => ({
  batches: Array.from({ length: count }, (_, i) => data.train.batch([2 * i, 2 * i + 1])),
  T: data.train.T,
  dtype: 'f32',
});

interface Seen {
  readonly x: Float32Array;
  readonly dy: Float32Array;
}

/** x and dy of the layer over a base weight in one batch, by a tape of this test. */
function captured(
  trainer: ModelTrainer,
  module: string,
  batch: CalibrationData['batches'][number],
): Seen {
  const { decoder, adapters } = trainer;
  const layer = adapters.layers.findIndex(({ place }) => place.module === module);
  let x: Float32Array = new Float32Array();
  let dy: Float32Array = new Float32Array();
  let calls = 0;
  class Capturing extends Tape {
    override expand(...args: Parameters<ModelTape['expand']>): Value {
      const y = super.expand(...args);
      if (calls++ !== layer) return y;
      x = args[0].tensor.readSync();
      return this.record(y.tensor.reshape(y.shape), [y], [], (gradient, pass) => {
        dy = gradient.readSync();
        pass.give(y, gradient);
      });
    }
  }
  scope(() => {
    const tape = new Capturing();
    const { T } = trainer.data.train;
    const call = { adapters: adapters.byModule, inputGradient: true };
    const { ids, targets } = batch;
    const { features, embedded } = decoder.forward(tape, { ids, B: ids.length / T, T }, call);
    const { loss } = decoder.loss(tape, features, targets, { ...call, scale: 1 / targets.length });
    tape.gradients('test', loss, full([1], 1, { device: loss.tensor.device }), [embedded]);
  });
  return { x, dy };
}

/** scaling · B · core · A as rows of float64. */
function dense(adapter: Adapter): number[][] {
  const { N, K } = { N: adapter.outFeatures, K: adapter.inFeatures };
  const tensors = { ...adapter.parameters, ...adapter.buffers } as Record<string, Tensor>;
  const values = (name: string) => tensors[name]?.readSync();
  const [a, b] = [values('loraA'), values('loraB')] as [Float32Array, Float32Array];
  const e = values('loraE') ?? values('gate');
  const r = a.length / K;
  const { loraAlpha = 1, rslora = false } = adapter.config as {
    loraAlpha?: number;
    rslora?: boolean;
  };
  const scaling =
    adapter.method === 'adalora' ? loraAlpha / (r + 1e-5) : loraAlpha / (rslora ? Math.sqrt(r) : r);
  return Array.from({ length: N }, (_, n) =>
    Array.from({ length: K }, (_, k) => {
      let sum = 0;
      for (let i = 0; i < r; i++) {
        sum += (b[n * r + i] as number) * (e?.[i] ?? 1) * (a[i * K + k] as number);
      }
      return scaling * sum;
    }),
  );
}

const close = (mine: number | undefined, expected: number, bound: number, what: string) =>
  expect(Math.abs((mine ?? Number.NaN) - expected), `${what}: ${mine}, ${expected}`).toBeLessThan(
    bound * Math.abs(expected),
  );

const METHODS: readonly [string, Readonly<Record<string, unknown>>, Device][] = [
  ['lora', {}, 'cpu'],
  ['lora on reference', {}, 'reference'],
  ['lora with dropout', { dropout: 0.3 }, 'cpu'],
  ['rslora', { rslora: true }, 'cpu'],
  ['lora-fa', { method: 'lora-fa', r: 3 }, 'cpu'],
  ['adalora', { method: 'adalora', r: 4 }, 'cpu'],
];

describe('observe', () => {
  it.each(METHODS)('sees inputs, outputs and sensitivities: %s', async (_, method, device) => {
    const trainer = tiny(method, device);
    const data = dataOf(trainer);
    const { layers, byModule } = trainer.adapters;
    const plain = tiny({ ...method, dropout: 0 }, device);
    const found = await observe(trainer.decoder, data, {
      wanted: ['gram', 'moments', 'outputs', 'sensitivity'],
      adapters: byModule,
    });
    expect([...found.keys()]).toEqual(layers.map(({ place }) => place.module));
    for (const at of [0, 1, layers.length - 1]) {
      const { place, adapter } = layers[at] as (typeof layers)[number];
      const { N, K, module } = place;
      const own = found.get(module);
      const batches = data.batches.map((batch) => captured(plain, module, batch));
      const update = dense(adapter);
      const gram = new Float64Array(K * K);
      let [rows, squares, sensitivity] = [0, 0, 0];
      for (const { x, dy } of batches) {
        const M = x.length / K;
        rows += M;
        const gradient = Array.from({ length: N }, () => new Float64Array(K));
        for (let m = 0; m < M; m++) {
          const row = x.subarray(m * K, (m + 1) * K);
          for (let n = 0; n < N; n++) {
            const delta = update[n] as number[];
            squares += row.reduce((sum, v, k) => sum + v * (delta[k] as number), 0) ** 2;
            const g = gradient[n] as Float64Array;
            for (let k = 0; k < K; k++) {
              g[k] = (g[k] as number) + (dy[m * N + n] as number) * (row[k] as number);
            }
          }
          for (let i = 0; i < K; i++) {
            for (let j = 0; j < K; j++) {
              gram[i * K + j] =
                (gram[i * K + j] as number) + (row[i] as number) * (row[j] as number);
            }
          }
        }
        const all = update.flatMap((delta, n) =>
          delta.map((v, k) => Math.abs(v * (gradient[n]?.[k] as number))),
        );
        sensitivity += all.reduce((a, b) => a + b, 0) / Math.sqrt(N * K);
      }
      expect(own?.gram?.rows).toBe(rows);
      expect(own?.moments?.rows).toBe(rows);
      close(own?.outputs, squares / rows, 1e-5, `outputs of ${module}`);
      close(own?.sensitivity, sensitivity / batches.length, 2e-4, `sensitivity of ${module}`);
      const largest = Math.max(...gram);
      gram.forEach((value, i) => {
        expect(Math.abs((own?.gram?.gram[i] as number) - value)).toBeLessThan(1e-5 * largest);
      });
      own?.moments?.norms.forEach((norm, k) => {
        close(norm, Math.sqrt(gram[k * K + k] as number), 1e-5, `norm ${k}`);
      });
      const sums = new Float64Array(K);
      for (const { x } of batches) {
        x.forEach((value, i) => {
          sums[i % K] = (sums[i % K] as number) + value;
        });
      }
      own?.moments?.mean.forEach((mean, k) => {
        expect(Math.abs(mean - (sums[k] as number) / rows)).toBeLessThan(1e-6);
      });
      const { squares: again } = InputMoments.of(own?.gram as InputSums);
      again.forEach((value, k) => {
        close(value, own?.moments?.squares[k] as number, 1e-5, 'of the sums');
      });
    }
  });

  it('finds the Fisher information of the factors', async () => {
    const trainer = tiny({});
    const { decoder, adapters, data } = trainer;
    const found = await observe(decoder, dataOf(trainer), {
      wanted: ['fisher'],
      adapters: adapters.byModule,
    });
    const { T } = data.train;
    const expected = trainer.trainer.parameters.map(({ tensor }) => new Float64Array(tensor.size));
    for (let n = 0; n < 6; n++) {
      scope(() => {
        const { ids, targets } = data.train.batch([n]);
        const call = { adapters: adapters.byModule };
        const { gradients } = trainer.trainer.rehearse((tape) => {
          const { features } = decoder.forward(tape, { ids, B: 1, T }, call);
          return decoder.loss(tape, features, targets, { ...call, scale: 1 / T }).loss;
        });
        for (const [p, gradient] of gradients.entries()) {
          gradient?.readSync().forEach((value, i) => {
            const own = expected[p] as Float64Array;
            own[i] = (own[i] as number) + value ** 2 / 6;
          });
        }
      });
    }
    let p = 0;
    for (const { place } of adapters.layers) {
      for (const name of ['loraA', 'loraB']) {
        const { fisher = {} } = found.get(place.module) ?? {};
        const mine = (fisher[name] as Tensor).readSync();
        const own = expected[p++] as Float64Array;
        const largest = Math.max(...own);
        own.forEach((value, i) => {
          expect(Math.abs((mine[i] as number) - value)).toBeLessThan(1e-4 * largest);
        });
        fisher[name]?.dispose();
      }
    }
  });

  it('sees the base model without adapters, and frees what it made', async () => {
    const trainer = tiny({ targets: ['q_proj'] });
    const { decoder } = trainer;
    const data = dataOf(trainer, 1);
    const use = () => observe(decoder, data, { wanted: ['moments'] });
    const found = await use();
    const names = [...found.keys()].filter((name) => name.startsWith('model.layers.0.'));
    expect(names.map((name) => name.split('.').at(-1))).toEqual(
      'q_proj k_proj v_proj o_proj gate_proj up_proj down_proj'.split(' '),
    );
    const [q, k] = names.map((name) => found.get(name)?.moments);
    expect(q).toBe(k); // they read the same tensor
    const live = async () => {
      await synchronize('cpu');
      return memoryUsage('cpu').liveTensors;
    };
    const before = await live();
    await use();
    await observe(decoder, data, {
      wanted: ['outputs', 'sensitivity'],
      adapters: trainer.adapters.byModule,
    });
    expect(await live()).toBe(before);
    const one = await observe(decoder, data, { wanted: ['gram'], layers: [names[3] as string] });
    expect([...one.keys()]).toEqual([names[3]]);
  });

  it('rejects what cannot be observed', async () => {
    const trainer = tiny({ method: 'loha', r: 2 });
    const data = dataOf(trainer, 1);
    const adapters = trainer.adapters.byModule;
    const refused = async (options: object, text: string) =>
      await expect(observe(trainer.decoder, data, options as ObserveOptions)).rejects.toThrow(text);
    await refused({ wanted: ['norms'] }, 'wanted must be a list of gram, moments');
    await refused({ wanted: [] }, 'wanted must be some of gram');
    await refused({}, 'wanted must be an array of names');
    await refused(
      { wanted: ['outputs'] },
      'adapters must be with an adapter in each layer, for outputs',
    );
    await refused({ wanted: ['outputs'], adapters }, 'must be of a method that adds scaling');
    await refused({ wanted: ['fisher'], adapters }, 'the trained tensors must be factors');
    await refused({ wanted: ['gram'], layers: ['lm'] }, 'layers must be a list of');
    await refused({ wanted: ['gram'], adapters: {} }, 'adapters must be a Map of adapters');
    await refused({ wanted: ['gram'], seed: 1 }, 'seed');
  });
});

describe('single statistics', () => {
  it('rejects operands that do not fit', () => {
    scope(() => {
      const zeros = (...shape: number[]) => Tensor.zeros(shape, { device: 'cpu' });
      const update = { loraA: zeros(2, 4), loraB: zeros(3, 2) };
      expect(outputSquares(zeros(5, 4), update)).toBe(0);
      expect(() => outputSquares(zeros(5, 3), update)).toThrow('loraA must be of shape [2, 3]');
      expect(() => outputSquares(zeros(5, 4), { ...update, loraB: zeros(3, 1) })).toThrow(
        'loraB must be',
      );
      expect(() => outputSquares(zeros(5, 4), { ...update, core: zeros(3) })).toThrow(
        'core must be of shape [2]',
      );
      expect(() => outputSquares(undefined as never, update)).toThrow('x must be a Tensor');
      expect(() => updateSensitivity(zeros(5, 2), zeros(5, 4), update)).toThrow(
        'loraB must be of shape [2, 2]',
      );
      expect(() => updateSensitivity(zeros(4, 3), zeros(5, 4), update)).toThrow('x must be');
      expect(() => outputSquares(zeros(5, 4), { ...update, scaling: Number.NaN })).toThrow(
        'scaling must be finite',
      );
      const moments = new InputMoments(4);
      expect(() => moments.add(zeros(5, 3))).toThrow('x must be of shape [..., 4]');
      expect(() => moments.add(full([2, 4], 1e30, { device: 'cpu' }))).toThrow(
        'Σ x² must be finite',
      );
      expect(moments.rows).toBe(0);
      expect(() => new InputMoments(0)).toThrow('K must be an integer');
    });
  });

  it('has the sums of a general core', () => {
    scope(() => {
      const of = (shape: number[], seed: number) => Tensor.randn(shape, { seed, device: 'cpu' });
      const [x, loraA, core, loraB] = [of([6, 5], 1), of([2, 5], 2), of([3, 2], 3), of([4, 3], 4)];
      const [xs, as, cs, bs] = [x, loraA, core, loraB].map((each) => [...each.readSync()]) as [
        number[],
        number[],
        number[],
        number[],
      ];
      const at = (m: number[], cols: number, i: number, j: number) => m[i * cols + j] as number;
      let expected = 0;
      for (let m = 0; m < 6; m++) {
        const h = [0, 1].map((i) =>
          [0, 1, 2, 3, 4].reduce((s, k) => s + at(xs, 5, m, k) * at(as, 5, i, k), 0),
        );
        const c = [0, 1, 2].map((i) => h.reduce((s, v, j) => s + v * at(cs, 2, i, j), 0));
        for (let n = 0; n < 4; n++)
          expected += c.reduce((s, v, i) => s + v * at(bs, 3, n, i), 0) ** 2;
      }
      close(outputSquares(x, { loraA, loraB, core, scaling: 0.5 }), 0.25 * expected, 1e-5, 'core');
    });
  });
});
