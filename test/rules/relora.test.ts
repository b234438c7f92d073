// ReLoRA against its formulas in float64: what is merged, what is forgotten, the learning rate, and what the folder has.
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { rawToFloat32 } from '../../lib/checkpoint/raw-tensor.js';
import type { FinetuneOptions } from '../../lib/finetune/finetune.js';
import { quantize, Tensor } from '../../lib/index.js';
import type { ModelTrainer } from '../../lib/train/model-trainer.js';
import { writeAdapter } from '../../lib/trained/write-adapter.js';
import { filesOf, matrixOf } from '../adapters/peft-load.js';
import { stateOf, temporaryFolder, tinyTrainer } from '../finetune/setup.js';
import { loadAsPeft } from '../oracle/peft/index.js';
import { norm, product, valuesOf, worst } from '../starts/setup.js';
import { baseOf, named, tensorOf } from './setup.js';

const kSizes = { hiddenSize: 32, intermediateSize: 48, numKeyValueHeads: 2, headDim: 8 };
const kScaling = 2; // loraAlpha 6, r 3

const tiny = (
  settings: Readonly<Record<string, number>> | undefined,
  format: 'none' | 'nf4' = 'none',
  more: { steps?: number; adapter?: Readonly<Record<string, unknown>> } = {},
) =>
  tinyTrainer(
    kSizes,
    { format },
    {
      ...{ warmup: 0, weightDecay: 0, targets: ['q_proj'], ...more },
      ...(settings === undefined ? {} : { rules: [{ rule: named('relora'), settings }] }),
    },
  );

const run = async (trainer: ModelTrainer, steps: number) => {
  const rates: number[] = [];
  for (let i = 0; i < steps; i++) rates.push((await trainer.train()).lr);
  return rates;
};

/** `s · B · A` of a layer, in float64. */
const updateOf = (trainer: ModelTrainer, module: string, N: number, K: number, r = 3) =>
  product(tensorOf(trainer, `${module}.loraB`), tensorOf(trainer, `${module}.loraA`), N, r, K).map(
    (value) => kScaling * value,
  );

/** The weight of the files. */
const originalOf = ({ model }: ReturnType<typeof tiny>, module: string) =>
  Float64Array.from(rawToFloat32(model.read(`${module}.weight`)));

describe('relora', () => {
  it('merges s · B · A, draws A anew, and keeps the states that are the largest of their kind', async () => {
    const [plain, ruled] = [tiny(undefined), tiny({ every: 4, rewarm: 2, prune: 0.9 })];
    await run(plain.trainer, 4);
    await run(ruled.trainer, 4);
    for (const { place } of plain.trainer.adapters.layers) {
      const { module, N, K } = place;
      const update = updateOf(plain.trainer, module, N, K);
      expect(norm(update)).toBeGreaterThan(0);
      const merged = baseOf(ruled.trainer, module);
      const expected = originalOf(plain, module).map((value, i) => value + (update[i] as number));
      expect(worst(merged, expected), module).toBeLessThan(2e-7 * (1 + norm(expected)));
      expect(tensorOf(ruled.trainer, `${module}.loraB`).every((value) => value === 0)).toBe(true);
      const a = tensorOf(ruled.trainer, `${module}.loraA`);
      const bound = 1 / Math.sqrt(K);
      expect(a.every((value) => Math.abs(value) <= bound)).toBe(true);
      expect(Math.max(...a.map(Math.abs))).toBeGreaterThan(0.7 * bound);
      expect(worst(a, tensorOf(plain.trainer, `${module}.loraA`))).toBeGreaterThan(0.1 * bound);
    }
    const states = (trainer: ModelTrainer) => ['m', 'v'].map((name) => stateOf(trainer, name));
    const [before, after] = [states(plain.trainer), states(ruled.trainer)];
    let at = 0;
    let left = 0;
    for (const { tensor } of plain.trainer.trainer.parameters) {
      const own = before.map((state) => Array.from(state.subarray(at, at + tensor.size)));
      const limits = own.map((values) => {
        const sizes = values.map(Math.abs).sort((x, y) => x - y);
        const place = 0.9 * (sizes.length - 1);
        const [low, share] = [Math.floor(place), place % 1];
        return (sizes[low] as number) * (1 - share) + (sizes[Math.ceil(place)] as number) * share;
      });
      const keep = own[0]?.map((_, i) =>
        own.every((values, k) => Math.abs(values[i] as number) > (limits[k] as number)),
      );
      for (const [k, values] of own.entries()) {
        const kept = values.map((value, i) => (keep?.[i] ? value : 0));
        expect(Array.from(after[k]?.subarray(at, at + tensor.size) ?? [])).toEqual(kept);
      }
      left += keep?.filter(Boolean).length ?? 0;
      at += tensor.size;
    }
    expect(left).toBeGreaterThan(0.02 * at);
    expect(left).toBeLessThanOrEqual(0.1 * at);
    plain.dispose();
    ruled.dispose();
  });

  it('has a learning rate with teeth', async () => {
    const made = tiny({ every: 4, rewarm: 2, prune: 1 }, 'none', { steps: 10 });
    const rates = await run(made.trainer, 10);
    const cosine = (step: number) => 1e-2 * (0.55 + 0.45 * Math.cos((Math.PI * step) / 10));
    const expected = [
      ...[0, 1, 2, 3].map(cosine),
      ...[cosine(6) / 2, cosine(6), cosine(6), cosine(7)],
      ...[cosine(10) / 2, cosine(10)],
    ];
    expect(worst(rates, expected)).toBeLessThan(1e-15);
    made.dispose();
  });

  it.each(['none', 'nf4'] as const)(
    'writes the sum of all updates over the weights of the files (%s)',
    async (format) => {
      const made = tiny({ every: 3, rewarm: 1, prune: 1 }, format, { steps: 8 });
      const { trainer } = made;
      await run(trainer, 8);
      expect(trainer.rules?.merges.counts).toEqual(trainer.adapters.layers.map(() => 2));
      const out = path.join(temporaryFolder(), 'adapter');
      await writeAdapter({ out, model: '' } as FinetuneOptions, trainer.adapters, trainer.rules);
      const weight = (module: string, N: number, K: number) =>
        matrixOf(
          Tensor.from(Float32Array.from(originalOf(made, module)), [N, K], { device: 'cpu' }),
        );
      const layers = trainer.adapters.layers.map(({ place }) => place);
      const peft = loadAsPeft(
        filesOf(out),
        new Map(layers.map(({ module, N, K }) => [module, { weight: weight(module, N, K) }])),
      );
      for (const { module, N, K } of layers) {
        const eye = Float32Array.from({ length: K * K }, (_, i) => (i % (K + 1) === 0 ? 1 : 0));
        const y = peft.forward(module, matrixOf(Tensor.from(eye, [K, K], { device: 'cpu' })));
        const loaded = Float64Array.from({ length: N * K }, (_, i) =>
          Number(y.data[(i % K) * N + Math.floor(i / K)]),
        );
        const update = updateOf(trainer, module, N, K);
        const own = baseOf(trainer, module).map((value, i) => value + (update[i] as number));
        // A base in NF4 is within half a step of its weight.
        const bound = format === 'none' ? 1e-5 : 0.2 * Math.max(...own.map(Math.abs));
        expect(worst(loaded, own), module).toBeLessThan(bound);
      }
      made.dispose();
    },
  );

  it('adds up to an update of a higher rank than its adapters have', async () => {
    const rankOf = (values: Float64Array, N: number, K: number) => {
      const rows = Array.from({ length: N }, (_, n) =>
        Array.from(values.subarray(n * K, (n + 1) * K)),
      );
      const most = Math.max(...values.map(Math.abs));
      let rank = 0;
      for (let k = 0; k < K && rank < N; k++) {
        const at = (n: number) => Math.abs(rows[n]?.[k] ?? 0);
        let best = rank;
        for (let n = rank; n < N; n++) if (at(n) > at(best)) best = n;
        if (at(best) < 1e-4 * most) continue;
        [rows[rank], rows[best]] = [rows[best] as number[], rows[rank] as number[]];
        const pivot = rows[rank] as number[];
        for (let n = rank + 1; n < N; n++) {
          const row = rows[n] as number[];
          const factor = (row[k] as number) / (pivot[k] as number);
          for (let j = k; j < K; j++) row[j] = (row[j] as number) - factor * (pivot[j] as number);
        }
        rank++;
      }
      return rank;
    };
    const made = tiny({ every: 4, rewarm: 1, prune: 1 }, 'none', { steps: 12 });
    await run(made.trainer, 12);
    for (const { place } of made.trainer.adapters.layers) {
      const { module, N, K } = place;
      const own = updateOf(made.trainer, module, N, K);
      const before = originalOf(made, module);
      const whole = baseOf(made.trainer, module).map(
        (value, i) => value + (own[i] as number) - (before[i] as number),
      );
      expect(rankOf(own, N, K), module).toBe(3);
      expect(rankOf(whole, N, K), module).toBeGreaterThan(6);
    }
    made.dispose();
  });

  it('rounds a base once, however often it is merged into', async () => {
    const made = tiny({ every: 1, rewarm: 0, prune: 1 }, 'nf4', { steps: 6 });
    await run(made.trainer, 6);
    for (const { place } of made.trainer.adapters.layers) {
      const { module, N, K } = place;
      const sum = originalOf(made, module);
      for (const { a, b } of made.trainer.rules?.merges.factors.get(module) ?? []) {
        const update = product(b, a, N, 3, K);
        for (let i = 0; i < sum.length; i++) {
          sum[i] = (sum[i] as number) + kScaling * (update[i] as number);
        }
      }
      const base = baseOf(made.trainer, module);
      const stored = quantize(Tensor.from(Float32Array.from(sum), [N, K], { device: 'cpu' }), {
        format: 'nf4',
      });
      // A sum in another order moves the scales by an ulp, and may fall on the other side of a boundary between codes, rarely.
      const once = valuesOf(stored);
      const others = base.filter((value, i) => Math.abs(value - (once[i] as number)) > 1e-5).length;
      expect(others / base.length, module).toBeLessThan(0.002);
      stored.dispose();
    }
    made.dispose();
  });
});
