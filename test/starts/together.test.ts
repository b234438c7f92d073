// Starts that see the whole model: their losses fall, the base and the dense model stay, and nothing is left allocated.
import { describe, expect, it, vi } from 'vitest';
import { rawToFloat32 } from '../../lib/checkpoint/raw-tensor.js';
import {
  type Adapter,
  defineStart,
  ModelTape,
  memoryUsage,
  QuantizedWeight,
  scope,
  Tensor,
} from '../../lib/index.js';
import { Decoder } from '../../lib/model/decoder.js';
import { linearsOf } from '../../lib/model/decoder-weights.js';
import { calibrate } from '../../lib/starts/calibration/calibrate.js';
import { fisherOf } from '../../lib/starts/calibration/fisher.js';
import { clippedLora } from '../../lib/starts/parts/clipped-lora.js';
import { FactorTraining, meanSquares } from '../../lib/starts/parts/train-factors.js';
import { startNamed } from '../../lib/starts/start-methods.js';
import { Starter } from '../../lib/starts/starter.js';
import { methodNamed } from '../../lib/train/adapter-set.js';
import { startedTrainer, updateOf, valuesOf } from './setup.js';

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

describe('apiq', () => {
  it('brings the features of the model on 2 bits near those of the dense one, far below rounding', async () => {
    const targets = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'];
    const dense = await startedTrainer('pissa', { format: { format: 'none' } });
    const run = (rounds: number, lr: number) =>
      startedTrainer('apiq', {
        format: { format: 'none' },
        settings: { bits: 2, rounds, lr, clipLr: lr },
        targets,
      });
    const [rounded, started] = [await run(1, 0), await run(60, 5e-3)];
    for (const { ids } of started.batches) {
      const wanted = featuresOf(dense, ids, dense.set.byModule);
      const [before, after] = [rounded, started].map((each) =>
        distance(featuresOf(each, ids, each.set.byModule), wanted),
      ) as [number, number];
      expect(after).toBeLessThan(0.5 * before);
    }
    const { decoder } = started;
    for (const { w } of decoder.weights.layers.flatMap(linearsOf)) {
      expect(QuantizedWeight.is(w) && w.format).toBe('planar');
    }
    for (const each of [dense, rounded, started]) each.dispose();
  });

  it('a block sees what the quantised and trained blocks before it give', async () => {
    const seen: Float32Array[] = [];
    const block = Decoder.prototype.block;
    const spy = vi.spyOn(Decoder.prototype, 'block').mockImplementation(function (
      this: Decoder,
      tape,
      index,
      x,
      call,
    ) {
      if (index === 1 && tape.recording && seen.length < 2) seen.push(x.tensor.readSync());
      return block.call(this, tape, index, x, call);
    });
    const settings = { bits: 2, rounds: 3, lr: 5e-3 };
    const { decoder, set, batches, T, dispose } = await startedTrainer('apiq', { settings });
    spy.mockRestore();
    batches.forEach(({ ids }, i) => {
      scope(() => {
        const tape = new ModelTape({ recording: false });
        const x = decoder.embed(tape, { ids, B: ids.length / T, T }, 'f32');
        const y = decoder.block(tape, 0, x, { adapters: set.byModule }).tensor.readSync();
        expect(distance(y, seen[i] as Float32Array)).toBeLessThan(1e-4 * Math.hypot(...y));
        const plain = decoder.block(tape, 0, x).tensor.readSync();
        expect(distance(plain, seen[i] as Float32Array)).toBeGreaterThan(1e-3 * Math.hypot(...y));
      });
    });
    dispose();
  });

  it('needs groups that divide every layer, and settings in range', async () => {
    for (const [settings, message] of [
      [{ groupSize: 48 }, /groupSize must be a divisor of the 64 features of a row, got 48/],
      [{ bits: 0 }, /bits must be an integer from 1 to 8, got 0/],
      [{ clipLr: -1 }, /clipLr must be from 0 to 1, got -1/],
    ] as const) {
      await expect(startedTrainer('apiq', { settings })).rejects.toThrow(message);
    }
  });
});

describe('fisherOf', () => {
  it('is the mean over sequences of the squares of their gradients', async () => {
    const { decoder, batches, T, dispose } = await startedTrainer('eva', {
      format: { format: 'none' },
    });
    const linears = decoder.weights.layers.flatMap(linearsOf);
    const modules = linears.map(({ place }) => place.module).filter((name) => /k_proj/.test(name));
    const data = { batches, T, dtype: 'f32' } as const;
    const found = await fisherOf(decoder, modules, data);
    const sequences = batches.flatMap(({ ids, targets }) =>
      Array.from({ length: ids.length / T }, (_, i) => ({
        ids: ids.slice(i * T, (i + 1) * T),
        targets: targets.slice(i * T, (i + 1) * T),
      })),
    );
    expect([...found.keys()]).toEqual(modules);
    for (const layer of linears.filter(({ place }) => modules.includes(place.module))) {
      const sums = new Float64Array(layer.place.N * layer.place.K);
      for (const batch of sequences) {
        const [seen] = await calibrate(decoder, [layer], 'gradient', { ...data, batches: [batch] });
        seen?.dw?.readSync().forEach((g, i) => {
          sums[i] = (sums[i] as number) + (g * g) / sequences.length;
        });
        seen?.dw?.dispose();
      }
      const own = found.get(layer.place.module) as Tensor;
      const most = Math.max(...sums);
      own.readSync().forEach((got, i) => {
        expect(Math.abs(got - (sums[i] as number))).toBeLessThan(1e-5 * most);
      });
    }
    for (const each of found.values()) each.dispose();
    dispose();
  });
});

describe('lq-lora', () => {
  const targets = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'];
  type Started = Awaited<ReturnType<typeof startedTrainer>>;
  const run = (settings: Record<string, unknown>): Promise<Started> =>
    startedTrainer('lq-lora', { settings, targets });

  const planesOf = ({ decoder }: Started) =>
    decoder.weights.layers
      .flatMap(linearsOf)
      .map(({ w }) => QuantizedWeight.planesOf(w as QuantizedWeight, 'test'));

  /** Bits a weight, and Σ F · (w − Q − update)² over all layers. */
  function facts(started: Started, fisher: ReadonlyMap<string, Tensor>) {
    const { decoder, model, set } = started;
    let [bits, elements, cost] = [0, 0, 0];
    const planes = planesOf(started);
    decoder.weights.layers.flatMap(linearsOf).forEach(({ place, w }, layer) => {
      const { bits: own, grid } = planes[layer] as (typeof planes)[number];
      if (grid.kind !== 'flat') throw new Error(grid.kind);
      const size = place.N * place.K;
      elements += size;
      const blocks = Math.ceil(size / grid.span);
      bits += size * own + blocks * 8 + Math.ceil(blocks / 256) * 32;
      const values = rawToFloat32(model.read(place.weight.name));
      const update = updateOf(set.byModule.get(place.module) as Adapter, 2);
      const weights = fisher.get(place.module)?.readSync();
      valuesOf(w).forEach((q, i) => {
        const error = (values[i] as number) - q - (update[i] as number);
        cost += (weights?.[i] ?? 1) * error * error;
      });
    });
    return { bits: bits / elements, cost };
  }

  it('spends its budget: more bits, less error, and formats that differ between layers', async () => {
    let last = Number.POSITIVE_INFINITY;
    for (const budget of [2.4, 3, 4.2]) {
      const started = await run({ budget, fisher: false });
      const { bits, cost } = facts(started, new Map());
      expect(bits).toBeLessThanOrEqual(budget);
      expect(bits).toBeGreaterThan(budget - 0.3);
      expect(cost).toBeLessThan(last);
      last = cost;
      if (budget === 3) {
        const formats = planesOf(started).map(
          ({ bits: own, grid }) => `${own} ${JSON.stringify(grid)}`,
        );
        expect(new Set(formats).size).toBeGreaterThan(1);
      }
      started.dispose();
    }
    await expect(run({ budget: 2.01, fisher: false })).rejects.toThrow(/budget must be at least/);
  });

  it('with Fisher weights the weighted error is smaller than without', async () => {
    const [by, without] = [await run({ budget: 3 }), await run({ budget: 3, fisher: false })];
    const dense = await startedTrainer('eva', { format: { format: 'none' }, targets });
    const modules = dense.decoder.weights.layers
      .flatMap(linearsOf)
      .map(({ place }) => place.module);
    const data = { batches: by.batches, T: by.T, dtype: 'f32' } as const;
    const fisher = await fisherOf(dense.decoder, modules, data);
    expect(facts(by, fisher).cost).toBeLessThan(0.95 * facts(without, fisher).cost);
    for (const each of fisher.values()) each.dispose();
    for (const each of [by, without, dense]) each.dispose();
  });
});

describe('the layer that ApiQ trains', () => {
  it('has the gradients of its clips that differences give, with rounding held', () => {
    scope(() => {
      const [N, K, B, bits] = [3, 16, 8, 2];
      const device = 'cpu' as const;
      const w = Tensor.randn([N, K], { seed: 1, device });
      const made = clippedLora.create({
        ...{ inFeatures: K, outFeatures: N, device, weight: w, r: 2, bits, groupSize: B },
      });
      const parameters = made.parameters as Record<string, Tensor>;
      const clips = (seed: number) =>
        Tensor.randn([N, K / B], { seed, device })
          .readSync()
          .map((v) => 0.3 + 0.5 * v);
      parameters.clipHigh?.write(clips(2));
      parameters.clipLow?.write(clips(3));
      // With x the identity, y is the weight on its grid, turned.
      const eye = new Float32Array(K * K);
      for (let k = 0; k < K; k++) eye[k * K + k] = 1;
      const x = Tensor.from(eye, [K, K], { device });
      const dy = Tensor.randn([K, N], { seed: 4, device });
      const { y, saved } = made.forward(x, w);
      const found = made.backward(dy, saved).parameters;
      const values = w.readSync();
      const top = 2 ** bits - 1;
      const sigmoid = (v: number) => 1 / (1 + Math.exp(-v));
      const ends = { high: 0, low: 0 };
      for (let g = 0; g < (N * K) / B; g++) {
        const own = [...values.slice(g * B, (g + 1) * B)];
        ends.high = Math.max(0, ...own);
        ends.low = Math.min(0, ...own);
        const clip = {
          high: (parameters.clipHigh as Tensor).readSync()[g] as number,
          low: (parameters.clipLow as Tensor).readSync()[g] as number,
        };
        const scaleOf = (high: number, low: number) =>
          (sigmoid(high) * ends.high - sigmoid(low) * ends.low) / top;
        const scale = scaleOf(clip.high, clip.low);
        const zero = Math.round((-sigmoid(clip.low) * ends.low) / scale);
        /** Σ dy · ŵ of the group; rounding adds what it added, and clipped codes stay at their end. */
        const sum = (s: number) =>
          own.reduce((total, value, i) => {
            const raw = Math.round(value / scale) + zero;
            const code = Math.min(Math.max(raw, 0), top);
            const on = raw === code;
            const q = on
              ? value + s * (Math.round(value / scale) - value / scale)
              : s * (code - zero);
            const [n, k] = [Math.floor((g * B + i) / K), (g * B + i) % K];
            if (s === scale) {
              expect(Math.abs((y.readSync()[k * N + n] as number) - q)).toBeLessThan(1e-5);
            }
            return total + q * (dy.readSync()[k * N + n] as number);
          }, 0);
        sum(scale);
        const step = 1e-5;
        const slope = (name: 'high' | 'low') => {
          const at = (d: number) => {
            const moved = { ...clip, [name]: clip[name] + d };
            return sum(scaleOf(moved.high, moved.low));
          };
          return (at(step) - at(-step)) / (2 * step);
        };
        for (const [name, side] of [
          ['clipHigh', 'high'],
          ['clipLow', 'low'],
        ] as const) {
          const got = (found[name] as Tensor).readSync()[g] as number;
          expect(Math.abs(got - slope(side)), `${name} ${g}`).toBeLessThan(1e-4);
        }
      }
    });
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

/** Live tensors once queued ops have run. */
async function liveTensors(): Promise<number> {
  const last = Tensor.zeros([1], { device: 'cpu' });
  await last.read();
  last.dispose();
  return memoryUsage('cpu').liveTensors;
}

describe('a start of a whole model', () => {
  it.each(['rilq', 'apiq', 'lq-lora'])(
    '%s leaves nothing allocated, also where it is stopped',
    async (name) => {
      (await startedTrainer(name, { settings: { rounds: 1 } })).dispose();
      const before = await liveTensors();
      const whole = await startedTrainer(name, { settings: { rounds: 1 } });
      const { model, decoder, batches, T } = whole;
      let held = 0;
      for (const last of name === 'lq-lora' ? [1, 0, 1] : [3, 0, 1, 3]) {
        using starter = new Starter(model, {
          start: startNamed('test', 'start', name),
          settings: { rounds: 2 },
          method: methodNamed('test', 'lora'),
          config: { r: 4 },
          targets: ['q_proj', 'k_proj', 'down_proj'],
          format: { format: 'nf4' },
          device: 'cpu',
          seed: 3,
        });
        const data = { batches, T, dtype: 'f32' } as const;
        const stop = (done: number) => {
          if (done === last) throw new Error('stopped');
        };
        await expect(starter.finish(decoder, data, stop)).rejects.toThrow('stopped');
        // The first pass fills the decoder's tables.
        if (held === 0) held = await liveTensors();
        expect(await liveTensors()).toBeLessThanOrEqual(held);
      }
      whole.dispose();
      expect(await liveTensors()).toBeLessThanOrEqual(before);
    },
  );

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
