// What layers share in `createAll`: which tensors, between which layers, and that each is drawn once.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  type AdapterPlace,
  adapterMethods,
  adapters,
  defineAdapter,
  memoryUsage,
  scope,
  Tensor,
} from '../../lib/index.js';
import { settingsOf } from './settings.js';

const device = 'cpu' as const;
const [N, K] = [24, 32];

/** Two blocks of four projections: q, k and v of one size, up of another. */
const LAYERS = [0, 1].flatMap((block) => [
  { module: `model.layers.${block}.self_attn.q_proj`, inFeatures: K, outFeatures: N },
  { module: `model.layers.${block}.self_attn.k_proj`, inFeatures: K, outFeatures: N },
  { module: `model.layers.${block}.mlp.up_proj`, inFeatures: K, outFeatures: 2 * N },
]);

/** Tensors that layers share, and the groups of layers that have one of them, by the layers' numbers. */
const ALL = [[0, 1, 2, 3, 4, 5]];
const SIZES = [
  [0, 1, 3, 4],
  [2, 5],
];
const KINDS = [
  [0, 3],
  [1, 4],
  [2, 5],
];
const SHARED: Readonly<Record<string, Readonly<Record<string, readonly number[][]>>>> = {
  kadaptation: { leftA: KINDS, leftB: KINDS },
  lily: { loraB: KINDS },
  lotr: { u: SIZES, v: SIZES },
  pvera: { veraA: ALL, veraB: ALL },
  randlora: { left: ALL, right: ALL },
  'tied-lora': { a: KINDS, b: KINDS },
  unilora: { theta: ALL },
  vblora: { bank: ALL },
  vera: { veraA: ALL, veraB: ALL },
};

type Place = AdapterPlace & Readonly<Record<string, unknown>>;

function createAll(method: string, places: readonly Place[]): Adapter[] {
  const found = adapterMethods.find((candidate) => candidate.method === method);
  return found?.createAll(places as never) as unknown as Adapter[];
}

const weightFor = (n: number, k: number, phase: number): Tensor =>
  Tensor.from(
    Float32Array.from({ length: n * k }, (_, i) => Math.sin(1.7 * i + phase) * Math.cos(0.3 * i)),
    [n, k],
    { device },
  );

const placesOf = (method: string): Place[] =>
  LAYERS.map((layer, i) => ({
    ...layer,
    weight: weightFor(layer.outFeatures, layer.inFeatures, i),
    seed: 100 + i,
    device,
    ...settingsOf(method).settings,
  }));

/** The leading rows and columns that both have: what a larger layer has of a smaller one's. */
function sameStart(a: Tensor, b: Tensor): boolean {
  const dims = a.shape.map((dim, i) => Math.min(dim, b.shape[i] ?? 0));
  const [one, other] = [a.readSync(), b.readSync()];
  const at = (shape: readonly number[], index: readonly number[]): number =>
    shape.reduce((sum, dim, d) => sum * dim + (index[d] as number), 0);
  const count = dims.reduce((product, dim) => product * dim, 1);
  for (let i = 0; i < count; i++) {
    const index = dims.map((dim, d) => {
      const stride = dims.slice(d + 1).reduce((product, size) => product * size, 1);
      return Math.floor(i / stride) % dim;
    });
    if (one[at(a.shape, index)] !== other[at(b.shape, index)]) return false;
  }
  return count > 0;
}

const tensorsOf = ({ parameters, buffers }: Adapter) => ({ ...parameters, ...buffers });

describe.each(Object.entries(SHARED))('the layers of %s', (method, tensors) => {
  it('share what the method says, and nothing else', () => {
    scope(() => {
      const made = createAll(method, placesOf(method));
      const all = made.map(tensorsOf);
      for (const [name, groups] of Object.entries(tensors)) {
        for (const [i, one] of all.entries()) {
          for (const [j, other] of all.entries()) {
            const together = groups.some((group) => group.includes(i) && group.includes(j));
            const [a, b] = [one[name] as Tensor, other[name] as Tensor];
            // Zeros are the same wherever they are.
            if (!together && a.readSync().every((value) => value === 0)) continue;
            expect(sameStart(a, b), `${name} of ${i} and ${j}`).toBe(together);
          }
        }
      }
      const { trained, frozen = [] } = (made[0] as Adapter).definition;
      for (const name of [...trained, ...frozen]) {
        if (name in tensors || all[0]?.[name] === undefined) continue;
        const [a, b] = [all[0]?.[name], all[3]?.[name]] as [Tensor, Tensor];
        const [first = 0] = a.readSync();
        if (a.readSync().every((value) => value === first)) continue;
        expect(sameStart(a, b), name).toBe(false);
      }
    });
  });

  it('have one memory where the shapes agree: what one is given, the others have', () => {
    scope(() => {
      const made = createAll(method, placesOf(method));
      for (const name of Object.keys(tensors)) {
        const [one, other] = [made[0], made[3]].map(
          (adapter) => tensorsOf(adapter as Adapter)[name] as Tensor,
        ) as [Tensor, Tensor];
        const before = other.readSync();
        one.write(one.readSync().map((value) => value + 1));
        const same = String(one.shape) === String(other.shape);
        const expected = same ? before.map((value) => value + 1) : before;
        expect(other.readSync()).toEqual(expected);
      }
    });
  });

  it('are freed one by one: the others keep what they share', () => {
    scope(() => {
      const made = createAll(method, placesOf(method));
      made[0]?.dispose();
      for (const name of Object.keys(tensors)) {
        const { size = 0 } = tensorsOf(made[3] as Adapter)[name] ?? {};
        expect(tensorsOf(made[3] as Adapter)[name]?.readSync().length).toBe(size);
      }
    });
  });
});

it('every other method shares nothing, and needs nothing of other layers', () => {
  for (const { method, definition } of adapterMethods) {
    const named = Object.keys(definition.shared ?? {});
    if (method in SHARED) continue;
    expect(named, method).toEqual([]);
  }
});

describe('layers without names', () => {
  it('are of one kind: those of one size share', () => {
    scope(() => {
      const places = placesOf('tied-lora').map(({ module: _, ...place }) => place as Place);
      const made = createAll('tied-lora', places);
      const [first, second, , , , last] = made.map(({ parameters }) => parameters.a as Tensor);
      expect(sameStart(first as Tensor, second as Tensor)).toBe(true);
      expect(sameStart(first as Tensor, last as Tensor)).toBe(false);
    });
  });
});

describe('what a method of one’s own shares', () => {
  const own = defineAdapter({
    method: 'own',
    reference: 'nobody',
    defaults: {},
    trained: ['u', 'v'],
    shared: { u: 'model', v: 'size' },
    shapes: ({ N: n, K: k }) => ({ u: [4], v: [n, k] }),
    // v depends on u, and both on the weight.
    init: (make, theirs) => {
      const [first = 0] = (make.weight('own.create') as Tensor).readSync();
      const u = theirs?.u ?? make.full('u', first);
      const [value = 0] = u.readSync();
      return { u, v: make.full('v', 2 * value) };
    },
    forward: (t, { x, w }) => t.linear(x, w),
  });

  it('may depend on the weight, and what depends on it is made of what the others have', () => {
    scope(() => {
      const layer = (n: number, value: number) => ({
        inFeatures: 3,
        outFeatures: n,
        weight: Tensor.from(new Float32Array(3 * n).fill(value), [n, 3], { device }),
        device,
      });
      const made = own.createAll([layer(2, 5), layer(2, 7), layer(4, 9)]);
      const firsts = (name: 'u' | 'v') =>
        made.map(({ parameters }) => parameters[name]?.readSync()[0]);
      expect(firsts('u')).toEqual([5, 5, 5]);
      expect(firsts('v')).toEqual([10, 10, 10]);
    });
  });

  it('is refused in its own words where a layer is none', () => {
    expect(() => own.createAll([null as never])).toThrow(
      /^own.createAll: options must be an object/,
    );
    expect(own.createAll([])).toEqual([]);
  });
});

describe('sharing that cannot be', () => {
  const base = {
    method: 'shares',
    reference: 'nobody',
    defaults: { r: 2 },
    trained: ['u'] as const,
    shapes: ({ N: n, config: { r } }: { N: number; config: { r: number } }) => ({ u: [n, r] }),
    init: () => ({}),
    forward: () => {
      throw new Error('not called');
    },
  };

  it.each([
    [{ shared: null }, /definition.shared must be an object, got null/],
    [
      { shared: { w: 'size' } },
      /definition.shared must be of the tensors in trained and frozen \(u\), got "w"/,
    ],
    [{ shared: { u: 'all' } }, /definition.shared.u must be one of model, size, kind, got "all"/],
  ])('is refused in a definition: %j', (fields, text) => {
    expect(() => defineAdapter({ ...base, ...fields } as never)).toThrow(text);
  });

  it('is refused where settings make other shapes', () => {
    const before = memoryUsage(device).liveTensors;
    const place = { inFeatures: K, outFeatures: N, device };
    expect(() =>
      adapters.lotr.createAll([
        { ...place, r: 4 },
        { ...place, r: 5 },
      ]),
    ).toThrow(
      /^lotr.createAll: v must be of the same shape in all layers that share it, \[4, 32\], got \[5, 32\]$/,
    );
    expect(memoryUsage(device).liveTensors).toBe(before);
  });

  it('names a module that is no string', () => {
    const place = { inFeatures: K, outFeatures: N, device, module: 3 as never };
    expect(() => adapters.lotr.create(place)).toThrow(/^lotr.create: module must be a string, got/);
  });
});
