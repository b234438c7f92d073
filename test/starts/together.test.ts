// Starts that see the whole model: their losses fall, the base and the dense model stay, and nothing is left allocated.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  defineStart,
  ModelTape,
  memoryUsage,
  scope,
  Tensor,
} from '../../lib/index.js';
import { FactorTraining, meanSquares } from '../../lib/starts/parts/train-factors.js';
import { startedTrainer } from './setup.js';

const ROUND = { rounds: 40, lr: 3e-3 };

/** Features of a model behind its last norm. */
function featuresOf(
  { decoder, T }: Awaited<ReturnType<typeof startedTrainer>>,
  ids: Int32Array,
  adapters?: ReadonlyMap<string, Adapter>,
): Float32Array {
  return scope(() => {
    const tape = new ModelTape({ recording: false });
    const call = adapters === undefined ? {} : { adapters };
    return decoder.forward(tape, { ids, B: ids.length / T, T }, call).features.tensor.readSync();
  });
}

const distance = (a: Float32Array, b: Float32Array) =>
  Math.hypot(...a.map((value, i) => value - (b[i] as number)));

describe('rilq', () => {
  it('brings the features of the quantised model to those of the dense one', async () => {
    const format = { format: 'int4', blocksize: 32 } as const;
    const [dense, plain] = [
      await startedTrainer('pissa', { format: { format: 'none' } }),
      await startedTrainer('qera', { format }),
    ];
    const started = await startedTrainer('rilq', {
      format,
      settings: { ...ROUND, truth: 0 },
      targets: ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'],
    });
    for (const { ids } of started.batches) {
      const wanted = featuresOf(dense, ids, dense.set.byModule);
      const before = distance(featuresOf(plain, ids), wanted);
      const after = distance(featuresOf(started, ids, started.set.byModule), wanted);
      expect(featuresOf(started, ids)).toEqual(featuresOf(plain, ids));
      expect(after).toBeLessThan(0.6 * before);
    }
    for (const each of [dense, plain, started]) each.dispose();
  });

  it('with the truth alone it is a descent of the loss', async () => {
    const settings = { ...ROUND, discrepancy: 0, truth: 1 };
    const [plain, started] = [
      await startedTrainer('qera'),
      await startedTrainer('rilq', { settings }),
    ];
    const lossOf = ({ decoder, set, T, batches }: typeof started) =>
      scope(() => {
        const tape = new ModelTape({ recording: false });
        const { ids, targets } = batches[0] as (typeof batches)[number];
        const call = { adapters: set.byModule };
        const { features } = decoder.forward(tape, { ids, B: ids.length / T, T }, call);
        return decoder.loss(tape, features, targets).loss.tensor.readSync()[0] as number;
      });
    expect(lossOf(started)).toBeLessThan(0.9 * lossOf(plain));
    plain.dispose();
    started.dispose();
  });
});

describe('training inside of a start', () => {
  const device = 'cpu' as const;
  const [N, K, M] = [4, 6, 9];
  const drawn = (shape: readonly number[], seed: number) => Tensor.randn(shape, { seed, device });

  it('meanSquares: value and gradient', () => {
    scope(() => {
      const [y, target] = [drawn([3, M], 1), drawn([3, M], 2)];
      const tape = new ModelTape();
      const value = tape.variable(y);
      const loss = meanSquares(tape, value, target);
      const one = Tensor.from(new Float32Array([1]), [1], { device });
      const [dy] = tape.gradients('test', loss, one, [value]);
      const errors = [...y.readSync()].map((v, i) => v - (target.readSync()[i] as number));
      const mean = errors.reduce((sum, e) => sum + e * e, 0) / errors.length;
      expect(Math.abs((loss.tensor.readSync()[0] as number) - mean)).toBeLessThan(1e-6);
      (dy as Tensor).readSync().forEach((got, i) => {
        expect(Math.abs(got - (2 * (errors[i] as number)) / errors.length)).toBeLessThan(1e-6);
      });
    });
  });

  it('FactorTraining: Adam in float64, a rate for each group, what the loss does not reach stays', () => {
    scope(() => {
      const [a, b, c] = [drawn([N, K], 3), drawn([1, N], 4), drawn([2, 2], 5)];
      const start = c.readSync().slice();
      const [x, target] = [drawn([M, K], 6), drawn([M, N], 7)];
      using training = new FactorTraining([
        { tensors: [a, c], lr: 0.01 },
        { tensors: [b], lr: 0.1 },
      ]);
      const values = { a: Float64Array.from(a.readSync()), b: Float64Array.from(b.readSync()) };
      const moments = {
        a: [0, 0].map(() => new Float64Array(N * K)),
        b: [0, 0].map(() => new Float64Array(N)),
      };
      const [xs, ts] = [x.readSync(), target.readSync()];
      for (let step = 1; step <= 5; step++) {
        training.step(
          () => new ModelTape(),
          0.5,
          (t) => {
            const y = t.matmul(t.constant(x), t.variable(a));
            return meanSquares(t, t.add(y, t.reshape(t.variable(b), [N])), target);
          },
        );
        const gradients = { a: new Float64Array(N * K), b: new Float64Array(N) };
        for (let m = 0; m < M; m++) {
          for (let n = 0; n < N; n++) {
            let y = values.b[n] as number;
            for (let k = 0; k < K; k++)
              y += (xs[m * K + k] as number) * (values.a[n * K + k] as number);
            const d = (2 * (y - (ts[m * N + n] as number))) / (M * N);
            gradients.b[n] = (gradients.b[n] as number) + d;
            for (let k = 0; k < K; k++) {
              gradients.a[n * K + k] =
                (gradients.a[n * K + k] as number) + d * (xs[m * K + k] as number);
            }
          }
        }
        for (const [name, lr] of [
          ['a', 0.005],
          ['b', 0.05],
        ] as const) {
          const [m, v] = moments[name] as [Float64Array, Float64Array];
          gradients[name].forEach((g, i) => {
            m[i] = 0.9 * (m[i] as number) + 0.1 * g;
            v[i] = 0.999 * (v[i] as number) + 0.001 * g * g;
            const size = Math.sqrt((v[i] as number) / (1 - 0.999 ** step)) + 1e-8;
            values[name][i] =
              (values[name][i] as number) - (lr * (m[i] as number)) / (1 - 0.9 ** step) / size;
          });
        }
      }
      for (const [tensor, expected] of [
        [a, values.a],
        [b, values.b],
      ] as const) {
        tensor.readSync().forEach((got, i) => {
          expect(Math.abs(got - (expected[i] as number)), `${tensor.shape} ${i}`).toBeLessThan(
            2e-5,
          );
        });
      }
      expect(c.readSync()).toEqual(start);
    });
  });
});

describe('a start of a whole model', () => {
  it('leaves nothing allocated, also where it throws', async () => {
    (await startedTrainer('rilq', { settings: { rounds: 1 } })).dispose();
    const before = memoryUsage('cpu').liveTensors;
    (await startedTrainer('rilq', { settings: { rounds: 1 } })).dispose();
    expect(memoryUsage('cpu').liveTensors).toBe(before);
  });

  it('defineStart wants together in place of factors', () => {
    const plain = { start: 'a', reference: 'b', defaults: {} } as const;
    const factors = () => ({});
    const together = async () => new Map();
    expect(() => defineStart({ ...plain, from: 'model', factors } as never)).toThrow(
      /together must be a function, got/,
    );
    expect(() => defineStart({ ...plain, from: 'weight', factors, together })).toThrow(
      /together must be left out with from: 'weight'/,
    );
    expect(() => defineStart({ ...plain, from: 'model', factors, together })).toThrow(
      /factors must be left out/,
    );
  });
});
