// What an author of a method, or a caller of one, does wrong is said at once and by its name.
import { describe, expect, it } from 'vitest';
import {
  type AdapterDefinition,
  adapters,
  baseProduct,
  defineAdapter,
  denseUpdate,
  layerNorm,
  loraForward,
  matmul,
  rmsNorm,
  SparsePattern,
  scope,
  sparseUpdate,
  Tape,
  Tensor,
  type Value,
} from '../../lib/index.js';

const [M, N, K] = [4, 6, 8];
const w = Tensor.randn([N, K], { seed: 1, device: 'cpu' });
const place = { inFeatures: K, outFeatures: N, weight: w };
const good: AdapterDefinition<{ r: number }, 'a'> = {
  method: 'mine',
  reference: 'none',
  defaults: { r: 2 },
  trained: ['a'],
  shapes: ({ config: { r } }) => ({ a: [r, K] }),
  init: (make) => ({ a: make.kaiming('a') }),
  forward: (t, { x, w }) => t.linear(x, w),
};
const message = (run: () => unknown): string => {
  try {
    run();
  } catch (error) {
    const { code } = error as { code?: string };
    return `${code} ${(error as Error).message}`;
  }
  return 'no error';
};

describe('a method', () => {
  it.each([
    ['method', 3, 'a string, got a number'],
    ['defaults', null, 'an object, got null'],
    ['trained', 'a', 'an array of names, got a string'],
    ['shapes', undefined, 'a function, got undefined'],
    ['init', {}, 'a function, got an object'],
    ['forward', undefined, 'a function, got undefined'],
  ])('without a proper %s is refused where it is defined', (field, value, rest) => {
    const wrong = { ...good, [field]: value } as unknown as typeof good;
    expect(message(() => defineAdapter(wrong))).toBe(
      `ERR_TYPE defineAdapter: definition.${field} must be ${rest}`,
    );
  });

  it.each([
    [
      'another shape',
      ((t, { x, p }) => t.shrink(x, p.a as Value)) as typeof good.forward,
      "ERR_SHAPE mine.forward: what the method's forward returns must be of shape [4, 6], got [4, 2]",
    ],
    [
      'another dtype',
      ((t, { x, w }) =>
        t.linear(t.constant(x.tensor.to({ dtype: 'f32' })), w)) as typeof good.forward,
      "ERR_DTYPE mine.forward: what the method's forward returns must be bf16, as x, got f32",
    ],
    [
      'a tensor',
      ((_, { x, w }) => matmul(x.tensor, w) as unknown as Value) as typeof good.forward,
      "ERR_TYPE mine.forward: what the method's forward returns must be a Value of the tape (t.own makes one of a tensor), got an object",
    ],
    [
      'nothing',
      (() => {}) as unknown as typeof good.forward,
      "ERR_TYPE mine.forward: what the method's forward returns must be a Value of the tape (t.own makes one of a tensor), got undefined",
    ],
  ])('whose formula returns %s is refused by forward', (_, forward, expected) => {
    scope(() => {
      const dtype = expected.includes('bf16') ? 'bf16' : 'f32';
      const x = Tensor.randn([M, K], { seed: 2, dtype });
      const adapter = defineAdapter({ ...good, forward }).create(place);
      expect(message(() => adapter.forward(x, w))).toBe(expected);
    });
  });
});

describe('settings', () => {
  const { lora, dora, hira, miss, delora } = adapters;
  it.each([-0.5, 1, 2])('dropout %d is refused', (dropout) => {
    for (const method of [lora, dora, hira, miss, delora]) {
      const made = () => method.create({ ...place, r: 2, dropout });
      expect(message(made)).toBe(
        `ERR_VALUE ${method.method}.create: dropout must be in [0, 1), got ${dropout}`,
      );
    }
  });

  it('of a tape step too', () => {
    const dropping = defineAdapter({
      ...good,
      forward: (t, { x, w }) => t.linear(t.dropout(x, -1), w),
    });
    scope(() => {
      const x = Tensor.randn([M, K], { seed: 2 });
      const forward = () => dropping.create(place).forward(x, w, { seed: 1 });
      expect(message(forward)).toBe('ERR_VALUE dropout: dropout must be in [0, 1), got -1');
    });
  });

  it('r is a whole number of at least 1, and what scales is finite', () => {
    expect(message(() => dora.create({ ...place, r: 0 }))).toMatch(
      /^ERR_VALUE dora.create: r must be an integer from 1/,
    );
    expect(message(() => adapters.vera.create({ ...place, r: 0 }))).toMatch(
      /^ERR_VALUE vera.create: r must be/,
    );
    expect(
      message(() => lora.create({ ...place, r: 2, loraAlpha: Number.POSITIVE_INFINITY })),
    ).toBe('ERR_VALUE lora.create: loraAlpha must be finite, got Infinity');
  });
});

describe('what is no step', () => {
  const t = new Tape();
  const x = t.constant(w);
  const pattern = new SparsePattern({ rows: Int32Array.of(1), columns: Int32Array.of(2), N, K });
  it.each([
    ['layerNorm', () => layerNorm(t, w as never), 'x must be a Value of the tape'],
    ['rmsNorm', () => rmsNorm(undefined as never, x), 't must be a Tape, got undefined'],
    ['rmsNorm', () => rmsNorm(t, x, null as never), 'parts must be an object, got null'],
    ['rmsNorm', () => rmsNorm(t, x, { weight: w as never }), 'weight must be a Value'],
    ['baseProduct', () => baseProduct(t, w as never, w), 'a must be a Value of the tape'],
    ['denseUpdate', () => denseUpdate(t, w as never, {} as never), 'x must be a Value'],
    ['denseUpdate', () => denseUpdate(t, x, undefined as never), 'options must be an object'],
    ['sparseUpdate', () => sparseUpdate(t, x, w as never, pattern), 'values must be a Value'],
    ['sparseUpdate', () => sparseUpdate(t, x, x, {} as never), 'pattern must be a SparsePattern'],
    ['SparsePattern', () => new SparsePattern({ N, K } as never), 'rows must be an Int32Array'],
    ['vera.createAll', () => adapters.vera.createAll(3 as never), 'layers must be an array'],
    ['vera.from', () => adapters.vera.from(3 as never, place), 'tensors must be an object'],
    [
      'lora.create',
      () => adapters.lora.create({ ...place, loraAlpha: Number.NaN }),
      'loraAlpha must be a number, got NaN',
    ],
    [
      'loraForward',
      () => loraForward(x.tensor, w, adapters.lora.create(place) as never),
      'adapter must be a LoraAdapter, as',
    ],
  ])('is refused by %s', (op, run, expected) => {
    scope(() => expect(message(run)).toContain(`ERR_TYPE ${op}: ${expected}`));
  });
});

it('a weight on another device than x is named, with both devices', () => {
  scope(() => {
    const x = Tensor.zeros([M, K], { device: 'reference' });
    expect(message(() => matmul(x, w))).toBe(
      "ERR_DEVICE matmul: w must be on device 'reference', got 'cpu'",
    );
  });
});
