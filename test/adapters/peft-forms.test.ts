// Forms of PEFT's folders that its options lead to: pruned ranks, patterns of ranks, sizes it has
// adjusted, convolutions' shapes, and what is refused. Expected values are written out here.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapterFromPeft,
  adapters,
  adaptersToPeft,
  scope,
  Tensor,
} from '../../lib/index.js';
import { namesIn, near, type Raw, raw, wave } from './peft-folder.js';

const [K, N] = [6, 4];

/** The adapter of `module`; names without a prefix are that module's. */
function load(
  config: Record<string, unknown>,
  tensors: Readonly<Record<string, Raw>>,
  module = 'lin',
): Adapter {
  const weight = Tensor.from(w, [N, K], { device: 'cpu' });
  const place = { inFeatures: K, outFeatures: N, device: 'cpu' as const, weight };
  return adapterFromPeft({ config, tensors: namesIn(module, tensors) }, module, place);
}

const x = wave(2 * K, 4);
const w = wave(N * K, 9);
/** y = x · (w + delta)ᵀ, in float64. */
function product(delta: (n: number, k: number) => number = () => 0): number[] {
  return Array.from({ length: 2 * N }, (_, at) => {
    const [m, n] = [Math.floor(at / N), at % N];
    let sum = 0;
    for (let k = 0; k < K; k++)
      sum += (x[m * K + k] as number) * ((w[n * K + k] as number) + delta(n, k));
    return sum;
  });
}
function run(adapter: Adapter): { y: number[]; gradients: number[] } {
  return scope(() => {
    const inputs = Tensor.from(x, [2, K], { device: 'cpu' });
    const base = Tensor.from(w, [N, K], { device: 'cpu' });
    const { y, saved } = adapter.forward(inputs, base, { training: true });
    const dy = Tensor.from(wave(2 * N, 2), [2, N], { device: 'cpu' });
    const back = adapter.backward(dy, saved);
    const all = Object.values(back.parameters) as Tensor[];
    return { y: [...y.readSync()], gradients: all.flatMap((tensor) => [...tensor.readSync()]) };
  });
}
describe('AdaLoRA', () => {
  const config = { peft_type: 'ADALORA', r: 8, init_r: 8, lora_alpha: 16 };
  const pattern = (kept: number) => ({
    rank_pattern: { 'lin.lora_E': Array.from({ length: 8 }, (_, i) => i < kept) },
  });
  const of = (r: number) => ({ lora_A: raw([r, K]), lora_E: raw([r, 1]), lora_B: raw([N, r]) });

  it.each([8, 3, 1])('with %i ranks left is scaled by those it began with', (r) => {
    const { lora_A: a, lora_E: e, lora_B: b } = of(r);
    const delta = (n: number, k: number) => {
      let sum = 0;
      for (let i = 0; i < r; i++)
        sum +=
          (b.data[n * r + i] as number) * (e.data[i] as number) * (a.data[i * K + k] as number);
      return (16 / (8 + 1e-5)) * sum;
    };
    near(run(load({ ...config, ...pattern(r) }, of(r))).y, product(delta));
  });

  it('with none left is the base', () => {
    near(run(load({ ...config, ...pattern(0) }, of(0))).y, product());
  });
});

describe('DeLoRA', () => {
  it('begins as the base where loraB is 0, with finite gradients', () => {
    const zeros = raw([N, 2], new Float32Array(N * 2));
    const tensors = { delora_A: raw([2, K]), delora_B: zeros };
    const rest = { delora_lambda: raw([1]), delora_w_norm: raw([K]) };
    const { y, gradients } = run(load({ peft_type: 'DELORA', r: 2 }, { ...tensors, ...rest }));
    near(y, product());
    expect(gradients.length).toBeGreaterThan(0);
    expect(gradients.every(Number.isFinite)).toBe(true);
  });
});

describe('a pattern of ranks', () => {
  const rank_pattern = { lin: 3 };
  const tensors = { 'lora_A.weight': raw([3, K]), 'lora_B.weight': raw([N, 3]) };

  it('may be none, and takes no longer than its length', () => {
    const lora = (pattern: string, module: string) =>
      load(
        { peft_type: 'LORA', r: 3, lora_alpha: 4, rank_pattern: { [pattern]: 3 } },
        tensors,
        module,
      );
    for (const pattern of ['lin(', 'a)|(lin'])
      expect(() => lora(pattern, 'lin')).toThrow(expect.objectContaining({ code: 'ERR_FILE' }));
    const began = performance.now();
    lora('(a+)+b', `${'a'.repeat(60)}c`);
    expect(performance.now() - began).toBeLessThan(1000);
  });

  it('is that of HiRA and DeLoRA too', () => {
    const hira = { hira_A: raw([3, K]), hira_B: raw([N, 3]) };
    expect(load({ peft_type: 'HIRA', r: 8, rank_pattern }, hira).config).toMatchObject({ r: 3 });
    const delora = { delora_A: raw([3, K]), delora_B: raw([N, 3]) };
    const rest = { delora_lambda: raw([1]), delora_w_norm: raw([K]) };
    const config = { peft_type: 'DELORA', r: 8, rank_pattern };
    expect(load(config, { ...delora, ...rest }).config).toMatchObject({ r: 3 });
  });

  it.each([null, 0.25, 2])(
    'of OSF (effective_rank %s) follows from what is stored',
    (effective_rank) => {
      const low = (name: string, shape: readonly number[]) => [
        `osf_svd_params.${name}`,
        raw(shape),
      ];
      const tensors = Object.fromEntries([
        ...[low('U_low', [N, 1]), low('S_low', [1]), low('V_low', [1, K])],
        ...[
          ['_osf_U_high', raw([N, 3])],
          ['_osf_S_high', raw([3])],
          ['_osf_V_high', raw([3, K])],
        ],
      ]) as Record<string, Raw>;
      expect(load({ peft_type: 'OSF', effective_rank }, tensors).config).toMatchObject({ rank: 3 });
      // As PEFT saves it: without what it takes from the base weight again.
      const saved = Object.fromEntries(
        Object.entries(tensors).filter(([name]) => !name.startsWith('_osf_')),
      );
      expect(load({ peft_type: 'OSF', effective_rank }, saved).config).toMatchObject({ rank: 3 });
    },
  );
});

describe('sizes that PEFT has adjusted', () => {
  it.each([
    [{ r: 0, oft_block_size: 32 }, 3],
    [{ r: 4, oft_block_size: 0 }, 2],
    [{ r: 0, oft_block_size: 6 }, 6],
  ])('OFT %o has blocks of %i', (sizes, size) => {
    const weight = raw([K / size, (size * (size - 1)) / 2]);
    const adapter = load({ peft_type: 'OFT', ...sizes }, { 'oft_R.weight': weight });
    expect(adapter.config).toMatchObject({ blocks: 0, blockSize: size });
  });

  it('TinyLoRA’s last group takes the layers that are over', () => {
    const modules = ['a', 'b', 'c'];
    const each = (module: string) => {
      const key = (name: string) => `base_model.model.${module}.tinylora_${name}`;
      return [
        [key('A'), raw([2, K])],
        [key('B'), raw([N, 2])],
        [key('P'), raw([3, 2, 2])],
      ];
    };
    const vectors = [0, 1].map((i) => [`base_model.tinylora_v.${i}`, raw([3], wave(3, i))]);
    const tensors = Object.fromEntries([...modules.flatMap(each), ...vectors]) as Record<
      string,
      Raw
    >;
    const config = { peft_type: 'TINYLORA', r: 2, u: 3 };
    const sizes = { inFeatures: K, outFeatures: N };
    const groupsOf = (order: readonly string[]) => {
      const layers = new Map(order.map((name) => [name, sizes]));
      const folder = { config, tensors: namesIn('', tensors), layers };
      return modules.map((module) => {
        const { v } = adapterFromPeft(folder, module, { ...sizes, device: 'cpu' }).parameters;
        return v?.readSync();
      });
    };
    expect(groupsOf(modules)).toEqual([wave(3, 0), wave(3, 1), wave(3, 1)]);
    // In the order of the model, whatever that of the names.
    expect(groupsOf(['c', 'b', 'a'])).toEqual([wave(3, 1), wave(3, 1), wave(3, 0)]);
    expect(() => load(config, tensors, 'a')).toThrow(/folder\.layers must be given/);
  });

  it('TinyLoRA’s layers of one name are in the order of their numbers', () => {
    const modules = ['layers.10.lin', 'layers.2.lin', 'layers.0.lin'];
    const file = modules.flatMap((module) =>
      Object.entries({ A: raw([2, K]), B: raw([N, 2]), P: raw([3, 2, 2]) }).map(
        ([key, value]) => [`base_model.model.${module}.tinylora_${key}`, value] as const,
      ),
    );
    const vectors = [0, 1, 2].map(
      (i) => [`base_model.tinylora_v.${i}`, raw([3], wave(3, i))] as const,
    );
    const tensors = Object.fromEntries([...file, ...vectors]);
    const config = { peft_type: 'TINYLORA', r: 2, u: 3 };
    const of = (module: string) => load(config, tensors, module).parameters.v?.readSync();
    expect(modules.map(of)).toEqual([wave(3, 2), wave(3, 1), wave(3, 0)]);
  });

  it('TinyLoRA of a narrow layer has no more ranks than its weight', () => {
    const tensors = {
      tinylora_A: raw([N, K]),
      tinylora_B: raw([N, N]),
      tinylora_P: raw([3, N, N]),
      'base_model.tinylora_v.0': raw([3]),
    };
    const config = { peft_type: 'TINYLORA', r: N + 1, u: 3 };
    expect(load(config, tensors).config).toMatchObject({ r: Math.min(N, K) });
  });
});

it('FRoD is read as earlier versions of this library wrote it too: with a V a layer', async () => {
  await scope(async () => {
    const weight = Tensor.from(w, [N, K], { device: 'cpu' });
    const place = { inFeatures: K, outFeatures: N, device: 'cpu' as const, weight };
    const one = adapters.frod.create({ ...place, sparseRate: 0.1, seed: 1 }) as unknown as Adapter;
    const { config, tensors } = await adaptersToPeft(new Map([['mlp.lin', one]]));
    expect([...tensors.keys()].filter((key) => !key.includes('.model.'))).toEqual([
      'base_model.frod_V.mlp_lin',
      'base_model.frod_s_indices.mlp_lin',
      'base_model.frod_s_size.mlp_lin',
    ]);
    const old = new Map(
      [...tensors].map(([key, value]) => [
        key.replace(/^base_model\.(frod_\w+)\.mlp_lin$/, 'base_model.model.mlp.lin.$1'),
        value,
      ]),
    );
    for (const from of [tensors, old]) {
      const again = adapterFromPeft({ config, tensors: from }, 'mlp.lin', place);
      expect(again.indexes).toEqual(one.indexes);
      expect(again.buffers.v?.readSync()).toEqual(one.buffers.v?.readSync());
    }
  });
});

it.each([
  ['deft', { r: N + 1 }, /r must be from 1 to N \(4\), got 5/],
  ['deftQr', { r: N + 1 }, /r must be from 1 to N \(4\), got 5/],
  ['tinylora', { r: N + 1 }, /r must be from 1 to 4, got 5/],
  ['kasa', { r: N + 1 }, /r must be from 1 to 4, got 5/],
] as const)('%s has no more ranks than PEFT has', (method, settings, text) => {
  const weight = Tensor.from(w, [N, K], { device: 'cpu' });
  const place = { inFeatures: K, outFeatures: N, weight, ...settings };
  expect(() => adapters[method].create(place as never)).toThrow(text);
});

describe('IA3', () => {
  const method = (feedforward_modules: unknown, shape: readonly number[], module = 'mlp.lin') =>
    load({ peft_type: 'IA3', feedforward_modules }, { ia3_l: raw(shape) }, module).method;

  it('takes one name for a pattern of the whole, several for ends', () => {
    expect(method('.*lin', [1, K])).toBe('ia3-input');
    expect(method('lin', [N, 1])).toBe('ia3');
    expect(method(['p.lin'], [1, K])).toBe('ia3-input');
    expect(method(['q'], [N, 1])).toBe('ia3');
  });

  it('refuses what is no pattern', () => {
    expect(() => method('lin(', [N, 1])).toThrow(expect.objectContaining({ code: 'ERR_FILE' }));
  });

  it('of a convolution is read by its values', () => {
    expect(method([], [1, N, 1, 1])).toBe('ia3');
  });
});

describe('shapes of convolutions', () => {
  const config = { peft_type: 'LORA', r: 2, lora_alpha: 4 };
  it('are those of the layer by patches', () => {
    const flat = { 'lora_A.weight': raw([2, K]), 'lora_B.weight': raw([N, 2]) };
    const kernel = { 'lora_A.weight': raw([2, 3, 1, 2]), 'lora_B.weight': raw([N, 2, 1, 1]) };
    expect(run(load(config, kernel)).y).toEqual(run(load(config, flat)).y);
  });

  it('are refused where rows are columns', () => {
    const turned = { 'lora_A.weight': raw([K, 2]), 'lora_B.weight': raw([N, 2]) };
    expect(() => load(config, turned)).toThrow(/loraA.*\[2, 6\].*\[6, 2\]/);
  });
});

describe('LoKr of a convolution', () => {
  // 3 channels of 2 taps to 4: factors (1, 3) and (2, 2), so that w1 is [2, 1] and w2 [2, 3, 1, 2].
  const config = { peft_type: 'LOKR', r: 1, alpha: 3 };
  const w1 = raw([2, 1], wave(2, 1));
  const core = wave(2, 5);
  const [left, right] = [wave(2, 6), wave(3, 7)];
  const second = (n: number, c: number, tap: number) =>
    (core[tap] as number) * (left[n] as number) * (right[c] as number);
  const delta = (n: number, k: number) =>
    3 * (w1.data[n >> 1] as number) * second(n % 2, Math.floor(k / 2), k % 2);
  const all = Float32Array.from({ length: 12 }, (_, i) => {
    const [n, c] = [Math.floor(i / 6), Math.floor(i / 2) % 3];
    return second(n, c, i % 2);
  });
  const cut = Float32Array.from(
    { length: 6 },
    (_, i) => (core[i % 2] as number) * (right[i >> 1] as number),
  );

  it.each([
    ['a kernel', { ...config, r: 2, alpha: 6 }, { lokr_w2: raw([2, 3, 1, 2], all) }, [1, 2]],
    ['two matrices', config, { lokr_w2_a: raw([2, 1], left), lokr_w2_b: raw([1, 6], cut) }, [1, 2]],
    [
      'a Tucker product',
      { ...config, use_effective_conv2d: true },
      {
        lokr_t2: raw([1, 1, 1, 2], core),
        lokr_w2_a: raw([1, 2], left),
        lokr_w2_b: raw([1, 3], right),
      },
      [1, 2],
    ],
  ] as const)('%s is the update by channels and taps', async (_, settings, tensors, kernel) => {
    const stored = { lokr_w1: w1, ...tensors };
    const adapter = load(settings, stored);
    expect(adapter.config).toMatchObject({ kernel });
    near(run(adapter).y, product(delta));
    const written = await adaptersToPeft(new Map([['lin', adapter]]));
    const shapes = [...written.tensors].map(([name, { shape }]) => [name, shape]);
    expect(shapes.sort()).toEqual(
      Object.entries(stored)
        .map(([name, { shape }]) => [`base_model.model.lin.${name}`, shape])
        .sort(),
    );
  });
});

it('VB-LoRA is read from the chosen vectors and their weights', () => {
  const config = { peft_type: 'VBLORA', r: 2, num_vectors: 5, vector_length: 2, topk: 2 };
  const bank = { 'base_model.vblora_vector_bank': raw([5, 2]) };
  // A row's vectors are i and i + 2 of the bank, the first of which has a share of its own.
  const rows = (count: number) =>
    Array.from({ length: count }, (_, i) => ({ i: i % 3, share: (i + 1) / 9 }));
  const logits = (shape: readonly [number, number]) =>
    raw(
      [...shape, 5],
      Float32Array.from(
        rows(shape[0] * shape[1]).flatMap(({ i, share }) =>
          Array.from({ length: 5 }, (_, j) => {
            if (j === i) return Math.log(share);
            return j === i + 2 ? Math.log(1 - share) : -20;
          }),
        ),
      ),
    );
  const chosen = (name: string, shape: readonly [number, number]) => ({
    [`vblora_logits_${name}_topk_indices`]: raw(
      [...shape, 2],
      Float32Array.from(rows(shape[0] * shape[1]).flatMap(({ i }) => [i, i + 2])),
    ),
    [`vblora_logits_${name}_topk_weights`]: raw(
      [...shape, 1],
      Float32Array.from(rows(shape[0] * shape[1]).map(({ share }) => share)),
    ),
  });
  const [a, b] = [
    [2, K / 2],
    [N / 2, 2],
  ] as const;
  const whole = load(config, { ...bank, vblora_logits_A: logits(a), vblora_logits_B: logits(b) });
  const only = { ...config, save_only_topk_weights: true };
  const short = load(only, { ...bank, ...chosen('A', a), ...chosen('B', b) });
  near(run(short).y, run(whole).y);
  expect(() => load(only, bank)).toThrow(/vblora_logits_A/);
  const wrong = { ...chosen('A', a), ...chosen('B', b), ...bank };
  const beyond = {
    ...wrong,
    vblora_logits_A_topk_indices: raw([...a, 2], new Float32Array(12).fill(5)),
  };
  expect(() => load(only, beyond)).toThrow(/topk_indices.*0 to 4.*5/);
  const few = { ...wrong, vblora_logits_A_topk_weights: raw([1], new Float32Array(1)) };
  expect(() => load(only, few)).toThrow(/topk_weights.*6 in all.*1/);
});

describe('what would be computed otherwise', () => {
  it.each([['layer_replication', [[0, 2]]]])('%s is refused', (field, value) => {
    const tensors = { 'lora_A.weight': raw([2, K]), 'lora_B.weight': raw([N, 2]) };
    const config = { peft_type: 'LORA', r: 2, lora_alpha: 4 };
    expect(() => load({ ...config, [field]: value }, tensors)).toThrow(
      expect.objectContaining({ code: 'ERR_UNSUPPORTED', message: expect.stringContaining(field) }),
    );
    expect(load({ ...config, [field]: null }, tensors).method).toBe('lora');
  });

  it.each([
    [
      { peft_type: 'DEFT', decomposition_method: 'svd' },
      /a DEFT config must be of a form that deft or deft-qr supports, got another/,
    ],
    [
      { peft_type: 'SUPERTUNING', r: 4 },
      /a SUPERTUNING config must be of a form that supertuning supports/,
    ],
    [{ peft_type: 'HYPOTHETICAL' }, /peft_type must be one of ADALORA, .*, got "?HYPOTHETICAL"?$/],
  ])('a form that nothing reads is refused, not as an unknown type: %j', (config, text) => {
    expect(() => load(config, {})).toThrow(text);
  });

  it('very sparse random bases are torch’s', () => {
    const [r, small, large] = [3, 16, 20];
    const bases = Math.ceil(small / r);
    const tensors = { randlora_lambda: raw([r, bases]), randlora_gamma: raw([bases, small]) };
    const config = {
      peft_type: 'RANDLORA',
      r,
      randlora_alpha: 2,
      projection_prng_key: 7,
      save_projection: false,
      very_sparse: true,
    };
    const folder = { config, tensors: namesIn('lin', tensors) };
    const place = { inFeatures: large, outFeatures: small, device: 'cpu' as const };
    const { left, right } = adapterFromPeft(folder, 'lin', place).buffers;
    // torch 2.6, seed 7.
    expect([...(left as Tensor).readSync().slice(0, small)]).toEqual(new Array(small).fill(0));
    const values = (right as Tensor).readSync();
    near(
      values.slice(0, 7),
      [0, -2.0202987, -2.0202987, 2.0202987, 2.0202987, 0, -2.0202987],
      1e-6,
    );
    const sum = values.reduce((total: number, value: number) => total + Math.abs(value), 0);
    expect(Math.abs(sum - 177.7863)).toBeLessThan(1e-3);
  });

  it('random matrices that were not saved are not taken for others', () => {
    const settings = { r: 2 };
    const config = { peft_type: 'LOWRANK', lowrank_method: 'lora-xs', settings };
    const tensors = { core: raw([2, 2]) };
    expect(() => load({ ...config, save_projection: false }, tensors)).toThrow(
      /save_projection.*true.*false/,
    );
  });
});

it('X-LoRA takes a softmax of all gates where none are left out', () => {
  scope(() => {
    const sizes = { inFeatures: K, outFeatures: N, device: 'cpu' as const };
    const settings = { ranks: [1, 1], scalings: [1, 1], softmaxTopK: true };
    const [loraA, loraB] = [Tensor.from(wave(2 * K), [2, K]), Tensor.from(wave(2 * N), [N, 2])];
    const adapter = adapters.xlora.from({ loraA, loraB }, { ...sizes, ...settings });
    const gates = Tensor.from([1, 0, 0.5, 0.5], [2, 2], { device: 'cpu' });
    const inputs = Tensor.from(x, [2, K], { device: 'cpu' });
    const base = Tensor.from(w, [N, K], { device: 'cpu' });
    const { y } = adapter.forward(inputs, base, { training: false, inputs: { gates } });
    const [a, b] = [loraA.readSync(), loraB.readSync()];
    const share = Math.E / (Math.E + 1);
    const softmax = [share, 1 - share, 0.5, 0.5];
    const expected = product().map((value, at) => {
      const [m, n] = [Math.floor(at / N), at % N];
      let sum = value;
      for (let e = 0; e < 2; e++) {
        let h = 0;
        for (let k = 0; k < K; k++) h += (x[m * K + k] as number) * (a[e * K + k] as number);
        sum += (softmax[m * 2 + e] as number) * h * (b[n * 2 + e] as number);
      }
      return sum;
    });
    near([...y.readSync()], expected);
  });
});
