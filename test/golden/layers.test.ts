// Adapters of embeddings and convolutions against PEFT: both are linear layers over other rows.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapterFromPeft,
  adapterMethods,
  adaptersToPeft,
  type Device,
  Im2col,
  matmul,
  oneHot,
  scope,
  Tensor,
  weightGrad,
} from '../../lib/index.js';
import { folderOf } from './adapter-case.js';
import { caseIds, type GoldenCase, loadCase, numbersOf } from './case-file.js';
import { RuleBook } from './rules.js';

const DEVICES = ['cpu', 'reference'] as const;
const PREFIX = 'base_model.model.';

/** The case's adapter from its factors under any names. */
function adapterOf(
  golden: GoldenCase,
  device: Device,
  names: { loraA: string; loraB: string; magnitude: string },
  [r, K, N]: readonly [number, number, number],
): Adapter {
  const { config, tensors } = golden.adapter();
  const dora = config.use_dora === true;
  const method = adapterMethods.find((m) => m.method === (dora ? 'dora' : 'lora'));
  const part = (name: string, shape: readonly number[]): Tensor => {
    const found = tensors.get(PREFIX + name);
    if (found === undefined) throw new Error(`no ${name}`);
    return Tensor.from(Float32Array.from(numbersOf(found)), shape, { device });
  };
  const factors = {
    loraA: part(names.loraA, [r, K]),
    loraB: part(names.loraB, [N, r]),
    ...(dora ? { magnitude: part(names.magnitude, [N]) } : {}),
  };
  const settings = { r, loraAlpha: Number(config.lora_alpha) };
  return (method as NonNullable<typeof method>).from(factors, {
    inFeatures: K,
    outFeatures: N,
    ...settings,
  } as never) as Adapter;
}

/** [rows, cols] to [cols, rows]. */
const transposed = (values: ArrayLike<number>, rows: number, cols: number): Float32Array =>
  Float32Array.from(
    { length: rows * cols },
    (_, i) => values[(i % rows) * cols + Math.floor(i / rows)] as number,
  );

/** scaling · loraB · loraA [N, K], which the peer calls the update. */
async function updateOf(adapter: Adapter, device: Device): Promise<Float32Array> {
  const { loraA, loraB } = adapter.parameters as Record<'loraA' | 'loraB', Tensor>;
  const { r, loraAlpha } = adapter.config as { r: number; loraAlpha: number };
  const K = loraA.shape[1] as number;
  const right = Tensor.from(transposed(await loraA.read(), r, K), [K, r], { device });
  const product = await matmul(loraB, right).read();
  return product.map((v) => (v * loraAlpha) / r);
}

/** The convolution of a case: torch's layer with the one stride and padding that give its output. */
function convolutionOf(golden: GoldenCase, device: Device) {
  const { shape } = golden.tensor('base.conv.weight');
  const [N = 0, channels = 0, kh = 0, kw = 0] = shape;
  const input = golden.tensor('in.x').shape;
  const [, , height = 0, width = 0] = input;
  const [, , outHeight = 0] = golden.tensor('out.y').shape;
  const fits = [1, 2].flatMap((s) =>
    [0, 1]
      .filter((p) => Math.floor((height + 2 * p - kh) / s) + 1 === outHeight)
      .map((p) => ({ s, p })),
  );
  expect(fits).toHaveLength(1);
  const { s, p } = fits[0] as { s: number; p: number };
  const patches = new Im2col({
    channels,
    height,
    width,
    kernel: [kh, kw],
    stride: [s, s],
    padding: [p, p],
    device,
  });
  return { patches, N, input };
}

/**
 * Of the left factors the peer's backward function multiplies the gradient of a product with the right
 * factor of the other one: the peer's numbers by that, and the library's by the product's own.
 */
async function checkLeftGradients(
  golden: GoldenCase,
  gradients: Readonly<Record<string, Tensor>>,
  { parameters, config }: Adapter,
  rows: Tensor,
  dy: Tensor,
): Promise<void> {
  const { r, loraAlpha } = config as { r: number; loraAlpha: number };
  const dW = await weightGrad(dy, rows).read();
  const [N = 0, K = 0] = [dy.shape.at(-1), rows.shape.at(-1)];
  const [w1A, w1B, w2A, w2B, t1, t2] = await Promise.all(
    ['w1A', 'w1B', 'w2A', 'w2B', 't1', 't2'].map((name) => (parameters[name] as Tensor).read()),
  );
  const right = (core?: Float32Array, b?: Float32Array) => (i: number, k: number) => {
    const taps = (core as Float32Array).length / (r * r);
    const [c, tap] = [Math.floor(k / taps), k % taps];
    let sum = 0;
    for (let j = 0; j < r; j++) {
      sum += (core?.[(i * r + j) * taps + tap] as number) * (b?.[(j * K) / taps + c] as number);
    }
    return sum;
  };
  const [first, second] = [right(t1, w1B), right(t2, w2B)];
  type Factor = typeof first;
  /** `dA[i, n] = loraAlpha / r · Σₖ dW[n, k] · other[n, k] · factor(i, k)` */
  const left = (a: Float32Array | undefined, other: Factor, factor: Factor): number[] =>
    Array.from({ length: r * N }, (_, at) => {
      const [i, n] = [Math.floor(at / N), at % N];
      let sum = 0;
      for (let k = 0; k < K; k++) {
        let product = 0;
        for (let s = 0; s < r; s++) product += (a?.[s * N + n] as number) * other(s, k);
        sum += (dW[n * K + k] as number) * product * factor(i, k);
      }
      return (loraAlpha / r) * sum;
    });
  const near = (values: readonly number[], expected: ArrayLike<number>): void =>
    values.forEach((v, i) => {
      expect(Math.abs(v - (expected[i] as number))).toBeLessThan(4e-6);
    });
  const peer = (name: string) => golden.numbers(`f64.grad.${PREFIX}conv.hada_${name}`);
  near(left(w2A, second, second), peer('w1_a'));
  near(left(w1A, first, first), peer('w2_a'));
  near(left(w2A, second, first), await (gradients.w1A as Tensor).read());
  near(left(w1A, first, second), await (gradients.w2A as Tensor).read());
}

/** A convolution's case but for the gradients of its parameters: forward, dx, merged. */
async function replayConvolution(
  golden: GoldenCase,
  rules: RuleBook,
  adapter: Adapter,
  device: Device,
): Promise<{ rows: Tensor; dy: Tensor; parameters: Record<string, Tensor> }> {
  const { patches, N, input } = convolutionOf(golden, device);
  const from = (name: string, dims: readonly number[]) =>
    Tensor.from(Float32Array.from(golden.numbers(name)), dims, { device });
  const w = from('base.conv.weight', [N, patches.inFeatures]);
  const bias = from('base.conv.bias', [N]);
  const rows = patches.rows(from('in.x', input));
  const { y, saved } = adapter.forward(rows, w, { bias });
  rules.check('out.y', await patches.image(y).read());
  const dy = patches.imageBackward(from('in.grad_out', golden.tensor('in.grad_out').shape));
  const { dx, parameters } = adapter.backward(dy, saved);
  rules.check('grad.x', await patches.rowsBackward(dx as Tensor).read());
  const merged = adapter.merge(w, { bias });
  rules.check('merged.conv.weight', await (merged.weight as Tensor).read());
  const through = matmul(rows, merged.weight, { bias: merged.bias ?? bias });
  rules.check('out.y_merged', await patches.image(through).read());
  return { rows, dy, parameters };
}

describe.each(DEVICES)('layers on %s', (device: Device) => {
  it.each(['lora/emb_r4_f32', 'lora/emb_dora_r4_f32'])('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const [V = 0, D = 0] = golden.tensor('base.emb.weight').shape;
      const names = {
        loraA: 'emb.lora_embedding_A',
        loraB: 'emb.lora_embedding_B',
        magnitude: 'emb.lora_magnitude_vector',
      };
      const adapter = adapterOf(golden, device, names, [golden.params.r as number, V, D]);
      const table = transposed(golden.numbers('base.emb.weight'), V, D);
      const w = Tensor.from(table, [D, V], { device });
      const x = oneHot(golden.numbers('in.x'), V, { device });
      const { y, saved } = adapter.forward(x, w);
      rules.check('out.y', await y.read());
      const dy = Float32Array.from(golden.numbers('in.grad_out'));
      const { parameters } = adapter.backward(Tensor.from(dy, y.shape, { device }), saved, {
        needs: Object.keys(adapter.parameters),
      });
      for (const [name, gradient] of Object.entries(parameters)) {
        const key = `grad.${PREFIX}${names[name as keyof typeof names]}`;
        rules.check(rules.has(key) ? key : `${key}.weight`, await gradient.read());
      }
      rules.check('out.delta.emb', transposed(await updateOf(adapter, device), D, V));
      const merged = adapter.merge(w).weight as Tensor;
      rules.check('merged.emb.weight', transposed(await merged.read(), D, V));
      rules.check('out.y_merged', await matmul(x, merged).read());
      rules.finish();
      expect(parameters.loraA).toBeDefined();
    });
  });

  it.each(['lora/conv2d_r4_f32', 'lora/conv2d_dora_r4_f32'])('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const { patches, N } = convolutionOf(golden, device);
      const K = patches.inFeatures;
      const names = {
        loraA: 'conv.lora_A.weight',
        loraB: 'conv.lora_B.weight',
        magnitude: 'conv.lora_magnitude_vector',
      };
      const adapter = adapterOf(golden, device, names, [golden.params.r as number, K, N]);
      const { parameters } = await replayConvolution(golden, rules, adapter, device);
      for (const [name, gradient] of Object.entries(parameters)) {
        const key = `grad.${PREFIX}${names[name as keyof typeof names]}`;
        rules.check(rules.has(key) ? key : `${key}.weight`, await gradient.read());
      }
      rules.check('out.delta.conv', await updateOf(adapter, device));
      rules.finish();
    });
  });

  it.each(caseIds('tuners').filter((id) => /conv2d/.test(id)))('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const { patches, N } = convolutionOf(golden, device);
      const K = patches.inFeatures;
      const adapter = adapterFromPeft(folderOf(golden), 'conv', {
        inFeatures: K,
        outFeatures: N,
        device,
      });
      const { rows, dy, parameters } = await replayConvolution(golden, rules, adapter, device);
      for (const [name, gradient] of Object.entries(parameters)) {
        const key = `grad.${PREFIX}conv.${adapter.definition.peft?.tensors[name]}`;
        const leftOfLoha = adapter.method === 'loha' && /w[12]A/.test(name);
        if (leftOfLoha) rules.waive(key, 'the peer takes the other product’s core, below');
        else rules.check(key, await gradient.read());
      }
      if (adapter.method === 'loha')
        await checkLeftGradients(golden, parameters, adapter, rows, dy);
      const update = adapter.merge(Tensor.zeros([N, K], { device })).weight as Tensor;
      rules.check('out.delta.conv', await update.read());
      rules.finish();
      // Written and read again, it is the same adapter.
      const { config, tensors } = await adaptersToPeft(new Map([['conv', adapter]]));
      const { peft_type, use_effective_conv2d, r } = golden.adapter().config;
      expect(config).toMatchObject({ peft_type, use_effective_conv2d, r });
      expect([...tensors.keys()].sort()).toEqual([...golden.adapter().tensors.keys()].sort());
      for (const [name, { shape }] of tensors) {
        expect(shape).toEqual(golden.adapter().tensors.get(name)?.shape);
      }
    });
  });
});
