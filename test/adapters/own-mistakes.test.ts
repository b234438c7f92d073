// What an author of a method, or a caller of one, does wrong is said at once and by its name.
import { describe, expect, it } from 'vitest';
import {
  type AdapterDefinition,
  adapterMethods,
  adapters,
  baseProduct,
  checkAdapter,
  checkGradients,
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

  const fields = (wrong: object) => () => defineAdapter({ ...good, ...wrong } as never);
  it.each([
    [
      'a path for a name',
      { method: '../../elsewhere' },
      'definition.method must be letters, digits',
    ],
    ['no name', { method: '' }, 'definition.method must be letters, digits'],
    ['a list for a name', { method: 'a,b' }, 'definition.method must be letters, digits'],
    ['a blank', { method: 'my lora' }, 'definition.method must be letters, digits'],
    ['a name twice', { trained: ['a', 'a'] }, 'got "a", which is in trained'],
    ['a frozen tensor that is trained', { frozen: ['a'] }, 'got "a", which is in trained'],
    ['an input like a tensor', { inputs: ['a'] }, 'got "a", which is in trained'],
    ['a tensor like a gradient', { trained: ['dx'] }, 'got "dx", the gradient of x'],
    ['an input like a gradient', { inputs: ['dBias'] }, 'got "dBias", the gradient of the bias'],
    [
      'a setting like a place',
      { defaults: { seed: 1 } },
      '(create takes those itself), got "seed"',
    ],
  ])('with %s is refused where it is defined', (_, wrong, rest) => {
    expect(message(fields(wrong))).toMatch(/^ERR_VALUE defineAdapter: /);
    expect(message(fields(wrong))).toContain(rest);
  });

  it.each([
    ['frozen', 'abc', 'an array of names, got a string'],
    ['inputs', 'abc', 'an array of names, got a string'],
    ['trained[0]', 1, 'a string, got a number'],
  ])('with another %s is told its type', (field, value, rest) => {
    const wrong = field === 'trained[0]' ? { trained: [value] } : { [field]: value };
    expect(message(fields(wrong))).toBe(
      `ERR_TYPE defineAdapter: definition.${field} must be ${rest}`,
    );
  });

  it.each([
    ['shapes', () => undefined, "mine.create: what the method's shapes returns must be an object"],
    ['init', () => undefined, "mine.create: what the method's init returns must be an object"],
    ['check', () => 'no', "mine.create: what the method's check returns must be an array"],
    [
      'init',
      (make: { zeros(name: string): Tensor }) => ({ a: make.zeros('b') }),
      'init: name must be one that shapes returns (a), got "b"',
    ],
  ])('whose %s returns something else is told so', (field, wrong, rest) => {
    const made = () => defineAdapter({ ...good, [field]: wrong } as never).create(place);
    expect(message(made)).toContain(rest);
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
      "ERR_TYPE mine.forward: what the method's forward returns must be a Value of the tape (t.own makes one from a tensor), got an object",
    ],
    [
      'nothing',
      (() => {}) as unknown as typeof good.forward,
      "ERR_TYPE mine.forward: what the method's forward returns must be a Value of the tape (t.own makes one from a tensor), got undefined",
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

  it.each([
    ['poly', { nSkills: 1.5 }, 'the shape of loraA is made of non-negative integers, got ['],
    [
      'loramoe',
      { experts: 1.5 },
      'the shape of router is made of non-negative integers, got [1.5, 8] of experts 1.5',
    ],
    ['multilora', { n: -1 }, 'of n -1'],
  ] as const)('of %s that make no shape are named: %j', (name, wrong, rest) => {
    const method = adapterMethods.find(({ method }) => method === name);
    const text = message(() => method?.create({ ...place, ...wrong }));
    expect(text).toMatch(new RegExp(`^ERR_VALUE ${name}.create: settings must be such that `));
    expect(text).toContain(rest);
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

describe('an operand of a step that is a tensor, or nothing', () => {
  const t = new Tape();
  const v = t.constant(w);
  // A tensor had passed for no factor and no summand at all.
  const wrong = w as unknown as Value;
  const none = undefined as unknown as Value;
  it.each([
    ['linear', () => t.linear(wrong, w), 'x'],
    ['linear', () => t.linear(v, w, wrong), 'bias'],
    ['shrink', () => t.shrink(v, none), 'a'],
    ['expand', () => t.expand(v, w, v, wrong), 'b'],
    ['expand', () => t.expand(v, w, v, v, { bias: wrong }), 'bias'],
    ['expandWithNorms', () => t.expandWithNorms(v, w, v, { a: wrong, b: v }, w), 'a'],
    ['mixture', () => t.mixture(v, w, [{ a: v, b: wrong, scaling: 1 }], v, w), 'experts[0].b'],
    ['mixture', () => t.mixture(v, w, [], none, w), 'gates'],
    ['matmul', () => t.matmul(v, wrong), 'w'],
    ['product', () => t.product(v, wrong), 'w'],
    ['transposeProduct', () => t.transposeProduct(v, wrong), 'b'],
    ['multiply', () => t.multiply(v, wrong), 'b'],
    ['add', () => t.add(v, wrong), 'b'],
    ['affine', () => t.affine(wrong, 2), 'a'],
    ['map', () => t.map(wrong, 'exp'), 'a'],
    ['sum', () => t.sum(wrong, 0), 'a'],
    ['dropout', () => t.dropout(wrong, 0), 'a'],
    ['reshape', () => t.reshape(wrong, [N * K]), 'a'],
    ['cast', () => t.cast(wrong, 'f32'), 'a'],
    ['transpose', () => t.transpose(wrong), 'a'],
    ['features', () => t.features(wrong, {} as never), 'a'],
    ['slice', () => t.slice(wrong, 0, 1), 'a'],
    ['repeat', () => t.repeat(wrong, 2, 'inner'), 'a'],
    ['groupSum', () => t.groupSum(wrong, 2), 'a'],
    ['concat', () => t.concat([v, wrong]), 'values[1]'],
    ['blockMatmul', () => t.blockMatmul(v, wrong), 'w'],
    ['blockProduct', () => t.blockProduct(wrong, v), 'x'],
    ['blockTransposeProduct', () => t.blockTransposeProduct(v, none), 'b'],
    ['blockInverse', () => t.blockInverse(wrong, w, 1), 'transposed'],
    ['straightThrough', () => t.straightThrough(wrong, w), 'of'],
    ['record', () => t.record(w, [wrong], [], () => {}), 'inputs[0]'],
  ])('is refused by %s: %#', (step, run, operand) => {
    expect(message(run)).toMatch(/^ERR_TYPE /);
    expect(message(run)).toContain(`Tape.${step}: ${operand} must be a Value of the tape`);
  });

  it('so are lists without one, and a gradient of no value', () => {
    const dy = Tensor.zeros([N, K], { device: 'cpu' });
    const [least, values] = ['must be of length 1 or more, got 0', 'must be an array of values'];
    for (const [run, expected] of [
      [() => t.concat([] as never), `ERR_SHAPE Tape.concat: values ${least}`],
      [() => t.mixture(v, w, [], v, w), `ERR_SHAPE Tape.mixture: experts ${least}`],
      [() => t.concat(v as never), `ERR_TYPE Tape.concat: values ${values}`],
      [() => t.record(w, [v], [], 3 as never), 'ERR_TYPE Tape.record: backward must be a function'],
      [() => t.gradients('mine', wrong, dy, [v]), 'ERR_TYPE mine: y must be a Value of the tape'],
      [() => t.gradients('mine', v, dy, [wrong]), 'ERR_TYPE mine: wanted[0] must be a Value'],
      [() => t.gradients('mine', v, dy, none as never), `ERR_TYPE mine: wanted ${values}`],
      [() => t.gradients(v as never, dy as never, [v] as never, [v]), 'op must be a string'],
    ] as const) {
      expect(message(run)).toContain(expected);
    }
  });
});

describe('a disposed tape', () => {
  it('records nothing', () => {
    const t = new Tape();
    const v = t.variable(w);
    t.dispose();
    const gone = 't must be a live tape, got a disposed one';
    expect(message(() => t.multiply(v, v))).toBe(`ERR_DISPOSED Tape.multiply: ${gone}`);
    expect(message(() => t.record(w, [v], [], () => {}))).toBe(`ERR_DISPOSED Tape.record: ${gone}`);
    expect(message(() => layerNorm(t, v))).toContain(gone);
    const plain = new Tape({ recording: false });
    plain.dispose();
    expect(plain.multiply(plain.own(w), plain.own(w)).shape).toEqual([N, K]);
  });
});

describe('a check of gradients', () => {
  it.each([
    [{ rows: 0 }, 'ERR_VALUE checkAdapter: rows must be an integer from 1'],
    [{ rows: '5' }, 'ERR_TYPE checkAdapter: rows must be a number, got a string'],
    [null, 'ERR_TYPE checkAdapter: options must be an object, got null'],
  ])('is refused where it would check nothing: %j', (options, expected) => {
    const run = () => checkAdapter(defineAdapter(good), options as never);
    expect(message(run)).toContain(expected);
  });

  it('takes no promise for gradients, which it has not', () => {
    scope(() => {
      const x = Tensor.randn([M, K], { seed: 2, device: 'reference' });
      const run = () =>
        checkGradients({
          inputs: { x },
          forward: ({ x }) => matmul(x as Tensor, x as Tensor),
          backward: (async () => ({})) as never,
        });
      expect(message(run)).toBe(
        'ERR_TYPE checkGradients: the result of backward must be an object of tensors, got a Promise',
      );
    });
  });
});

describe('a call of an adapter', () => {
  it('with an input by the name of a parameter is refused: there is one gradient by a name', () => {
    scope(() => {
      const x = Tensor.randn([M, K], { seed: 2, device: 'cpu' });
      const adapter = adapters.lora.create({ ...place, r: 2 });
      const run = () => adapter.forward(x, w, { inputs: { loraA: x } });
      expect(message(run)).toBe(
        'ERR_VALUE lora.forward: inputs.loraA must be given by a name that no other operand has, got "loraA"',
      );
    });
  });

  it('without an input that the method needs is refused by the input’s name, not by a step’s', () => {
    const gated = defineAdapter({
      ...good,
      inputs: ['gate', 'spare'],
      forward: (t, { x, w, inputs }) =>
        t.multiply(t.linear(x, w), inputs.gate as Value, inputs.spare === undefined ? 1 : 2),
    });
    scope(() => {
      const x = Tensor.randn([M, K], { seed: 2, device: 'cpu' });
      const gate = Tensor.zeros([M, N], { device: 'cpu' });
      const adapter = gated.create(place);
      for (const run of [
        () => adapter.forward(x, w),
        () => adapter.forward(x, w, { inputs: { gat: gate } }),
      ]) {
        expect(message(run)).toBe(
          `ERR_VALUE ${gated.method}.forward: inputs.gate must be given (${gated.method} needs it), got none`,
        );
      }
      // What a formula does without stays its own affair.
      expect(adapter.forward(x, w, { inputs: { gate } }).y.shape).toEqual([M, N]);
    });
  });

  it('with the saved state of another method, or of another rank, is refused', () => {
    scope(() => {
      const x = Tensor.randn([M, K], { seed: 2, device: 'cpu' });
      const dy = Tensor.zeros([M, N], { device: 'cpu' });
      const [lora, wide] = [2, 3].map((r) => adapters.lora.create({ ...place, r }));
      const dora = adapters.dora.create({ ...place, r: 2 });
      const { saved } = (lora as NonNullable<typeof lora>).forward(x, w);
      expect(message(() => dora.backward(dy, saved))).toBe(
        'ERR_VALUE dora.backward: saved must be of a forward pass with magnitude [6], got one with dx, loraA, loraB',
      );
      expect(message(() => wide?.backward(dy, saved))).toBe(
        'ERR_VALUE lora.backward: saved must be of a forward pass with loraA [3, 8], got one with [2, 8]',
      );
    });
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
      'adapter must be a LoraAdapter from',
    ],
  ])('is refused by %s', (op, run, expected) => {
    scope(() => expect(message(run)).toContain(`ERR_TYPE ${op}: ${expected}`));
  });
});

it('a weight on another device than x is named, with both devices', () => {
  scope(() => {
    const x = Tensor.zeros([M, K], { device: 'reference' });
    expect(message(() => matmul(x, w))).toBe(
      'ERR_DEVICE matmul: w must be on device reference, got cpu',
    );
  });
});
