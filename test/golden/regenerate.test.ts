// Folders whose seeded tensors are left out: they are drawn again as PEFT draws them.
import { describe, expect, it } from 'vitest';
import { adapterFromPeft, type RawTensor, scope, Tensor } from '../../lib/index.js';
import { folderOf } from './adapter-case.js';
import { loadCase } from './case-file.js';

/** Case, module, sizes, and the ends of the names that are left out. */
const CASES = [
  ['tuners/vera_one', 'lin', 48, 36, ['vera_A', 'vera_B']],
  ['tuners/shira', 'lin', 48, 36, ['shira_indices']],
  ['tuners/pvera_eval', 'lin', 48, 36, ['pvera_A', 'pvera_B']],
  ['tuners/frod', 'lin', 48, 36, ['frod_U']],
  ['tuners/supertuning', 'lin', 48, 36, ['supertuning_indices']],
] as const;

const weightOf = (id: string, module: string, N: number, K: number): Tensor =>
  Tensor.from(loadCase(id).numbers(`base.${module}.weight`), [N, K], { device: 'cpu' });

describe('tensors that a seed gives', () => {
  it.each(CASES)('%s', async (id, module, K, N, left) => {
    await scope(async () => {
      const folder = folderOf(loadCase(id));
      const weight = weightOf(id, module, N, K);
      const place = { inFeatures: K, outFeatures: N, device: 'cpu', weight } as const;
      const whole = adapterFromPeft(folder, module, place);
      const fewer = new Map<string, RawTensor>(folder.tensors);
      for (const key of fewer.keys()) if (left.some((end) => key.endsWith(end))) fewer.delete(key);
      expect(fewer.size).toBeLessThan(folder.tensors.size);
      const again = adapterFromPeft({ ...folder, tensors: fewer }, module, place);
      expect(again.indexes).toEqual(whole.indexes);
      for (const [name, tensor] of Object.entries({ ...whole.parameters, ...whole.buffers })) {
        const mine = await ({ ...again.parameters, ...again.buffers }[name] as Tensor).read();
        const expected = await tensor.read();
        mine.forEach((value, i) => {
          expect(Math.abs(value - (expected[i] as number)), `${name}[${i}]`).toBeLessThan(1e-6);
        });
      }
    });
  });

  const two = new Map([
    ['fc1', { inFeatures: 24, outFeatures: 32 }],
    ['fc2', { inFeatures: 32, outFeatures: 16 }],
  ]);
  const ofRandlora = new Map([
    ['fc1', { inFeatures: 20, outFeatures: 28 }],
    ['fc2', { inFeatures: 28, outFeatures: 16 }],
  ]);
  const one = new Map([['lin', { inFeatures: 32, outFeatures: 24 }]]);
  const nf4 = new Map([['lin', { inFeatures: 64, outFeatures: 48 }]]);

  it.each([
    ['tuners/randlora', one, /randlora_[AB]$/],
    ['tuners/randlora_two_sparse', ofRandlora, /randlora_[AB]$/],
    ['qlora/randlora_nf4dq_f32', nf4, /randlora_[AB]$/],
    ['tuners/tinylora', two, /tinylora_P$/],
    ['tuners/unilora', two, /unilora_(indices|scales)_[AB]$/],
  ] as const)('%s, of all layers together', async (id, layers, left) => {
    await scope(async () => {
      const folder = folderOf(loadCase(id));
      const config = { ...folder.config, save_projection: false, save_indices: false };
      const tensors = new Map([...folder.tensors].filter(([key]) => !left.test(key)));
      expect(tensors.size).toBeLessThan(folder.tensors.size);
      for (const [module, sizes] of layers) {
        const place = { ...sizes, device: 'cpu' } as const;
        const whole = adapterFromPeft(folder, module, place);
        const again = adapterFromPeft({ config, tensors, layers }, module, place);
        expect(again.indexes).toEqual(whole.indexes);
        for (const [name, tensor] of Object.entries(whole.buffers)) {
          const mine = (again.buffers[name] as Tensor).readSync();
          tensor.readSync().forEach((value: number, i: number) => {
            const error = Math.abs((mine[i] as number) - value);
            expect(error, `${module} ${name}[${i}]`).toBeLessThan(1e-6);
          });
        }
      }
    });
  });

  it.each([
    ['tuners/tinylora', /tinylora_P$/],
    ['tuners/unilora', /unilora_(indices|scales)_[AB]$/],
  ])('%s needs to know the layers', (id, left) => {
    const folder = folderOf(loadCase(id));
    const config = { ...folder.config, save_projection: false, save_indices: false };
    const tensors = new Map([...folder.tensors].filter(([key]) => !left.test(key)));
    const place = { inFeatures: 24, outFeatures: 32, device: 'cpu' } as const;
    const load = (layers: unknown) =>
      adapterFromPeft({ config, tensors, layers } as never, 'fc1', place);
    expect(() => load(undefined)).toThrow(
      /folder\.layers must be given \(the modules in the order of the model.*got none/,
    );
    expect(() => load({})).toThrow(/folder\.layers must be a Map/);
    expect(() => load(new Map([['fc1', { inFeatures: 24 }]]))).toThrow(/layers of fc1 must be/);
    expect(() => load(new Map([['fc2', two.get('fc2')]]))).toThrow(/layers must be with fc1/);
    expect(() => load(new Map([['fc1', two.get('fc2')]]))).toThrow(
      /layers of fc1 must be of 24 to 32 features, got 32 to 16/,
    );
  });

  it.each([
    ['tuners/fourierft', 'indices'],
    ['tuners/waveft', 'waveft_indices'],
  ])('the places of %s', (id, table) => {
    scope(() => {
      const golden = loadCase(id);
      const place = { inFeatures: 32, outFeatures: 24, device: 'cpu' } as const;
      const { indexes } = adapterFromPeft(folderOf(golden), 'lin', place);
      const pairs = golden.numbers(`aux.attr.lin.${table}`);
      const half = pairs.length / 2;
      const expected = Array.from(
        { length: half },
        (_, i) => (pairs[i] as number) * 32 + (pairs[half + i] as number),
      );
      expect([...(indexes.places as Int32Array)]).toEqual(expected);
    });
  });

  it('the triplets of OSF that its folder leaves out', async () => {
    await scope(async () => {
      const golden = loadCase('tuners/osf');
      const folder = folderOf(golden);
      const weight = weightOf('tuners/osf', 'fc1', 32, 24);
      const place = { inFeatures: 24, outFeatures: 32, device: 'cpu', weight } as const;
      const tensors = new Map([...folder.tensors].filter(([key]) => !key.includes('high')));
      expect(tensors.size).toBeLessThan(folder.tensors.size);
      const merged = (from: typeof folder) =>
        (adapterFromPeft(from, 'fc1', place).merge(weight).weight as Tensor).read();
      const [whole, again] = [await merged(folder), await merged({ ...folder, tensors })];
      again.forEach((value, i) => {
        expect(Math.abs(value - (whole[i] as number))).toBeLessThan(1e-5);
      });
    });
  });

  it('draws shared projections for the largest layer', async () => {
    await scope(async () => {
      const folder = folderOf(loadCase('tuners/vera_one'));
      const tensors = new Map(folder.tensors);
      for (const key of tensors.keys()) if (/vera_[AB]$/.test(key)) tensors.delete(key);
      const place = { inFeatures: 48, outFeatures: 36, device: 'cpu' } as const;
      const largest = { inFeatures: 64, outFeatures: 50 };
      const one = adapterFromPeft({ ...folder, tensors, largest }, 'lin', place);
      const big = adapterFromPeft(
        {
          ...folder,
          tensors: new Map(
            [...tensors].map(([key, raw]) =>
              key.endsWith('lambda_b')
                ? [key, { ...raw, shape: [50], data: new Float32Array(50) }]
                : [key, raw],
            ),
          ),
        },
        'lin',
        { ...largest, device: 'cpu' },
      );
      const [mine, whole] = [await one.buffers.veraA?.read(), await big.buffers.veraA?.read()];
      expect([...(mine as Float32Array).slice(48, 96)]).toEqual([
        ...(whole as Float32Array).slice(64, 112),
      ]);
    });
  });
});
