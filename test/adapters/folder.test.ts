// Adapter folders of every method: written and read back, the layers compute the same.
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapterFromPeft,
  adapterMethods,
  adapters,
  adaptersToPeft,
  defineAdapter,
  LowrankError,
  NormAdapter,
  readAdapterFolder,
  scope,
  Tensor,
  writeAdapterFolder,
} from '../../lib/index.js';
import { settingsOf } from './settings.js';

const wave = (size: number, phase: number): Float32Array =>
  Float32Array.from({ length: size }, (_, i) => Math.sin(1.3 * i + phase));

async function inFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-test-'));
  try {
    await scope(() => body(join(folder, 'adapter')));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

describe.each(adapterMethods.map(({ method }) => method))('%s', (name) => {
  it('reads back what it wrote, for two layers of different sizes', async () => {
    await inFolder(async (folder) => {
      const { N, K, settings, inputs } = settingsOf(name);
      const method = adapterMethods.find((m) => m.method === name);
      const sizes = [
        { inFeatures: K, outFeatures: N },
        { inFeatures: 2 * K, outFeatures: 2 * N },
      ];
      const weights = sizes.map(({ inFeatures: k, outFeatures: n }) =>
        Tensor.from(wave(n * k, 1), [n, k], { device: 'cpu' }),
      );
      const places = sizes.map((size, i) => ({
        ...size,
        weight: weights[i] as Tensor,
        seed: 5 + i,
      }));
      const made = (method as NonNullable<typeof method>).createAll(
        places.map((place) => ({ ...place, ...settings })),
      ) as Adapter[];
      for (const adapter of made) {
        Object.values(adapter.parameters).forEach((tensor, i) => {
          const moved = wave(tensor.size, i);
          tensor.write(tensor.readSync().map((v, j) => v + 0.2 * (moved[j] as number)));
        });
        // Tables that follow from the values.
        adapter.refresh();
      }
      // FRoD's layers of one kind share a factor of their width.
      const names = name === 'frod' ? ['self_attn.q_proj', 'mlp.up_proj'] : ['lin', 'lin'];
      const byModule = new Map(made.map((one, i) => [`model.layers.${i}.${names[i]}`, one]));
      await writeAdapterFolder(folder, byModule, { task_type: 'CAUSAL_LM' });
      const read = readAdapterFolder(folder);
      expect(read.config.task_type).toBe('CAUSAL_LM');
      let i = 0;
      for (const [module, adapter] of byModule) {
        const place = places[i++] as (typeof places)[number];
        const back = adapterFromPeft(read, module, { ...place, seed: 99 });
        expect(back.method).toBe(name);
        expect(back.config).toEqual(adapter.config);
        const x = Tensor.from(wave(3 * place.inFeatures, 4), [3, place.inFeatures], {
          device: 'cpu',
        });
        const given = Object.fromEntries(
          Object.entries(inputs ?? {}).map(([input, shape]) => {
            const dims = shape(3, { N: place.outFeatures, K: place.inFeatures });
            const size = dims.reduce((product, dim) => product * dim, 1);
            return [input, Tensor.from(wave(size, 6), dims, { device: 'cpu' })];
          }),
        );
        const options = { training: false, inputs: given };
        const expected = await adapter.forward(x, place.weight, options).y.read();
        expect(await back.forward(x, place.weight, options).y.read()).toEqual(expected);
      }
    });
  });
});

describe('adapter folders', () => {
  const mine = defineAdapter({
    method: 'mine',
    reference: 'nobody',
    defaults: { r: 2 },
    trained: ['u'],
    shapes: ({ N, config: { r } }) => ({ u: [N, r] }),
    init: (make) => ({ u: make.normal('u', 1) }),
    forward: (t, { x, w, bias, p }) => t.add(t.linear(x, w, bias), t.reshape(t.sum(p.u, 1), [4])),
  });

  it('hold methods of one’s own, read with the method at hand', async () => {
    await inFolder(async (folder) => {
      const adapter = mine.create({ inFeatures: 3, outFeatures: 4, seed: 1, device: 'cpu' });
      await writeAdapterFolder(folder, new Map([['lin', adapter as unknown as Adapter]]));
      const read = readAdapterFolder(folder);
      const place = { inFeatures: 3, outFeatures: 4, device: 'cpu' as const };
      expect(() => adapterFromPeft(read, 'lin', place)).toThrow(
        /methods must be .* the method mine.*got none/,
      );
      const methods = [mine] as unknown as typeof adapterMethods;
      const back = adapterFromPeft(read, 'lin', place, methods);
      expect(await back.parameters.u?.read()).toEqual(await adapter.parameters.u?.read());
    });
  });

  it.each([
    ['OFT', 'module_dropout'],
    ['BOFT', 'boft_dropout'],
    ['LOKR', 'rank_dropout'],
    ['LOHA', 'module_dropout'],
  ])('of %s with %s are refused: no such dropout is offered', (type, field) => {
    const config = { peft_type: type, r: 4, [field]: 0.1 };
    const place = { inFeatures: 6, outFeatures: 4, device: 'cpu' as const };
    expect(() => adapterFromPeft({ config, tensors: new Map() }, 'lin', place)).toThrow(
      expect.objectContaining({ code: 'ERR_UNSUPPORTED', message: expect.stringContaining(field) }),
    );
  });

  it('refuse several methods, missing tensors and wrong shapes', async () => {
    await scope(async () => {
      const place = { inFeatures: 6, outFeatures: 4, seed: 1, device: 'cpu' as const };
      const [a, b] = ['lora', 'sora'].map((name) => settingsOf(name).create(place));
      const mixed = adaptersToPeft(
        new Map([
          ['a', a as Adapter],
          ['b', b as Adapter],
        ]),
      );
      await expect(mixed).rejects.toThrow(/of one method, got lora, sora/);
      const { config, tensors } = await adaptersToPeft(new Map([['lin', a as Adapter]]));
      const without = new Map([...tensors].filter(([key]) => !key.includes('lora_B')));
      const load =
        (from: typeof tensors, sizes = place) =>
        () =>
          adapterFromPeft({ config, tensors: from }, 'lin', sizes);
      expect(load(without)).toThrow(/must have the tensor lora_B.weight/);
      expect(load(tensors, { ...place, inFeatures: 7 })).toThrow(/loraA must be of shape \[8, 7\]/);
      expect(load(tensors, { ...place, inFeatures: 7 })).toThrow(LowrankError);
    });
  });
});

describe('fields of one’s own', () => {
  it.each([
    [
      'lora',
      { r: 99 },
      /fields\.r must be 2, or left out \(lora_A.weight of lin is \[2, 6\]\), got 99/,
    ],
    [
      'lora',
      { lora_bias: true },
      /fields\.lora_bias must be left out \(there is no lora_B.bias of lin/,
    ],
    ['lora', { use_dora: true }, /fields\.use_dora must be left out \(lin is an adapter of lora\)/],
    ['lora', { peft_type: 'VERA' }, /fields\.peft_type must be "LORA", or left out/],
    ['lora', { rank_pattern: { lin: 3 } }, /fields\.rank_pattern must be left out/],
    ['vera', { r: 99 }, /fields\.r must be .*, got 99/],
  ])('of %s that the tensors contradict are refused: %j', async (name, fields, message) => {
    await inFolder(async (folder) => {
      const place = { inFeatures: 6, outFeatures: 4, device: 'cpu' as const };
      const one =
        name === 'lora' ? adapters.lora.create({ ...place, r: 2 }) : adapters.vera.create(place);
      const byModule = new Map([['lin', one as unknown as Adapter]]);
      const refused = { code: 'ERR_VALUE', message: expect.stringMatching(message) };
      for (const from of [byModule, await adaptersToPeft(byModule)]) {
        const writing = writeAdapterFolder(folder, from, fields);
        await expect(writing).rejects.toThrow(expect.objectContaining(refused));
      }
      expect(existsSync(folder)).toBe(false);
    });
  });

  it.each(adapterMethods.map(({ method }) => method))(
    'that say nothing of the tensors are written, of %s',
    async (name) => {
      await inFolder(async (folder) => {
        const { N, K, settings } = settingsOf(name);
        const place = { inFeatures: K, outFeatures: N, device: 'cpu' as const };
        const weight = Tensor.from(wave(N * K, 1), [N, K], { device: 'cpu' });
        const method = adapterMethods.find((each) => each.method === name);
        const one = method?.create({ ...place, weight, ...settings }) as Adapter;
        const { wholeTargets = false } = method?.definition.peft ?? {};
        const fields = {
          target_modules: [wholeTargets ? 'lin' : 'q_proj'],
          base_model_name_or_path: 'base',
          task_type: null,
          revision: 'main',
          inference_mode: false,
          modules_to_save: ['lm_head'],
          lora_alpha: 3,
          arrow_config: null,
        };
        await writeAdapterFolder(folder, new Map([['lin', one]]), fields);
        expect(readAdapterFolder(folder).config).toMatchObject(fields);
      });
    },
  );

  it.each(['lily', 'ia3-input'])('are whole names in target_modules, of %s', async (name) => {
    await inFolder(async (folder) => {
      const one = settingsOf(name).create({ inFeatures: 6, outFeatures: 4, device: 'cpu' });
      const byModule = new Map([['layers.0.lin', one]]);
      const writing = writeAdapterFolder(folder, byModule, { target_modules: ['lin'] });
      await expect(writing).rejects.toThrow(
        /fields\.target_modules must be \["layers\.0\.lin"\], or left out \(PEFT needs the full name of layers\.0\.lin/,
      );
    });
  });

  it('of a disposed adapter nothing is written, and its module is named', async () => {
    await inFolder(async (folder) => {
      const make = () =>
        adapters.lora.create({
          inFeatures: 6,
          outFeatures: 4,
          device: 'cpu',
        }) as unknown as Adapter;
      const byModule = new Map([
        ['a', make()],
        ['b', make()],
      ]);
      byModule.get('b')?.dispose();
      const text = ': adapter of b must be a live adapter, got one whose loraA is disposed';
      for (const [op, writing] of [
        ['writeAdapterFolder', writeAdapterFolder(folder, byModule)],
        ['adaptersToPeft', adaptersToPeft(byModule)],
      ] as const) {
        const refused = { code: 'ERR_DISPOSED', message: op + text };
        await expect(writing).rejects.toThrow(expect.objectContaining(refused));
      }
    });
  });

  it('may put right what a folder’s config says', async () => {
    await inFolder(async (folder) => {
      const one = adapters.lora.create({ inFeatures: 6, outFeatures: 4, r: 2, device: 'cpu' });
      const made = await adaptersToPeft(new Map([['lin', one as unknown as Adapter]]));
      const wrong = { ...made, config: { ...made.config, r: 5 } };
      await writeAdapterFolder(folder, wrong, { r: 2 });
      const place = { inFeatures: 6, outFeatures: 4, device: 'cpu' as const };
      expect(adapterFromPeft(readAdapterFolder(folder), 'lin', place).config).toMatchObject({
        r: 2,
      });
    });
  });
});

it('a folder of norms is written too', async () => {
  await inFolder(async (folder) => {
    const weight = Tensor.from(wave(6, 1), [6], { device: 'cpu' });
    await writeAdapterFolder(
      folder,
      await NormAdapter.toPeft(new Map([['norm', new NormAdapter({ weight })]])),
    );
    const stored = readAdapterFolder(folder);
    expect(stored.config).toMatchObject({ peft_type: 'LN_TUNING', target_modules: ['norm'] });
    const norm = NormAdapter.fromPeft(stored, 'norm', { device: 'cpu' });
    expect(norm.weight.readSync()).toEqual(wave(6, 1));
  });
});
