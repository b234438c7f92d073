/** Wrong input: typed errors with what was expected and given, before anything is consumed. */

import { createRequire } from 'node:module';
import { describe, expect, it } from 'vitest';
import { adapters, quantize, Tensor } from '../../lib/index.js';
import {
  adapterLinear,
  branches,
  chain,
  loraLinear,
  segment,
  useJax,
} from '../../lib/jax/index.js';
import { array, type Jax, jax, np, tree, values } from './setup.js';

const [M, K, N, r] = [6, 32, 24, 2];
const params = () => ({ a: array('a', [r, K]), b: array('b', [N, r]) });
const w = Tensor.from(values('w', N * K), [N, K]);
const layer = loraLinear({ w, loraA: 'a', loraB: 'b', loraAlpha: 4 });
const loss = (y: Jax): Jax => np.mean(np.square(y));
const model = chain(layer, loss);
const x = () => array('x', [M, K]);
const integers = () => np.array(new Int32Array(M * K), { shape: [M, K] });

/** What a call must not touch. */
const counts = (of: unknown): number[] =>
  tree.leaves(of as never).map((leaf) => (leaf as Jax | undefined)?.refCount ?? 1);

interface Case {
  readonly name: string;
  readonly model?: ReturnType<typeof chain>;
  readonly params?: () => unknown;
  readonly batch?: () => unknown;
  readonly options?: object;
  readonly code: string;
  readonly message: string;
}

const cases: Case[] = [
  {
    name: 'x of another width',
    batch: () => array('x', [M, K + 1]),
    code: 'ERR_SHAPE',
    message: 'jax.loraLinear: x must be [..., K = 32], got [6, 33]',
  },
  {
    name: 'a factor of another width',
    params: () => ({ ...params(), a: array('a', [r, K - 1]) }),
    code: 'ERR_SHAPE',
    message: 'jax.loraLinear: loraA (params.a) must be [r, 32] with r of at least 1, got [2, 31]',
  },
  {
    name: 'factors of different ranks',
    params: () => ({ ...params(), b: array('b', [N, r + 1]) }),
    code: 'ERR_SHAPE',
    message: 'jax.loraLinear: loraB (params.b) must be [24, 2], got [24, 3]',
  },
  {
    name: 'params without a factor',
    params: () => ({ a: array('a', [r, K]), c: [array('b', [N, r])] }),
    code: 'ERR_VALUE',
    message: 'loraB must be the path of an array in params ("a", "c.0"), got "b"',
  },
  {
    name: 'integers for x',
    batch: integers,
    code: 'ERR_DTYPE',
    message: 'jax.loraLinear: x must be float32, got int32',
  },
  {
    name: 'integers in params',
    params: () => ({ ...params(), c: integers() }),
    code: 'ERR_DTYPE',
    message: 'Chain.valueAndGrad: params.c must be a float, got int32',
  },
  {
    name: 'float16 for a factor',
    params: () => ({ ...params(), b: array('b', [N, r]).astype(np.float16) }),
    code: 'ERR_DTYPE',
    message: 'jax.loraLinear: loraB (params.b) must be float32, got float16',
  },
  {
    name: 'a number in params',
    params: () => ({ ...params(), c: 3 }),
    code: 'ERR_TYPE',
    message: 'Chain.valueAndGrad: params.c must be an array of jax-js, got a number',
  },
  {
    name: 'a tensor of this library as the batch',
    batch: () => w,
    code: 'ERR_TYPE',
    message: 'Chain.valueAndGrad: batch must be an array of jax-js, got',
  },
  {
    name: 'no batch',
    batch: () => undefined,
    code: 'ERR_TYPE',
    message: 'batch must be an array of jax-js, got undefined',
  },
  {
    name: 'a loss that is no scalar',
    model: chain(layer, (y: Jax) => np.square(y)),
    code: 'ERR_SHAPE',
    message: 'what part 2 of 2 returns must be the loss, a scalar, got [6, 24]',
  },
  {
    name: 'a loss that is a tree',
    model: chain(layer, (y: Jax) => ({ y, z: np.zeros([]) })),
    code: 'ERR_VALUE',
    message: 'what part 2 of 2 returns must be the loss, one scalar, got a tree of 2 arrays',
  },
  {
    name: 'a loss of integers',
    model: chain(layer, (y: Jax) => np.sum(y).astype(np.int32)),
    code: 'ERR_DTYPE',
    message: 'what part 2 of 2 returns must be a float, got int32',
  },
  {
    name: 'a segment at the end',
    model: chain(layer),
    code: 'ERR_VALUE',
    message: 'the last part must be a function that returns the loss, got a segment',
  },
  {
    name: 'a function that returns a number',
    model: chain(layer, (() => ({ h: 1 })) as never, loss),
    code: 'ERR_TYPE',
    message: 'what part 2 of 3 returns.h must be an array of jax-js, got a number',
  },
  {
    name: 'an async function',
    model: chain(layer, (async (y: Jax) => y) as never, loss),
    code: 'ERR_TYPE',
    message: 'what part 2 of 3 returns must be an array of jax-js, got a Promise',
  },
  {
    name: 'a segment of one array after an object',
    model: chain((y: Jax) => ({ y }), layer, loss),
    code: 'ERR_VALUE',
    message:
      'the input of part 2 of 3 must be one array (branches picks arrays of an object by name)',
  },
  {
    name: 'a name that the state does not have',
    model: chain((y: Jax) => ({ y }), branches({ z: ['n', layer] }), loss),
    code: 'ERR_VALUE',
    message: 'the input of part 2 of 3 must be an object with n, got y',
  },
  {
    name: 'a negative seed',
    options: { seed: -1 },
    code: 'ERR_VALUE',
    message: 'seed',
  },
  {
    name: 'an unknown option',
    options: { sede: 1 },
    code: 'ERR_VALUE',
    message: '"sede"',
  },
];

describe('a call with wrong input', () => {
  it.each(cases)('$name', async (one) => {
    const [p, b] = [(one.params ?? params)(), (one.batch ?? x)()];
    const before = [counts(p), counts(b)];
    const call = (one.model ?? model).valueAndGrad(p as never, b as never, one.options as never);
    await expect(call).rejects.toMatchObject({
      code: one.code,
      message: expect.stringContaining(one.message),
    });
    expect([counts(p), counts(b)]).toEqual(before);
  });

  it('names an array that was consumed before', async () => {
    const p = params();
    p.b.dispose();
    const expected =
      'params.b must be a live array (pass x.ref to keep x), got one with 0 references';
    await expect(model.valueAndGrad(p, x())).rejects.toMatchObject({
      code: 'ERR_DISPOSED',
      message: expect.stringContaining(expected),
    });
    const shared = x();
    const twice = chain((s: { u: Jax; v: Jax }) => s.u.add(s.v), layer, loss);
    await expect(twice.valueAndGrad(params(), { u: shared, v: shared })).rejects.toMatchObject({
      code: 'ERR_DISPOSED',
      message: expect.stringContaining('got one with 1 references, used 2 times'),
    });
    expect(shared.refCount).toBe(1);
  });

  it('rejects tracers', async () => {
    let call: Promise<unknown> | undefined;
    const p = params();
    jax.makeJaxpr((y: Jax) => {
      call = model.valueAndGrad(p, y);
      call.catch(() => undefined);
      return y;
    })(x());
    await expect(call).rejects.toMatchObject({ code: 'ERR_UNSUPPORTED' });
  });

  it('passes on what a function throws, and works again', async () => {
    let wrong = true;
    const odd = chain(layer, (y: Jax) => {
      if (wrong) throw new RangeError('mine');
      return loss(y);
    });
    const [p, b] = [params(), x()];
    await expect(odd.valueAndGrad(p, b)).rejects.toThrow(new RangeError('mine'));
    expect([...counts(p), b.refCount]).toEqual([1, 1, 1]);
    wrong = false;
    expect((await odd.valueAndGrad(p, b)).value.item()).toBeGreaterThan(0);
  });

  it('rejects a disposed weight, and dropout without a seed', async () => {
    const gone = Tensor.from(values('w', N * K), [N, K]);
    const on = loraLinear({ w: gone, loraA: 'a', loraB: 'b', loraAlpha: 4 });
    gone.dispose();
    const first = chain(on, loss).valueAndGrad(params(), x());
    await expect(first).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    const later = loraLinear({ w: array('w', [N, K]), loraA: 'a', loraB: 'b', loraAlpha: 4 });
    const planned = chain(later, loss);
    await planned.valueAndGrad(params(), x());
    later.dispose();
    const kept = params();
    await expect(planned.valueAndGrad(kept, x())).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    expect(counts(kept)).toEqual([1, 1]);
    const drops = loraLinear({ w, loraA: 'a', loraB: 'b', loraAlpha: 4, dropout: 0.1 });
    const [p, b] = [params(), x()];
    const second = chain(drops, loss).valueAndGrad(p, b);
    await expect(second).rejects.toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringContaining('seed'),
    });
    expect([...counts(p), b.refCount]).toEqual([1, 1, 1]);
  });
});

describe('wrong parts', () => {
  const jaxW = array('w', [N, K]);
  const given = { w: jaxW, loraA: 'a', loraB: 'b', loraAlpha: 4 };
  const quantised = quantize(w, { format: 'nf4' });
  const adapter = adapters.dora.create({ inFeatures: K, outFeatures: N, r, weight: w, seed: 1 });
  const makers: [string, () => unknown, string, string][] = [
    ['no parts', () => chain(), 'ERR_VALUE', 'parts must be at least one, got none'],
    [
      'a part',
      () => chain(layer, 3 as never),
      'ERR_TYPE',
      'parts[1] must be a function or a segment',
    ],
    [
      'w',
      () => loraLinear({ ...given, w: 3 as never }),
      'ERR_TYPE',
      'w must be an array of jax-js',
    ],
    [
      'the shape of w',
      () => loraLinear({ ...given, w: array('w', [K]) }),
      'ERR_SHAPE',
      'w must be of shape [N, K], got [32]',
    ],
    [
      'the dtype of w',
      () => loraLinear({ ...given, w: integers() }),
      'ERR_DTYPE',
      'w must be float32',
    ],
    [
      'a path',
      () => loraLinear({ ...given, loraA: params().a as never }),
      'ERR_TYPE',
      'loraA must be',
    ],
    ['alpha', () => loraLinear({ ...given, loraAlpha: Number.NaN }), 'ERR_VALUE', 'loraAlpha'],
    [
      'dropout',
      () => loraLinear({ ...given, dropout: 1 }),
      'ERR_VALUE',
      'dropout must be in [0, 1)',
    ],
    [
      'the bias',
      () => loraLinear({ ...given, bias: array('c', [N + 1]) }),
      'ERR_SHAPE',
      'bias must be of shape [24], got [25]',
    ],
    ['the format', () => loraLinear({ ...given, format: 'nf5' as never }), 'ERR_FORMAT', 'nf4'],
    [
      'the blocksize',
      () => loraLinear({ ...given, format: 'nf4', blocksize: 3 }),
      'ERR_FORMAT',
      '3',
    ],
    [
      'a blocksize without a format',
      () => loraLinear({ ...given, blocksize: 64 }),
      'ERR_VALUE',
      'format must be given with blocksize, got none',
    ],
    [
      'a format for a quantised w',
      () => loraLinear({ ...given, w: quantised, format: 'nf4' }),
      'ERR_VALUE',
      'format must be absent for a quantised w, got nf4',
    ],
    ['an option', () => loraLinear({ ...given, alpha: 1 } as never), 'ERR_VALUE', '"alpha"'],
    ['no branches', () => branches({}), 'ERR_VALUE', 'outputs must be of at least one entry'],
    ['a branch', () => branches({ q: 3 as never }), 'ERR_TYPE', 'outputs.q must be a segment'],
    [
      'branches of branches',
      () => branches({ q: branches({ k: layer }) }),
      'ERR_VALUE',
      'outputs.q must be a segment of one array, got branches',
    ],
    [
      'inputs with and without names',
      () => branches({ q: layer, k: ['x', layer] }),
      'ERR_VALUE',
      'outputs must be all with the name of an input, or all without, got "q" without',
    ],
    ['a layer', () => segment({} as never), 'ERR_TYPE', 'layer.outShape must be a function'],
    [
      'paths of an adapter',
      () => adapterLinear({ w: jaxW, adapter, parameters: { loraA: 'a' } }),
      'ERR_VALUE',
      'parameters must be the paths of loraA, loraB, magnitude, got loraA',
    ],
    [
      'an adapter of another weight',
      () =>
        adapterLinear({
          w: array('w', [K, K]),
          adapter,
          parameters: { loraA: 'a', loraB: 'b', magnitude: 'm' },
        }),
      'ERR_SHAPE',
      'w must be [24, 32], as the adapter, got [32, 32]',
    ],
    [
      'the bias of an adapter',
      () =>
        adapterLinear({
          w: jaxW,
          adapter,
          parameters: { loraA: 'a', loraB: 'b', magnitude: 'm' },
          bias: array('c', [K]),
        }),
      'ERR_SHAPE',
      'bias must be of shape [24], got [32]',
    ],
    ['jax-js', () => useJax({}), 'ERR_TYPE', 'jax must be the namespace object of @jax-js/jax'],
  ];

  it.each(makers)('%s', (_, make, code, message) => {
    let error: unknown;
    try {
      make();
    } catch (caught) {
      error = caught;
    }
    expect(error).toMatchObject({ code, message: expect.stringContaining(message) });
    expect(jaxW.refCount).toBe(1);
  });
});

describe('copies of jax-js', () => {
  it('are told apart by the arrays: the CommonJS build works too', async () => {
    const other = createRequire(import.meta.url)('@jax-js/jax') as typeof jax;
    const of = (name: string, shape: number[]) =>
      other.numpy.array(
        values(
          name,
          shape.reduce((a, b) => a * b, 1),
        ),
        { shape },
      );
    const theirs = chain(layer, (y: Jax) => other.numpy.mean(other.numpy.square(y)));
    const found = await theirs.valueAndGrad(
      { a: of('a', [r, K]), b: of('b', [N, r]) },
      of('x', [M, K]),
    );
    const expected = (await model.valueAndGrad(params(), x())).value.item();
    expect(found.value.ref.item()).toBe(expected);
    expect(found.value).toBeInstanceOf(other.Array);
    useJax(jax);
    const call = theirs.valueAndGrad({ a: of('a', [r, K]), b: of('b', [N, r]) }, of('x', [M, K]));
    await expect(call).rejects.toMatchObject({ code: 'ERR_VALUE' });
    expect((await model.valueAndGrad(params(), x())).value.item()).toBe(expected);
  });
});
