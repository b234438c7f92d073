// Starts of a model's layers: what calibration sees, what is trained, resumed and saved.
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { rawToFloat32 } from '../../lib/checkpoint/raw-tensor.js';
import type { FinetuneOptions } from '../../lib/finetune/finetune.js';
import { restoreRunState, saveRunState } from '../../lib/finetune/run-state.js';
import {
  type BaseWeight,
  type InputSums,
  ModelTape,
  QuantizedWeight,
  readAdapterFolder,
  scope,
  startMethods,
  svd,
  Tensor,
} from '../../lib/index.js';
import { linearsOf } from '../../lib/model/decoder-weights.js';
import { calibrate } from '../../lib/starts/calibration/calibrate.js';
import { ObservingTape } from '../../lib/starts/calibration/observing-tape.js';
import { writeAdapter } from '../../lib/trained/write-adapter.js';
import { filesOf, matrixOf, worst as worstOf } from '../adapters/peft-load.js';
import {
  gradientOf,
  offsetsOf,
  temporaryFolder,
  tinyTrainer,
  valuesOf as trained,
} from '../finetune/setup.js';
import { loadAsPeft } from '../oracle/peft/index.js';
import {
  minus,
  norm,
  product,
  startedTrainer,
  turned,
  updateOf,
  valuesOf,
  worst,
} from './setup.js';

const bits = (values: Float32Array) => new Uint32Array(values.slice().buffer);

describe('calibration', () => {
  const sizes = { hiddenSize: 48, intermediateSize: 96, numKeyValueHeads: 2, headDim: 12 };

  it('sees the gradient of each weight: that of a zero loraB is s · dW · loraAᵀ', async () => {
    const tiny = tinyTrainer(sizes, { format: 'nf4' }, {});
    const { decoder, trainer } = tiny;
    const { layers } = trainer.adapters;
    const linears = decoder.weights.layers.flatMap(linearsOf);
    const data = { batches: trainer.nextBatches(), T: trainer.data.train.T, dtype: 'f32' as const };
    const seen = await calibrate(decoder, linears, 'gradient', data);
    const { gradient } = gradientOf(trainer);
    const at = offsetsOf(trainer);
    for (const [i, { place, adapter }] of layers.entries()) {
      const { N, K, module } = place;
      const begin = at.get(`${module}.loraB`) as number;
      const a = (adapter.parameters.loraA as Tensor).readSync();
      const { dw: found } = seen[i] as { dw: Tensor };
      const dw = found.readSync();
      const expected = product(dw, turned(a, 3, K), N, K, 3).map((v) => 2 * v);
      expect(worst(gradient.slice(begin, begin + 3 * N), expected), module).toBeLessThan(
        1e-6 + 1e-5 * norm(expected),
      );
      found.dispose();
    }
    tiny.dispose();
  });

  it('sees the inputs of each layer: sums over two batches are those of all rows', async () => {
    const tiny = tinyTrainer(sizes, { format: 'none' }, {});
    const { decoder, trainer } = tiny;
    const { T } = trainer.data.train;
    const batches = [trainer.data.train.batch([0, 1]), trainer.data.train.batch([4])];
    const linears = decoder.weights.layers.flatMap(linearsOf);
    const seen = await calibrate(decoder, linears, 'inputs', { batches, T, dtype: 'f32' });
    // q, k and v read one tensor, and so do gate and up.
    expect(new Set(seen.map(({ inputs }) => inputs)).size).toBe(4 * decoder.weights.layers.length);
    // The first layer's: embeddings of the tokens, normalised.
    const { embedding, layers } = decoder.weights;
    const [rows, gain] = [embedding, layers[0]?.attentionNorm as Tensor].map(valuesOf) as [
      Float64Array,
      Float64Array,
    ];
    const K = gain.length;
    const gram = new Float64Array(K * K);
    const sum = new Float64Array(K);
    for (const id of batches.flatMap(({ ids }) => [...ids])) {
      const x = rows.slice(id * K, (id + 1) * K);
      const size = Math.sqrt(norm(x) ** 2 / K + decoder.config.norm.eps);
      const y = x.map((v, k) => (v / size) * (gain[k] as number));
      y.forEach((a, i) => {
        sum[i] = (sum[i] as number) + a;
        for (let j = 0; j < K; j++)
          gram[i * K + j] = (gram[i * K + j] as number) + a * (y[j] as number);
      });
    }
    const first = seen[0]?.inputs as InputSums;
    expect([first.rows, first.batches]).toEqual([3 * T, 2]);
    expect(worst(first.gram, gram)).toBeLessThan(1e-4);
    expect(worst(first.sum, sum)).toBeLessThan(1e-4);
    tiny.dispose();
  });

  it('changes no bit of the loss', () => {
    const tiny = tinyTrainer(sizes, { format: 'nf4' }, {});
    const { decoder, trainer } = tiny;
    const { ids, targets } = trainer.data.train.batch([0, 1]);
    const observers = new Map(
      decoder.weights.layers
        .flatMap(linearsOf)
        .map(({ w }) => [w, { input: () => {}, gradient: () => {} }] as const),
    );
    const loss = (tape: ModelTape) => {
      const { features } = decoder.forward(
        tape,
        { ids, B: 2, T: trainer.data.train.T },
        { inputGradient: true },
      );
      return decoder.loss(tape, features, targets).loss.tensor.readSync()[0];
    };
    scope(() => {
      expect(loss(new ObservingTape(observers, true))).toBe(loss(new ModelTape()));
    });
    tiny.dispose();
  });
});

const NAMES = startMethods
  .filter(({ start, adapters: fits = ['lora'] }) => start !== 'slora' && fits[0] === 'lora')
  .map(({ start }) => start);

describe('a started model', () => {
  it.each([...NAMES, 'lora-sb', 'lora-xs', 'kasa', 'pafi'])(
    '%s: a run that stops in the middle goes on with the same bits',
    async (name) => {
      const train = async (
        { trainer }: Awaited<ReturnType<typeof startedTrainer>>,
        steps: number,
      ) => {
        const losses: number[] = [];
        for (let i = 0; i < steps; i++) losses.push((await trainer.train()).loss);
        return losses;
      };
      const whole = await startedTrainer(name);
      const losses = await train(whole, 4);
      const first = await startedTrainer(name);
      const early = await train(first, 2);
      const file = path.join(temporaryFolder(), 'state');
      saveRunState(file, first.trainer, { init: name }, { train: early, heldOut: [] });
      const second = await startedTrainer(name);
      restoreRunState('test', file, second.trainer, { init: name });
      expect([...early, ...(await train(second, 2))]).toEqual(losses);
      expect(bits(trained(second.trainer))).toEqual(bits(trained(whole.trainer)));
      for (const each of [whole, first, second]) each.dispose();
    },
  );

  it.each(NAMES)('%s: PEFT computes on the original weight what was trained', async (name) => {
    const start = startMethods.find(({ start: own }) => own === name);
    const started = await startedTrainer(name, {
      format: { format: start?.quantises === true ? 'nf4' : 'none' },
    });
    const { set, trainer, model, decoder } = started;
    for (let i = 0; i < 3; i++) await trainer.train();
    const out = path.join(temporaryFolder(), 'out');
    await writeAdapter({ out, model: 'base' } as FinetuneOptions, set);
    const { config, tensors } = readAdapterFolder(out);
    const twice = start?.replacesBase === true ? 2 : 1;
    expect(config.init_lora_weights).toBe(start?.peft ?? true);
    const bases = new Map(
      decoder.weights.layers.flatMap(linearsOf).map(({ place, w }) => [place.module, w]),
    );
    // A repaired base stays as it is quantised. LoftQ's factors stand for what quantising took, but for a rest.
    const originalOf = ({ place, adapter }: (typeof set.layers)[number]): ArrayLike<number> => {
      const stored = bases.get(place.module) as BaseWeight;
      if (!QuantizedWeight.is(stored)) return rawToFloat32(model.read(place.weight.name));
      const base = valuesOf(stored);
      const taken = set.startFactors.get(place.module);
      if (taken === undefined) return base;
      const [a, b] = [taken.loraA, taken.loraB].map((each) => (each as Tensor).readSync());
      const update = product(b as Float32Array, a as Float32Array, place.N, 4, adapter.inFeatures);
      return base.map((v, i) => v + 2 * (update[i] as number));
    };
    const peft = loadAsPeft(
      filesOf(out),
      new Map(
        set.layers.map((layer) => {
          const { module, N, K } = layer.place;
          const values = Float32Array.from(originalOf(layer));
          return [module, { weight: matrixOf(Tensor.from(values, [N, K], { device: 'cpu' })) }];
        }),
      ),
    );
    for (const { place, adapter } of set.layers) {
      const { module, K } = place;
      const r = (adapter.config as { r: number }).r;
      expect(tensors.get(`base_model.model.${module}.lora_A.weight`)?.shape).toEqual([
        twice * r,
        K,
      ]);
      const x = Tensor.randn([3, K], { seed: 2, device: 'cpu' });
      const base = bases.get(module);
      const { y } = adapter.forward(x, base as Tensor, { training: false });
      const error = worstOf(y.readSync(), peft.forward(module, matrixOf(x)));
      expect(error, module).toBeLessThan(2e-5);
    }
    started.dispose();
  });

  it('frozen factors do not move, and are not counted', async () => {
    for (const [name, frozen] of [
      ['mica', 'loraB'],
      ['inflora', 'loraA'],
    ] as const) {
      const { set, trainer, dispose } = await startedTrainer(name);
      const [{ adapter }] = set.layers as [(typeof set.layers)[number]];
      const before = (adapter.parameters[frozen] as Tensor).readSync().slice();
      const update = norm(updateOf(adapter, 2));
      for (let i = 0; i < 2; i++) await trainer.train();
      expect((adapter.parameters[frozen] as Tensor).readSync()).toEqual(before);
      expect(norm(updateOf(adapter, 2))).toBeGreaterThan(update);
      expect(trainer.trainer.parameters.every(({ name: own }) => !own.endsWith(frozen))).toBe(true);
      dispose();
    }
  });

  it('eva and gora move ranks between layers, within their budget, and keep the scaling', async () => {
    for (const name of ['eva', 'gora']) {
      const { set, trainer, dispose } = await startedTrainer(name);
      const configs = set.layers.map(
        ({ adapter }) => adapter.config as { r: number; loraAlpha: number },
      );
      expect(new Set(configs.map(({ r }) => r)).size, name).toBeGreaterThan(1);
      if (name === 'eva')
        expect(configs.reduce((sum, { r }) => sum + r, 0)).toBe(4 * configs.length);
      for (const { r, loraAlpha } of configs) expect(loraAlpha / r).toBeCloseTo(2, 12);
      await trainer.train();
      const out = path.join(temporaryFolder(), 'out');
      await writeAdapter({ out, model: 'base' } as FinetuneOptions, set);
      const { config } = readAdapterFolder(out);
      expect(Object.keys(config.rank_pattern as object).length).toBeGreaterThan(0);
      dispose();
    }
  });

  it('slora: begins at the nearest update to that of the first stage', async () => {
    const first = tinyTrainer(
      { hiddenSize: 64, intermediateSize: 96, numKeyValueHeads: 2, headDim: 16 },
      { format: 'none' },
      {
        adapter: { method: 'shira', r: 4, targets: ['q_proj', 'k_proj', 'down_proj'] },
      },
    );
    for (let i = 0; i < 3; i++) await first.trainer.train();
    const stage = path.join(temporaryFolder(), 'stage');
    await writeAdapter(
      { out: stage, model: 'base', train: { steps: 3 } } as FinetuneOptions,
      first.trainer.adapters,
    );
    const { set, dispose } = await startedTrainer('slora', { settings: { stage, iterations: 0 } });
    for (const [i, { adapter, place }] of set.layers.entries()) {
      const { N, K } = place;
      const w = Tensor.zeros([N, K], { device: 'cpu' });
      const { adapter: sparse } = first.trainer.adapters.layers[i] as (typeof set.layers)[number];
      const update = valuesOf(sparse.merge(w).weight);
      const rest = minus(update, updateOf(adapter, 2));
      const { s } = svd(Tensor.from(Float32Array.from(update), [N, K], { device: 'cpu' }));
      expect(norm(rest), place.module).toBeCloseTo(norm(s.slice(4)), 5);
    }
    first.dispose();
    dispose();
  });
});
