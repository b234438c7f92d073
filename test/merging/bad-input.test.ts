// What combineAdapters and defineMerge reject, and what they say.
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapters,
  combineAdapters,
  defineMerge,
  type MergeDefinition,
  memoryUsage,
  type PeftFolder,
  readAdapterFolder,
  scope,
  Tensor,
} from '../../lib/index.js';

const recorded = path.join(import.meta.dirname, '..', 'golden', 'merging', 'cat');
const folder = (name: string): PeftFolder => readAdapterFolder(path.join(recorded, name));
const withConfig = (name: string, fields: object): PeftFolder => {
  const { config, tensors } = folder(name);
  return { config: { ...config, ...fields }, tensors };
};

const size = { inFeatures: 6, outFeatures: 5 };
type Combine = (adapters: unknown, weights: unknown, options: unknown) => Promise<unknown>;
const combine = combineAdapters as unknown as Combine;

/** Two adapters of the layer, by the settings of each. */
const two = (one: object = {}, other: object = {}): Adapter[] =>
  [one, other].map((own, seed) => adapters.lora.create({ ...size, r: 2, seed, ...own }) as Adapter);

type Row = readonly [what: string, call: () => Promise<unknown>, code: string, message: RegExp];

const rows: readonly Row[] = [
  [
    'no array',
    () => combine('a', [], { by: 'cat' }),
    'ERR_TYPE',
    /adapters must be an array, got a string/,
  ],
  ['no adapters', () => combine([], [], { by: 'cat' }), 'ERR_VALUE', /at least one, got none/],
  [
    'null',
    () => combine([null], [1], { by: 'cat' }),
    'ERR_TYPE',
    /adapters must be an array of adapters/,
  ],
  [
    'a mixture',
    () => combine([...two(), folder('a')], undefined, { by: 'cat' }),
    'ERR_VALUE',
    /got a mixture/,
  ],
  ['no rule', () => combine(two(), [1, 1], {}), 'ERR_TYPE', /by must be the name of a rule/],
  [
    'an unknown rule',
    () => combine(two(), [1, 1], { by: 'tie' }),
    'ERR_VALUE',
    /one of .*ties.* got "tie" \(did you mean ties\?\)/,
  ],
  [
    'an unknown setting',
    () => combine(two(), [1, 1], { by: 'ties', densty: 1 }),
    'ERR_VALUE',
    /settings of ties \(density, sign\), got "densty" \(did you mean density\?\)/,
  ],
  [
    'a setting of another type',
    () => combine(two(), [1, 1], { by: 'ties', density: '1' }),
    'ERR_TYPE',
    /density must be a number, got a string/,
  ],
  [
    'a negative density',
    () => combine(two(), [1, 1], { by: 'ties', density: -0.1 }),
    'ERR_VALUE',
    /density must be in \[0, 1\], got -0.1/,
  ],
  [
    'a density above 1',
    () => combine(two(), [1, 1], { by: 'magnitude-prune', density: 2 }),
    'ERR_VALUE',
    /density must be in \[0, 1\], got 2/,
  ],
  [
    'a density of NaN',
    () => combine(two(), [1, 1], { by: 'knots', density: Number.NaN }),
    'ERR_VALUE',
    /density must be finite, got NaN/,
  ],
  [
    'DARE that keeps nothing',
    () => combine(two(), [1, 1], { by: 'dare-ties', density: 0 }),
    'ERR_VALUE',
    /density must be in \(0, 1\], got 0/,
  ],
  [
    'another election',
    () => combine(two(), [1, 1], { by: 'ties', sign: 'most' }),
    'ERR_VALUE',
    /sign must be total or frequency, got "most"/,
  ],
  [
    'a rank that is none',
    () => combine(two(), [1, 1], { by: 'svd', rank: 1.5 }),
    'ERR_VALUE',
    /rank must be a non-negative integer, got 1.5/,
  ],
  [
    'a quantile that is none',
    () => combine(two(), [1, 1], { by: 'svd', clamp: 3 }),
    'ERR_VALUE',
    /clamp must be a quantile in \[0, 1\], got 3/,
  ],
  [
    'too few weights',
    () => combine(two(), [1], { by: 'cat' }),
    'ERR_VALUE',
    /one number for each of the 2 adapters, got 1 numbers/,
  ],
  [
    'a weight of NaN',
    () => combine(two(), [1, Number.NaN], { by: 'cat' }),
    'ERR_VALUE',
    /weights\[1\] must be finite, got NaN/,
  ],
  [
    'a weight that is text',
    () => combine(two(), [1, '1'], { by: 'cat' }),
    'ERR_TYPE',
    /weights\[1\] must be a number/,
  ],
  [
    'a negative share',
    () => combine(two(), [1, -1], { by: 'fedavg' }),
    'ERR_VALUE',
    /weights\[1\] must be not negative \(fedavg is an average\), got -1/,
  ],
  [
    'shares of nothing',
    () => combine(two(), [0, 0], { by: 'fedavg' }),
    'ERR_VALUE',
    /sum is above 0 and finite, got 0/,
  ],
  [
    'weights of ema',
    () => combine(two(), [1, 1], { by: 'ema' }),
    'ERR_VALUE',
    /weights must be left out \(ema takes none\)/,
  ],
  [
    'other ranks',
    () => combine(two({}, { r: 3 }), [1, 1], { by: 'linear' }),
    'ERR_VALUE',
    /r of the layer must be the same in all adapters .*got 2, 3/,
  ],
  [
    'other scalings',
    () => combine(two({}, { loraAlpha: 2 }), [1, 1], { by: 'fedavg' }),
    'ERR_VALUE',
    /loraAlpha \/ r of the layer must be the same .*got 4, 1/,
  ],
  [
    'other sizes',
    () => combine(two({}, { inFeatures: 7 }), [1, 1], { by: 'cat' }),
    'ERR_SHAPE',
    /of one shape in all adapters, \[5, 6\], got \[5, 7\]/,
  ],
  [
    'another method',
    () =>
      combine([adapters.dora.create({ ...size, weight: Tensor.zeros([5, 6]) })], [1], {
        by: 'cat',
      }),
    'ERR_UNSUPPORTED',
    /of the method lora or lora-fa .*got dora/,
  ],
  [
    'trained biases',
    () => combine(two({ loraBias: true }), [1, 1], { by: 'cat' }),
    'ERR_UNSUPPORTED',
    /loraBias of the layer must be false, got true/,
  ],
  [
    'other kinds of layers',
    () => combine(two({}, { kernel: [3] }), [1, 1], { by: 'cat' }),
    'ERR_VALUE',
    /a linear layer in all adapters, got a convolution of 3/,
  ],
  [
    'values of A that differ',
    () => combine(two(), [1, 1], { by: 'ffa' }),
    'ERR_VALUE',
    /loraA of the layer must be the same in all adapters \(fedavg/,
  ],
  [
    'clients without a layer',
    () =>
      combine([new Map([['x', two()[0]]]), new Map([['y', two()[0]]])], undefined, {
        by: 'fedavg',
      }),
    'ERR_VALUE',
    /of the same modules .*got y not in adapters\[0\]/,
  ],
  [
    'a Map of other things',
    () => combine([new Map([['x', 3]])], undefined, { by: 'cat' }),
    'ERR_TYPE',
    /adapter of x must be/,
  ],
  [
    'folders of other bases',
    () =>
      combine(
        [
          withConfig('a', { base_model_name_or_path: 'llama' }),
          withConfig('b', { base_model_name_or_path: 'gemma' }),
        ],
        undefined,
        { by: 'cat' },
      ),
    'ERR_VALUE',
    /base_model_name_or_path of adapters\[1\] must be the same in all adapters, "llama", got "gemma"/,
  ],
  [
    'a folder of another method',
    () => combine([withConfig('a', { use_dora: true })], undefined, { by: 'cat' }),
    'ERR_FILE',
    /lora_magnitude_vector/,
  ],
  [
    'a folder with other tensors',
    () => {
      const { config, tensors } = folder('a');
      const head = { dtype: 'F32', shape: [1], data: new Float32Array(1) } as const;
      return combine(
        [{ config, tensors: new Map([...tensors, ['base_model.model.head.weight', head]]) }],
        undefined,
        { by: 'cat' },
      );
    },
    'ERR_UNSUPPORTED',
    /adapters\[0\] must be only of loraA and loraB .*got "base_model.model.head.weight"/,
  ],
  [
    'a folder of half an adapter',
    () => {
      const { config, tensors } = folder('a');
      const half = new Map([...tensors].filter(([key]) => !key.includes('fc1.lora_B')));
      return combine([{ config, tensors: half }], undefined, { by: 'cat' });
    },
    'ERR_FILE',
    /fc1 of adapters\[0\] must be with both factors, got no loraB/,
  ],
  [
    'a folder of nothing',
    () => combine([{ config: folder('a').config, tensors: new Map() }], undefined, { by: 'cat' }),
    'ERR_FILE',
    /a folder with adapted layers, got none/,
  ],
  [
    'values that are not finite',
    () => {
      const [a, b] = two() as [Adapter, Adapter];
      (a.parameters.loraB as Tensor).write(new Float32Array(10).fill(Number.NaN));
      return combine([a, b], undefined, { by: 'cat' });
    },
    'ERR_NON_FINITE',
    /loraB of the layer must be finite, got NaN at 0/,
  ],
  [
    'an update that overflows',
    () => combine(two({ loraAlpha: 1e30 }), [1e30, 1], { by: 'cat' }),
    'ERR_NON_FINITE',
    /loraA of what cat makes of the layer must be finite/,
  ],
];

describe('combineAdapters rejects', () => {
  it.each(rows)('%s', async (_, call, code, message) => {
    const before = memoryUsage('cpu').liveTensors;
    await scope(async () => {
      const error: unknown = await call().then(
        () => undefined,
        (reason: unknown) => reason,
      );
      expect(error).toMatchObject({ code, message: expect.stringMatching(message) });
      // The next call works.
      const next = await combineAdapters(two(), [1, 2], { by: 'cat' });
      expect(next.config).toMatchObject({ r: 4, loraAlpha: 4 });
    });
    expect(memoryUsage('cpu').liveTensors).toBe(before);
  });
});

/** A layer's first update with a rank that its factors do not have. */
const ofWrongRank = ({ updates }: { updates: readonly object[] }): object => ({
  ...updates[0],
  r: 3,
});

describe('defineMerge rejects', () => {
  const good = { merge: 'own', reference: 'nobody', defaults: {}, entry: () => 0 };
  it.each<readonly [object, string, RegExp]>([
    [{ merge: 3 }, 'ERR_TYPE', /merge must be a string, got a number/],
    [{ merge: '' }, 'ERR_VALUE', /merge must be a text, got an empty one/],
    [{ merge: 'a b' }, 'ERR_VALUE', /letters, digits, - and _.*got "a b"/],
    [{ reference: undefined }, 'ERR_TYPE', /reference must be a string, got undefined/],
    [{ defaults: null }, 'ERR_TYPE', /defaults must be an object of settings, got null/],
    [{ defaults: { by: 1 } }, 'ERR_VALUE', /without settings named by, got "by"/],
    [{ entry: 3 }, 'ERR_TYPE', /entry must be a function, got a number/],
    [{ entry: undefined }, 'ERR_VALUE', /one of entry and layer, got neither/],
    [{ layer: () => 0 }, 'ERR_VALUE', /one of entry and layer, got entry and layer/],
    [
      { entry: undefined, layer: () => 0, sift: () => 0 },
      'ERR_VALUE',
      /sift must be left out beside layer/,
    ],
    [{ over: 'delta' }, 'ERR_VALUE', /over must be one of factors, update, got delta/],
    [{ weights: 'some' }, 'ERR_VALUE', /weights must be one of factors, shares, none, got some/],
    [{ alone: {} }, 'ERR_TYPE', /alone must be what defineMerge returns/],
  ])('%j', (fields, code, message) => {
    const call = () => defineMerge({ ...good, ...fields } as unknown as MergeDefinition<object>);
    expect(call).toThrow(
      expect.objectContaining({ code, message: expect.stringMatching(message) }),
    );
  });

  it('returns a frozen object', () => {
    const own = defineMerge({ ...good, defaults: { x: 1 } });
    expect([Object.isFrozen(own), Object.isFrozen(own.defaults)]).toEqual([true, true]);
  });

  it.each<readonly [object, string, RegExp]>([
    [
      { entry: undefined, layer: () => 3 },
      'ERR_TYPE',
      /what own makes of the layer must be an object/,
    ],
    [
      { entry: () => Number.NaN },
      'ERR_NON_FINITE',
      /loraA of what own makes of the layer must be finite/,
    ],
    [{ sift: () => 3 }, 'ERR_TYPE', /what sift of own returns must be a function/],
    [
      { prepare: () => [] },
      'ERR_VALUE',
      /tensor 0 that prepare of own returns must be of 12 values, got undefined/,
    ],
    [
      {
        entry: undefined,
        layer: ofWrongRank,
      },
      'ERR_SHAPE',
      /loraA of what own makes of the layer must be of 3 · 6 values, got 12/,
    ],
  ])('what a rule returns: %j', async (fields, code, message) => {
    const own = defineMerge({ ...good, ...fields } as unknown as MergeDefinition<object>);
    await scope(async () => {
      await expect(combine(two(), [1, 1], { by: own })).rejects.toMatchObject({
        code,
        message: expect.stringMatching(message),
      });
    });
  });
});
