// combineAdapters on adapters, Maps and folders: kinds, dtypes, layers of other kinds, PEFT's corners.
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapterFromPeft,
  adapters,
  adaptersToPeft,
  combineAdapters,
  memoryUsage,
  mergeMethods,
  merges,
  type PeftFolder,
  readAdapterFolder,
  scope,
  Tensor,
} from '../../lib/index.js';

const recorded = path.join(import.meta.dirname, '..', 'golden', 'merging', 'cat');
const folder = (name: string): PeftFolder => readAdapterFolder(path.join(recorded, name));

const made = (seed: number, options: object = {}): Adapter => {
  const adapter = adapters.lora.create({ inFeatures: 12, outFeatures: 5, r: 2, seed, ...options });
  const { loraB } = adapter.parameters as { loraB: Tensor };
  loraB.write(Tensor.randn(loraB.shape, { seed: seed + 9 }).readSync());
  return adapter as Adapter;
};

/** The update of the base weight. */
const updateOf = (adapter: Adapter): Float32Array =>
  (
    adapter.merge(
      Tensor.zeros([adapter.outFeatures, adapter.inFeatures], { device: adapter.device }),
    ).weight as Tensor
  ).readSync();

function near(a: ArrayLike<number>, b: ArrayLike<number>, most = 1e-5): void {
  expect(a.length).toBe(b.length);
  for (let i = 0; i < a.length; i++) {
    expect(Math.abs((a[i] as number) - (b[i] as number)), String(i)).toBeLessThan(most);
  }
}

describe('combineAdapters', () => {
  it('counts alpha, rank and rsLoRA of each adapter, and gives the scaling 1', async () => {
    await scope(async () => {
      const a = made(1, { loraAlpha: 6 });
      const b = made(2, { r: 4, loraAlpha: 3, rslora: true });
      const both = await combineAdapters([a, b], [2, -1], { by: 'cat' });
      expect(both.config).toMatchObject({ r: 6, loraAlpha: 6, rslora: false });
      const [ofA, ofB] = [updateOf(a), updateOf(b)];
      near(
        updateOf(both),
        ofA.map((value, i) => 2 * value - (ofB[i] as number)),
      );
    });
  });

  it('keeps the dtype and the dropout of the first adapter', async () => {
    await scope(async () => {
      const options = { dtype: 'bf16', dropout: 0.25 };
      const both = await combineAdapters([made(1, options), made(2, options)], undefined, {
        by: 'pem',
      });
      expect(both.parameters.loraA?.dtype).toBe('bf16');
      expect(both.config).toMatchObject({ dropout: 0.25, loraAlpha: 8 });
    });
  });

  it.each([
    ['a convolution', { kernel: [3] }],
    ['an embedding', { embedding: true }],
  ])('merges %s as a linear layer', async (_, kind) => {
    await scope(async () => {
      const linear = await combineAdapters([made(1), made(2)], [1, 0.5], { by: 'cat' });
      const own = await combineAdapters([made(1, kind), made(2, kind)], [1, 0.5], { by: 'cat' });
      expect(own.config).toMatchObject(kind);
      expect(own.parameters.loraB?.shape).toEqual(linear.parameters.loraB?.shape);
      const folders = await Promise.all(
        [1, 2].map((seed) => adaptersToPeft(new Map([['lin', made(seed, kind)]]))),
      );
      const merged = await combineAdapters(folders, [1, 0.5], { by: 'cat' });
      const size = { inFeatures: 12, outFeatures: 5 };
      const back = adapterFromPeft(merged, 'lin', size);
      expect(back.parameters.loraA?.readSync()).toEqual(own.parameters.loraA?.readSync());
    });
  });

  it('merges a layer that some adapters lack from the others', async () => {
    await scope(async () => {
      const [a, b, c] = [made(1), made(2), made(3)];
      const maps = [
        new Map([['x', a]]),
        new Map([
          ['x', b],
          ['y', c],
        ]),
      ];
      const both = await combineAdapters(maps, [1, 0.5], { by: 'cat' });
      expect([...both.keys()]).toEqual(['x', 'y']);
      near(
        updateOf(both.get('y') as Adapter),
        updateOf(c).map((value) => value / 2),
      );
    });
  });

  it('merges one adapter alone linearly by the rules of PEFT', async () => {
    await scope(async () => {
      const half = updateOf(made(1)).map((value) => value / 2);
      for (const merge of mergeMethods.filter(({ alone }) => alone === merges.linear)) {
        near(updateOf(await combineAdapters([made(1)], [0.5], { by: merge })), half);
      }
      expect(mergeMethods.filter(({ alone }) => alone !== undefined)).toHaveLength(10);
    });
  });

  it('averages LoRA-FA, whose A is frozen, in folders too', async () => {
    await scope(async () => {
      const size = { inFeatures: 12, outFeatures: 5, r: 2 };
      const first = adapters.loraFa.create({ ...size, seed: 1 });
      const loraA = first.buffers.loraA as Tensor;
      const clients = [2, 3].map((seed) => {
        const loraB = Tensor.randn([5, 2], { seed });
        return adapters.loraFa.from({ loraA: loraA.to({ dtype: 'f32' }), loraB }, size) as Adapter;
      });
      const mean = await combineAdapters(clients, [3, 1], { by: 'ffa' });
      expect(mean.method).toBe('lora-fa');
      expect(mean.buffers.loraA?.readSync()).toEqual(loraA.readSync());
      const [a, b] = clients.map(updateOf) as [Float32Array, Float32Array];
      near(
        updateOf(mean),
        a.map((value, i) => 0.75 * value + 0.25 * (b[i] as number)),
      );
      const folders = await Promise.all(
        clients.map((own) => adaptersToPeft(new Map([['lin', own]]))),
      );
      const merged = await combineAdapters(folders, [3, 1], { by: 'ffa' });
      const back = adapterFromPeft(merged, 'lin', { inFeatures: 12, outFeatures: 5 });
      expect(updateOf(back)).toEqual(updateOf(mean));
    });
  });

  it('negates and forgets', async () => {
    await scope(async () => {
      const minus = updateOf(made(1)).map((value) => -value);
      near(updateOf(await combineAdapters([made(1)], [-1], { by: 'pem' })), minus);
      near(updateOf(await combineAdapters([made(1)], [-1], { by: 'task-arithmetic' })), minus);
      near(updateOf(await combineAdapters([made(1)], [-1], { by: 'linear' })), minus);
    });
  });

  it('draws DARE from the seed alone', async () => {
    await scope(async () => {
      const of = async (seed: number) =>
        updateOf(await combineAdapters([made(1), made(2)], [1, 1], { by: 'dare-linear', seed }));
      expect(await of(3)).toEqual(await of(3));
      expect(await of(3)).not.toEqual(await of(4));
    });
  });

  it('cuts ranks to the layer, and pads none away', async () => {
    await scope(async () => {
      const both = await combineAdapters([made(1), made(2)], [1, 1], { by: 'svd', rank: 400 });
      expect(both.config).toMatchObject({ r: 5 });
      const nothing = [1, 2].map(
        (seed) => adapters.lora.create({ inFeatures: 12, outFeatures: 5, seed }) as Adapter,
      );
      for (const by of ['svd', 'knots', 'flexlora', 'hetlora', 'ties-svd']) {
        const sum = await combineAdapters(nothing, undefined, { by });
        expect(
          updateOf(sum).every((value) => value === 0),
          by,
        ).toBe(true);
      }
    });
  });

  it('frees what it makes of folders', async () => {
    const before = memoryUsage('cpu').liveTensors;
    const merged = await combineAdapters([folder('a'), folder('b')], [1, 1], { by: 'ties-svd' });
    expect(memoryUsage('cpu').liveTensors).toBe(before);
    expect(merged.config).toMatchObject({ r: 4, lora_alpha: 4 });
  });

  it('keeps what the folders say of their base', async () => {
    const named = (name: string, fields: object): PeftFolder => {
      const { config, tensors } = folder(name);
      return { config: { ...config, ...fields }, tensors };
    };
    const fields = { base_model_name_or_path: 'llama', task_type: 'CAUSAL_LM' };
    const merged = await combineAdapters([folder('a'), named('b', fields)], undefined, {
      by: 'cat',
    });
    expect(merged.config).toMatchObject(fields);
  });
});
