// Bad input to what writes and reads adapter folders: refused before a file is touched.
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  adapterFromPeft,
  adapters,
  adaptersToPeft,
  defineAdapter,
  expertsToPeft,
  LoraAdapter,
  methodOfPeft,
  NormAdapter,
  readAdapterFolder,
  scope,
  Tensor,
  TokenRows,
  writeAdapterFolder,
} from '../../lib/index.js';
import { type BadCase, bad, callWith, checkCases } from './harness.js';

/** What is no path. */
const noPaths: readonly (readonly [2 | 3, string, unknown])[] = [
  [2, 'undefined', undefined],
  [2, 'null', null],
  [3, 'a number', 3],
  [3, 'an object', {}],
  [3, 'an array', []],
];

describe('bad input to adapter folders', () => {
  it('folders and what is laid out for them', async () => {
    const parent = mkdtempSync(join(tmpdir(), 'lowrank-test-'));
    const folder = join(parent, 'adapter');
    try {
      await scope(async () => {
        const place = { inFeatures: 4, outFeatures: 2, device: 'cpu' } as const;
        const adapter = adapters.lora.create({ ...place, r: 2 });
        const factors = LoraAdapter.init({ ...place, r: 2, loraAlpha: 4, seed: 1 });
        const rows = new TokenRows({ rows: Tensor.zeros([1, 4], { device: 'cpu' }), tokens: [3] });
        const embeddings = new Map([['embed', rows]]);
        const noMaps: readonly (readonly [2 | 3, string, unknown])[] = [
          [2, 'undefined', undefined],
          [2, 'null', null],
          [3, 'a number', 3],
          [3, 'a string', 'x'],
          [3, 'an object by module', { q: adapter }],
          [3, 'an array', [adapter]],
          [3, 'a LoraAdapter inside', new Map([['q', factors]])],
          [3, 'an object inside', new Map([['q', {}]])],
          [3, 'an array inside', new Map([['q', [adapter]]])],
          [2, 'null inside', new Map([['q', null]])],
          [3, 'a number as a module', new Map([[3, adapter]])],
        ];
        const write = (given: unknown) => callWith(writeAdapterFolder, folder, given);
        const cases: BadCase[] = [
          ...noPaths.flatMap(([kind, what, value]) => [
            bad(kind, `readAdapterFolder: ${what}`, 'ERR_TYPE', () =>
              callWith(readAdapterFolder, value),
            ),
            bad(kind, `folder: ${what}`, 'ERR_TYPE', () =>
              callWith(writeAdapterFolder, value, new Map([['q', adapter]])),
            ),
          ]),
          ...noMaps.flatMap(([kind, what, value]) => [
            bad(kind, `adapters: ${what}`, 'ERR_TYPE', () => write(value)),
            bad(kind, `adaptersToPeft: ${what}`, 'ERR_TYPE', () => callWith(adaptersToPeft, value)),
            bad(kind, `NormAdapter.toPeft: ${what}`, 'ERR_TYPE', () =>
              callWith(NormAdapter.toPeft, value),
            ),
            bad(kind, `TokenRows.toPeft: ${what}`, 'ERR_TYPE', () =>
              callWith(TokenRows.toPeft, value),
            ),
            ...(value === undefined
              ? []
              : [
                  bad(kind, `beside: ${what}`, 'ERR_TYPE', () =>
                    callWith(TokenRows.toPeft, embeddings, value),
                  ),
                  bad(kind, `experts' parameter: ${what}`, 'ERR_TYPE', () =>
                    callWith(expertsToPeft, new Map([['experts', [value]]])),
                  ),
                  bad(kind, `expert: ${what}`, 'ERR_TYPE', () =>
                    callWith(
                      expertsToPeft,
                      new Map([['experts', [{ parameter: 'w', experts: [value] }]]]),
                    ),
                  ),
                  bad(kind, `expertsToPeft: ${what}`, 'ERR_TYPE', () =>
                    callWith(expertsToPeft, new Map([['experts', []]]), value),
                  ),
                ]),
          ]),
          bad(3, 'expertsToPeft: a LoraAdapter', 'ERR_TYPE', () =>
            callWith(
              expertsToPeft,
              new Map([['experts', [{ parameter: 'w', experts: [factors] }]]]),
            ),
          ),
          bad(3, 'a folder without tensors', 'ERR_TYPE', () => write({ config: {}, tensors: {} })),
          bad(2, 'a folder without a config', 'ERR_TYPE', () => write({ tensors: new Map() })),
          bad(2, 'fields: null', 'ERR_TYPE', () =>
            callWith(writeAdapterFolder, folder, new Map([['q', adapter]]), null),
          ),
        ];
        await checkCases('folders', 'cpu', {
          watched: [...Object.values(adapter.parameters), factors.loraA, rows.rows],
          cases,
          valid: async () => {
            const { tensors } = await adaptersToPeft(new Map([['q', adapter]]));
            return [...tensors.values()].map(({ data }) => data as Float32Array);
          },
        });
        expect(existsSync(folder)).toBe(false);
      });
    } finally {
      rmSync(parent, { recursive: true });
    }
  });

  it('adapterFromPeft and methodOfPeft', async () => {
    await scope(async () => {
      const place = { inFeatures: 4, outFeatures: 2, device: 'cpu' } as const;
      const mine = defineAdapter({
        method: 'mine',
        reference: 'none',
        defaults: {},
        trained: ['scale'],
        shapes: ({ N }) => ({ scale: [N] }),
        init: (make) => ({ scale: make.full('scale', 1) }),
        forward: (t, { x, w, bias, p }) => t.multiply(t.linear(x, w, bias), p.scale),
      });
      const { config, tensors } = await adaptersToPeft(new Map([['q', mine.create(place)]]));
      const folder = { config, tensors };
      const noMethods = [
        [2, 'null', null],
        [3, 'the method by itself', mine],
        [3, 'names', ['mine']],
        [3, 'null inside', [mine, null]],
      ] as const;
      const read = (...args: unknown[]) => callWith(adapterFromPeft, ...args);
      await checkCases('adapterFromPeft', 'cpu', {
        watched: [],
        cases: [
          bad(1, 'no arguments', 'ERR_TYPE', () => read()),
          bad(1, 'no module', 'ERR_TYPE', () => read(folder)),
          bad(3, 'module: a number', 'ERR_TYPE', () => read(folder, 3, place, [mine])),
          bad(1, 'no place', 'ERR_TYPE', () => read(folder, 'q')),
          bad(2, 'place: null', 'ERR_TYPE', () => read(folder, 'q', null, [mine])),
          bad(35, 'no methods', 'ERR_UNSUPPORTED', () => read(folder, 'q', place)),
          bad(35, 'other methods', 'ERR_UNSUPPORTED', () =>
            read(folder, 'q', place, [adapters.lora]),
          ),
          bad(1, 'methodOfPeft: nothing', 'ERR_TYPE', () => callWith(methodOfPeft)),
          bad(2, 'methodOfPeft: null', 'ERR_TYPE', () => callWith(methodOfPeft, null, 'q')),
          bad(1, 'methodOfPeft: no module', 'ERR_TYPE', () => callWith(methodOfPeft, config)),
          ...noMethods.flatMap(([kind, what, value]) => [
            bad(kind, `methods: ${what}`, 'ERR_TYPE', () => read(folder, 'q', place, value)),
            bad(kind, `methodOfPeft: methods ${what}`, 'ERR_TYPE', () =>
              callWith(methodOfPeft, config, 'q', value),
            ),
          ]),
        ],
        valid: () =>
          scope(async () => {
            const { parameters } = adapterFromPeft(folder, 'q', place, [mine]);
            return [await (parameters.scale as Tensor).read()];
          }),
      });
      expect(() => read(folder, 'q', place)).toThrow(
        'adapterFromPeft: methods must be an array with the method mine, which is not the ' +
          "library's: give what defineAdapter returned, got none",
      );
    });
  });

  it('says what to make of a LoraAdapter, and that works', async () => {
    await scope(async () => {
      const place = { inFeatures: 4, outFeatures: 2, device: 'cpu' } as const;
      const factors = LoraAdapter.init({ ...place, r: 2, loraAlpha: 4, seed: 1 });
      await expect(
        callWith(writeAdapterFolder, 'nowhere', new Map([['q', factors]])),
      ).rejects.toThrow(
        'writeAdapterFolder: adapter of q must be an adapter of a method, like those of adapters.lora.create ' +
          '(adapters.lora.from makes one from loraA and loraB; writePeftAdapter writes bare factors), got a LoraAdapter',
      );
      const { loraA, loraB } = factors;
      const made = adapters.lora.from({ loraA, loraB }, { ...place, r: 2, loraAlpha: 4 });
      const { config, tensors } = await adaptersToPeft(new Map([['q', made]]));
      expect(config).toMatchObject({ peft_type: 'LORA', r: 2, lora_alpha: 4 });
      expect(tensors.get('base_model.model.q.lora_A.weight')?.data).toEqual(loraA.readSync());
    });
  });
});
