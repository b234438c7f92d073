// Layers of one folder that have ranks and alphas of their own: PEFT's config has a value for most, and patterns for the
// others. What is written is read again to the same settings and the same bits.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapterFromPeft,
  adapterMethods,
  adapters,
  adaptersToPeft,
  readPeftAdapter,
  scope,
  Tensor,
  writeAdapterFolder,
} from '../../lib/index.js';
import { namesIn, raw, wave } from './peft-folder.js';

const [K, N] = [8, 6];
const place = { inFeatures: K, outFeatures: N, device: 'cpu' as const };
const weight = () => Tensor.from(wave(N * K, 4), [N, K], { device: 'cpu' });

/** Every module is read as it was. */
async function expectRoundTrip(made: ReadonlyMap<string, Adapter>) {
  const folder = await adaptersToPeft(made);
  for (const [module, adapter] of made) {
    const again = adapterFromPeft(folder, module, { ...place, weight: weight() });
    expect(again.config, module).toEqual(adapter.config);
    for (const [name, tensor] of Object.entries(adapter.parameters))
      expect(again.parameters[name]?.readSync(), `${module} ${name}`).toEqual(tensor.readSync());
  }
  return folder;
}

const of = (method: string, settings: readonly object[], names = ['a', 'b', 'c', 'a.b']) => {
  const found = adapterMethods.find((candidate) => candidate.method === method);
  if (found === undefined) throw new Error(method);
  return new Map(
    settings.map((own, i) => {
      const options = { ...place, seed: i, weight: weight(), ...own };
      return [names[i] as string, found.create(options as never) as unknown as Adapter];
    }),
  );
};

describe('ranks and alphas by module', () => {
  it.each(['lora', 'dora', 'kasa', 'qalora', 'bdlora', 'velora', 'alora', 'monteclora'])(
    'of %s are written as patterns',
    async (method) => {
      await scope(async () => {
        const more = {
          alora: { invocationTokens: [5] },
          bdlora: { blocks: 1 },
          qalora: { groupSize: 4 },
          velora: { groups: 2 },
        };
        const shared = (more as Readonly<Record<string, object>>)[method] ?? {};
        const made = of(method, [
          { r: 4, loraAlpha: 8, ...shared },
          { r: 2, loraAlpha: 8, ...shared },
          { r: 2, loraAlpha: 3, ...shared },
        ]);
        const { config } = await expectRoundTrip(made);
        expect(config).toMatchObject({
          r: 2,
          lora_alpha: 8,
          rank_pattern: { '^a': 4 },
          alpha_pattern: { '^c': 3 },
        });
      });
    },
  );

  it.each([
    ['hira', [{ r: 2 }, { r: 2 }, { r: 3 }], { r: 2, rank_pattern: { '^c': 3 } }],
    ['delora', [{ r: 2 }, { r: 3 }, { r: 3 }], { r: 3, rank_pattern: { '^a': 2 } }],
    [
      'fourierft',
      [{ frequencies: 5 }, { frequencies: 5 }, { frequencies: 7 }],
      { n_frequency: 5, n_frequency_pattern: { '^c': 7 } },
    ],
    [
      'loha',
      [{ r: 2 }, { r: 3, loraAlpha: 5 }, { r: 2 }],
      { r: 2, rank_pattern: { '^b': 3 }, alpha_pattern: { '^b': 5 } },
    ],
    [
      'lokr',
      [{ r: 1 }, { r: 2 }, { r: 1, loraAlpha: 5 }],
      { r: 1, rank_pattern: { '^b': 2 }, alpha_pattern: { '^c': 5 } },
    ],
    ['osf', [{ rank: 2 }, { rank: 2 }, { rank: 3 }], { rank_pattern: { '^c': 3 } }],
    [
      'c3a',
      [{ blockSize: 2 }, { blockSize: 2 }, { blockSize: 1 }],
      { block_size: 2, block_size_pattern: { '^c': 1 } },
    ],
  ])('of %s too', async (method, settings, fields) => {
    await scope(async () => {
      const { config } = await expectRoundTrip(of(method, settings));
      expect(config).toMatchObject(fields);
    });
  });

  it('cover their module alone, also where another’s name ends in its', async () => {
    await scope(async () => {
      const names = ['b', 'a.b', 'b-1', 'axb'];
      const made = of('lora', [{ r: 3 }, { r: 2 }, { r: 1 }, { r: 2 }], names);
      const { config } = await expectRoundTrip(made);
      expect(config.rank_pattern).toEqual({ '^b': 3, '^b\\-1': 1 });
    });
    await scope(async () => {
      const made = of('lora', [{ r: 3 }, { r: 2 }, { r: 2 }], ['a.b', 'axb', 'c']);
      const { config } = await expectRoundTrip(made);
      expect(config.rank_pattern).toEqual({ '^a\\.b': 3 });
    });
  });

  it('are left out where all have the same', async () => {
    await scope(async () => {
      const { config } = await expectRoundTrip(of('lora', [{ r: 2 }, { r: 2 }]));
      expect(config).not.toHaveProperty('rank_pattern');
      expect(config).not.toHaveProperty('alpha_pattern');
    });
  });

  it.each([
    ['gralora', { r: 4, loraAlpha: 4 }, { r: 4, loraAlpha: 8 }, 'alpha', '4 and 8'],
    ['miss', { r: 2 }, { r: 4 }, 'r', '2 and 4'],
    ['oft', { blockSize: 2 }, { blockSize: 4 }, 'oft_block_size', '2 and 4'],
    ['vera', { r: 2 }, { r: 3 }, 'r', '2 and 3'],
    ['lora', { dropout: 0.1, r: 2 }, { rslora: true, r: 2 }, 'use_rslora', 'false and true'],
    ['bdlora', { blocks: 1 }, { blocks: 2 }, 'use_bdlora', '.*'],
  ])('of %s that PEFT has once are refused: %j and %j', async (method, one, other, field, got) => {
    await scope(async () => {
      await expect(adaptersToPeft(of(method, [one, other]))).rejects.toThrow(
        expect.objectContaining({
          code: 'ERR_VALUE',
          message: expect.stringMatching(
            `${field} must be the same in all layers \\(PEFT has one ${field}\\), got ${got}`,
          ),
        }),
      );
    });
  });

  it('that PEFT lowers for narrow layers are written as they were', async () => {
    await scope(async () => {
      const widths = { a: { inFeatures: 8, outFeatures: 6 }, b: { inFeatures: 4, outFeatures: 4 } };
      const make = (method: 'deft' | 'oft' | 'tinylora', settings: readonly object[]) =>
        new Map(
          Object.entries(widths).map(([module, size], i) => {
            const all = { ...size, device: 'cpu', seed: i, ...settings[i] } as const;
            const w = Tensor.randn([size.outFeatures, size.inFeatures], { seed: 1, device: 'cpu' });
            return [module, adapters[method].create({ ...all, weight: w }) as unknown as Adapter];
          }),
        );
      const deft = await adaptersToPeft(
        make('deft', [
          { r: 6, scaling: 2 },
          { r: 4, scaling: 3 },
        ]),
      );
      expect(deft.config).toMatchObject({ r: 6, alpha: 12 });
      const tiny = await adaptersToPeft(make('tinylora', [{ r: 5 }, { r: 4 }]));
      expect(tiny.config).toMatchObject({ r: 5, weight_tying: 0 });
      const oft = await adaptersToPeft(make('oft', [{ blocks: 2 }, { blocks: 2 }]));
      expect(oft.config).toMatchObject({ r: 2, oft_block_size: 0 });
      const again = Object.entries(widths).map(([module, size]): [string, Adapter] => {
        return [module, adapterFromPeft(oft, module, { ...size, device: 'cpu' })];
      });
      expect((await adaptersToPeft(new Map(again))).config).toEqual(oft.config);
    });
  });

  it('of a scaling that not all have are refused', async () => {
    await scope(async () => {
      await expect(adaptersToPeft(of('lora', [{}, { rslora: true }]))).rejects.toThrow(
        expect.objectContaining({
          code: 'ERR_VALUE',
          message: expect.stringMatching(/use_rslora must be the same in all layers/),
        }),
      );
    });
  });

  it('keep the dropout of the layers that have one beside an embedding', async () => {
    await scope(async () => {
      const made = of('lora', [{ embedding: true }, { dropout: 0.25 }]);
      expect((await expectRoundTrip(made)).config.lora_dropout).toBe(0.25);
    });
  });
});

it('a folder of several ranks is what readPeftAdapter reads', async () => {
  const root = mkdtempSync(path.join(tmpdir(), 'lowrank-patterns-'));
  try {
    await scope(async () => {
      const settings = [
        { r: 3, loraBias: true },
        { r: 2, loraBias: true },
        { r: 2, loraAlpha: 5, loraBias: true },
      ];
      const made = of('lora', settings, ['b', 'a.b', 'a.c']);
      await writeAdapterFolder(path.join(root, 'adapter'), made);
      const { modules } = readPeftAdapter(path.join(root, 'adapter'));
      expect(modules.map(({ module, r, loraAlpha }) => [module, r, loraAlpha])).toEqual([
        ['a.b', 2, 8],
        ['a.c', 2, 5],
        ['b', 3, 8],
      ]);
      expect(modules.every(({ loraBias }) => loraBias?.shape[0] === N)).toBe(true);
    });
  } finally {
    rmSync(root, { recursive: true });
  }
});

describe('AdaLoRA', () => {
  const config = {
    peft_type: 'ADALORA',
    r: 4,
    init_r: 4,
    lora_alpha: 16,
    rank_pattern: {
      'a.lin.lora_E': [true, false, true, false],
      'lin.lora_E': [false, true, false, false],
      'base_model.model.other.lora_E.default': [true, true, true, true],
    },
  };
  const part = (r: number) => ({
    lora_A: raw([r, K]),
    lora_E: raw([r, 1]),
    lora_B: raw([N, r], wave(N * r, r)),
  });
  const tensors = new Map([
    ...namesIn('a.lin', part(2)),
    ...namesIn('lin', part(1)),
    ...namesIn('other', part(4)),
  ]);

  it('pruned is written with the ranks that each layer kept, and those it began with', async () => {
    await scope(async () => {
      const made = new Map(
        ['a.lin', 'lin', 'other'].map((name) => [
          name,
          adapterFromPeft({ config, tensors }, name, place),
        ]),
      );
      // Not those of a module whose name begins before its own.
      expect([...made.values()].map((adapter) => (adapter.config as { r: number }).r)).toEqual([
        2, 1, 4,
      ]);
      const written = await expectRoundTrip(made);
      expect(written.config).toMatchObject({ init_r: 4, r: 4, lora_alpha: 16 });
      expect(written.config.rank_pattern).toEqual({
        'a.lin.lora_E': [true, true, false, false],
        'lin.lora_E': [true, false, false, false],
        'other.lora_E': [true, true, true, true],
      });
      for (const [name, { data }] of tensors) expect(written.tensors.get(name)?.data).toEqual(data);
    });
  });

  it('of several ranks that nothing was pruned from is refused', async () => {
    await scope(async () => {
      const made = new Map([
        ['a', adapters.adalora.create({ ...place, r: 2 }) as unknown as Adapter],
        ['b', adapters.adalora.create({ ...place, r: 3 }) as unknown as Adapter],
      ]);
      await expect(adaptersToPeft(made)).rejects.toThrow(/r must be the same in all layers/);
    });
  });
});
