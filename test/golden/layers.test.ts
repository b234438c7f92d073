// Adapters of embeddings and convolutions against PEFT: both are linear layers over other rows.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adaptersToPeft,
  type Device,
  matmul,
  oneHot,
  scope,
  type Tensor,
  weightGrad,
} from '../../lib/index.js';
import {
  baseTensor,
  checkGradients,
  checkMerged,
  forwardOf,
  gradientKeys,
  layerNames,
  layerOver,
  PREFIX,
  transposed,
} from './adapter-case.js';
import { caseIds, configOf, type GoldenCase, layerKind, loadCase } from './case-file.js';
import { convolutionOf, plainOf } from './convolution.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';

const DEVICES = ['cpu', 'reference'] as const;

/** Cases of `lora` and `tuners` on layers of a kind. */
const casesOf = (kind: string, types?: readonly string[]): string[] =>
  [...caseIds('lora'), ...caseIds('tuners')].filter(
    (id) => layerKind(id) === kind && (types?.includes(String(configOf(id).peft_type)) ?? true),
  );

/**
 * Of the left factors the peer's backward function multiplies the gradient of a product with the right
 * factor of the other one: the peer's numbers by that, and the library's by the product's own.
 */
async function checkLeftGradients(
  golden: GoldenCase,
  module: string,
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
  const peer = (name: string) => golden.numbers(`f64.grad.${PREFIX}${module}.hada_${name}`);
  near(left(w2A, second, second), peer('w1_a'));
  near(left(w1A, first, first), peer('w2_a'));
  near(left(w2A, second, first), await (gradients.w1A as Tensor).read());
  near(left(w1A, first, second), await (gradients.w2A as Tensor).read());
}

/** The adapter is written under the peer's names and in its shapes. */
async function checkWritten(golden: GoldenCase, module: string, adapter: Adapter): Promise<void> {
  const { config, tensors } = await adaptersToPeft(new Map([[module, adapter]]));
  const stored = golden.adapter();
  expect(config.peft_type).toBe(stored.config.peft_type);
  for (const [field, value] of Object.entries(config)) {
    if (typeof stored.config[field] === typeof value && /^r$|alpha$|^use_/.test(field))
      expect(stored.config[field], field).toEqual(value);
  }
  expect([...tensors.keys()].sort()).toEqual([...stored.tensors.keys()].sort());
  for (const [name, { shape }] of tensors) expect(shape).toEqual(stored.tensors.get(name)?.shape);
}

describe.each(DEVICES)('layers on %s', (device: Device) => {
  it.each(casesOf('embedding', ['LORA']))('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const [name = ''] = layerNames(golden);
      const table = baseTensor(golden, `${name}.weight`, device) as Tensor;
      const [V = 0] = table.shape;
      const layer = layerOver(golden, name, transposed(table), transposed);
      const adapter = layer.adapter as Adapter;
      const x = oneHot(golden.numbers('in.x'), V, { device });
      const { y, saved } = adapter.forward(x, layer.w);
      rules.check('out.y', await y.read());
      const dy = tensorOf(golden.tensor('in.grad_out'), device).reshape(y.shape);
      const { parameters } = adapter.backward(dy, saved, {
        needs: Object.keys(adapter.parameters),
      });
      await checkGradients(golden, rules, [{ layer, gradients: parameters }]);
      const merged = await checkMerged(golden, rules, layer);
      rules.check('out.y_merged', await matmul(x, merged.weight).read());
      rules.finish();
      expect(parameters.loraA).toBeDefined();
      await checkWritten(golden, name, adapter);
    });
  });

  it.each(casesOf('convolution'))('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const convolution = convolutionOf(golden, device);
      const { layer, patches, rows } = convolution;
      const adapter = layer.adapter as Adapter;
      const x = tensorOf(golden.tensor('in.x'), device);
      const { y, saved } = forwardOf(golden, layer, x, rows);
      rules.check('out.y', await patches.image(y).read());
      if (saved === undefined) throw new Error('no adapter');
      const gradient = tensorOf(golden.tensor('in.grad_out'), device);
      const dy = convolution.imageBackward(gradient);
      const { dx, parameters } = adapter.backward(dy, saved);
      rules.check('grad.x', await convolution.rowsBackward(dx as Tensor).read());
      const left = adapter.method === 'loha' && parameters.t1 !== undefined ? /w[12]A/ : /^$/;
      const others = Object.entries(parameters).filter(([name]) => !left.test(name));
      await checkGradients(golden, rules, [{ layer, gradients: Object.fromEntries(others) }]);
      if (others.length < Object.keys(parameters).length) {
        for (const key of ['hada_w1_a', 'hada_w2_a'].flatMap((name) =>
          gradientKeys(rules, layer.name, name),
        ))
          rules.waive(key, 'the peer takes the other product’s core, below');
        await checkLeftGradients(golden, layer.name, parameters, adapter, rows(x), dy);
      }
      const merged = await checkMerged(golden, rules, layer);
      if (rules.has('out.y_merged')) {
        const through = plainOf(convolution, x, merged.weight as Tensor, merged.bias);
        rules.check('out.y_merged', await through.read());
      }
      rules.finish();
      await checkWritten(golden, layer.name, adapter);
    });
  });
});
