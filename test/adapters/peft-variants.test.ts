// Options of PEFT's PEANuT, DEFT, BD-LoRA and activated LoRA, from folders. Expected values are written out here.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapterFromPeft,
  adapters,
  adaptersToPeft,
  scope,
  Tensor,
} from '../../lib/index.js';
import { namesIn, near, type Raw, raw, shapesOf, wave } from './peft-folder.js';

const [M, N, K] = [3, 4, 6];
const device = 'cpu' as const;
const [x, w] = [wave(M * K, 4), wave(N * K, 9)];
const place = { inFeatures: K, outFeatures: N, device };

type Rows = readonly (readonly number[])[];
const rowsOf = (values: ArrayLike<number>, cols: number): Rows =>
  Array.from({ length: values.length / cols }, (_, i) =>
    Array.from({ length: cols }, (_, j) => values[i * cols + j] as number),
  );
const product = (a: Rows, b: Rows): Rows =>
  a.map((row) =>
    (b[0] ?? []).map((_, j) => row.reduce((sum, v, i) => sum + v * (b[i]?.[j] as number), 0)),
  );
const turned = (a: Rows): Rows => (a[0] ?? []).map((_, j) => a.map((row) => row[j] as number));
const plus = (a: Rows, b: Rows, scale = 1): Rows =>
  a.map((row, i) => row.map((v, j) => v + scale * (b[i]?.[j] as number)));
const W = rowsOf(w, K);
const X = rowsOf(x, K);

/** y = x·weightᵀ, before and after merging. */
function expectWeight(adapter: Adapter, weight: Rows): void {
  const base = Tensor.from(w, [N, K], { device });
  const { y } = adapter.forward(Tensor.from(x, [M, K], { device }), base, { training: false });
  near(y.readSync(), product(X, turned(weight)).flat());
  near((adapter.merge(base).weight as Tensor).readSync(), weight.flat());
}

const load = (config: object, tensors: Readonly<Record<string, Raw>>, module = 'lin') =>
  adapterFromPeft({ config: { ...config }, tensors: namesIn(module, tensors) }, module, place);

describe('PEANuT', () => {
  const r = 2;
  const square = (i: number) => raw([r, r], wave(r * r, i));
  const stacks = (name: string) => ({
    'peanut_A.weight': raw([r, N], wave(r * N, 1)),
    'peanut_B.weight': raw([N, r], wave(N * r, 2)),
    [`peanut_encoders${name}.0.weight`]: square(3),
    [`peanut_encoders${name}.1.weight`]: square(4),
    [`peanut_decoders${name}.0.weight`]: square(5),
    [`peanut_decoders${name}.1.weight`]: square(6),
  });
  const config = { peft_type: 'PEANUT', r, depth: 2, scaling: 0.5, act_fn: 'silu' };
  const f = (a: Rows): Rows => a.map((row) => row.map((v) => v / (1 + Math.exp(-v))));
  const layer = (rows: Rows, i: number) => f(product(rows, turned(rowsOf(wave(r * r, i), r))));

  it.each(['', '.default'])('has encoders, decoders and residuals, %s', async (name) => {
    await scope(async () => {
      const adapter = load(config, stacks(name));
      const [a, b] = [rowsOf(wave(r * N, 1), N), rowsOf(wave(N * r, 2), r)];
      const first = f(product(turned(W), turned(a)));
      const second = layer(first, 3);
      const third = plus(layer(layer(second, 4), 5), second);
      const last = plus(layer(third, 6), first);
      expectWeight(adapter, plus(W, product(b, turned(last)), 0.5));
      const written = await adaptersToPeft(new Map([['lin', adapter]]));
      expect(shapesOf(written.tensors)).toEqual(shapesOf(namesIn('lin', stacks(''))));
      const again = adapterFromPeft(written, 'lin', place);
      for (const part of ['encoders', 'decoders'])
        expect(again.parameters[part]?.readSync()).toEqual(adapter.parameters[part]?.readSync());
      // In 16 bits too, bit for bit.
      const half = adapterFromPeft(written, 'lin', { ...place, dtype: 'bf16' });
      const file = await adaptersToPeft(new Map([['lin', half]]));
      const back = adapterFromPeft(file, 'lin', { ...place, dtype: 'bf16' });
      expect(back.parameters.encoders?.readSync()).toEqual(half.parameters.encoders?.readSync());
    });
  });

  it('is refused with one of its layers missing, or of another size', () => {
    const { 'peanut_decoders.1.weight': _, ...rest } = stacks('');
    expect(() => load(config, rest)).toThrow(
      expect.objectContaining({
        code: 'ERR_FILE',
        message: expect.stringContaining('peanut_decoders.1.weight'),
      }),
    );
    const none = { 'peanut_A.weight': raw([r, N]), 'peanut_B.weight': raw([N, r]) };
    expect(() => load(config, none)).toThrow(/lin must have the tensor peanut_encoders\.0\.weight/);
    const wide = { ...stacks(''), 'peanut_encoders.1.weight': raw([r, 3]) };
    expect(() => load(config, wide)).toThrow(/peanut_encoders\.1\.weight.*\[2, 2\].*\[2, 3\]/);
    expect(() => load({ ...config, act_fn: 'swiglu' }, stacks(''))).toThrow(
      /activation must be one of relu, .*, got "swiglu"/,
    );
    for (const depth of [-1, 1e9]) {
      expect(() => load({ ...config, depth }, stacks(''))).toThrow(
        /depth.*0 to 256, got (-1|1000000000)/,
      );
    }
  });
});

describe('DEFT', () => {
  const r = 2;
  const p = raw([N, r], wave(N * r, 2));
  const P = rowsOf(p.data, r);
  /** An orthonormal basis of the columns, one after the other. */
  const basis = (): Rows => {
    const columns: number[][] = [];
    for (const column of turned(P)) {
      let rest = [...column];
      for (const q of columns) {
        const along = q.reduce((sum, v, i) => sum + v * (rest[i] as number), 0);
        rest = rest.map((v, i) => v - along * (q[i] as number));
      }
      const norm = Math.hypot(...rest);
      columns.push(rest.map((v) => v / norm));
    }
    return turned(columns);
  };

  it.each(['relu', 'qr'])('of %s with para only takes out', async (decomposition_method) => {
    await scope(async () => {
      const config = {
        peft_type: 'DEFT',
        r,
        decomposition_method,
        para: true,
        alpha: 7,
        deft_dropout: 0.5,
      };
      const adapter = load(config, { deft_P: p });
      expect(Object.keys(adapter.parameters)).toEqual(['p']);
      const left = decomposition_method === 'relu' ? P : basis();
      const right =
        decomposition_method === 'relu' ? P.map((row) => row.map((v) => Math.max(v, 0))) : left;
      expectWeight(adapter, plus(W, product(left, product(turned(right), W)), -1));
      const written = await adaptersToPeft(new Map([['lin', adapter]]));
      expect(written.config).toMatchObject({ para: true, decomposition_method, r });
      expect(shapesOf(written.tensors)).toEqual(shapesOf(namesIn('lin', { deft_P: p })));
    });
  });

  it('has no more vectors than outputs', () => {
    const config = { peft_type: 'DEFT', r: 9, decomposition_method: 'relu', alpha: 8 };
    const tensors = { deft_P: raw([N, N]), deft_R: raw([N, K]) };
    expect(load(config, tensors).config).toMatchObject({ r: N, scaling: 2 });
  });
});

describe('BD-LoRA', () => {
  const r = 2;
  const bd = (fields: object) => ({
    peft_type: 'LORA',
    r,
    lora_alpha: 4,
    use_bdlora: { nblocks: 2, target_modules_bd_a: ['q'], target_modules_bd_b: ['o'], ...fields },
  });
  const whole = {
    'lora_A.weight': raw([r, K], wave(r * K, 1)),
    'lora_B.weight': raw([N, r], wave(N * r, 2)),
  };

  it('of a module on neither side is plain', () => {
    scope(() => {
      const adapter = load(bd({ match_strict: false }), whole, 'v');
      expect(adapter.config).toMatchObject({ side: 'none' });
      const [a, b] = [rowsOf(wave(r * K, 1), K), rowsOf(wave(N * r, 2), r)];
      expectWeight(adapter, plus(W, product(b, a), 2));
    });
  });

  it('is refused where the config has no side for it, or both', () => {
    for (const [fields, module, got] of [
      [{}, 'v', 'neither'],
      [{ match_strict: true }, 'v', 'neither'],
      [{ match_strict: false }, 'qo', 'both'],
    ] as const)
      expect(() => load(bd(fields), whole, module)).toThrow(
        expect.objectContaining({
          code: 'ERR_FILE',
          message: expect.stringMatching(new RegExp(`use_bdlora.*${module}.*got ${got}`)),
        }),
      );
  });

  it('is written with the side of each layer', async () => {
    await scope(async () => {
      const config = bd({ match_strict: false });
      const files = {
        q: { ...whole, 'lora_A.weight': raw([r, K / 2]) },
        v: whole,
        o: { ...whole, 'lora_B.weight': raw([N, r / 2]) },
      };
      const all = Object.entries(files).map(
        ([name, tensors]) => [name, load(config, tensors, name)] as const,
      );
      const written = await adaptersToPeft(new Map(all));
      expect(written.config.use_bdlora).toEqual({
        nblocks: 2,
        match_strict: false,
        target_modules_bd_a: ['q'],
        target_modules_bd_b: ['o'],
      });
      for (const [name, { config: settings }] of all)
        expect(adapterFromPeft(written, name, place).config).toEqual(settings);
    });
  });
});

describe('activated LoRA', () => {
  const make = (invocationTokens?: readonly number[]) => {
    const given = invocationTokens === undefined ? {} : { invocationTokens };
    return adapters.alora.create({ ...place, r: 2, ...given }) as unknown as Adapter;
  };

  it('has the tokens that turn it on, from a folder and back', async () => {
    await scope(async () => {
      const config = { peft_type: 'LORA', r: 2, alora_invocation_tokens: [7, 0, 7] };
      const tensors = { 'lora_A.weight': raw([2, K]), 'lora_B.weight': raw([N, 2]) };
      const adapter = load(config, tensors);
      expect(adapter.config).toMatchObject({ invocationTokens: [7, 0, 7] });
      const both = new Map([
        ['a', adapter],
        ['b', make([7, 0, 7])],
      ]);
      const written = (await adaptersToPeft(both)).config;
      expect(written).toMatchObject({ alora_invocation_tokens: [7, 0, 7] });
    });
  });

  it.each([
    ['none', [undefined], /invocationTokens of m0 must be at least one id, .*got none/],
    ['none of one layer', [[7], []], /invocationTokens of m1 must be at least one id, .*got none/],
    ['others of one layer', [[7, 1], [7]], /of m1 must be \[7,1\], as of m0, got \[7\]/],
  ])('is not written with %s', async (_, tokens, message) => {
    await scope(async () => {
      const layers = new Map(tokens.map((own, i) => [`m${i}`, make(own)]));
      const writing = adaptersToPeft(layers);
      await expect(writing).rejects.toThrow(expect.objectContaining({ code: 'ERR_VALUE' }));
      await expect(writing).rejects.toThrow(message);
    });
  });

  it.each([[[-1]], [[0.5]], [['a']]])('refuses %j', (tokens) => {
    expect(() => make(tokens as number[])).toThrow(
      expect.objectContaining({ code: 'ERR_VALUE', message: expect.stringMatching(/token ids/) }),
    );
  });
});
