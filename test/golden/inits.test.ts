// Starts of adapters as PEFT and QERA computed them, within the recorded bounds.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapters,
  type Device,
  dequantize,
  InputSums,
  readAdapterFolder,
  type StartLayer,
  scope,
  startLayer,
  starts,
  Tensor,
} from '../../lib/index.js';
import { convertedFactors } from '../../lib/starts/parts/converted.js';
import { DEVICES } from '../conformance/operands.js';
import { type GoldenCase, loadCase } from './case-file.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';

interface OneLayer {
  readonly r: number;
  readonly lora_alpha: number;
  readonly use_rslora: boolean;
}

async function replay(id: string, run: (golden: GoldenCase, rules: RuleBook) => Promise<void>) {
  await scope(async () => {
    const golden = loadCase(id);
    const rules = new RuleBook(golden);
    await run(golden, rules);
    rules.finish();
  });
}

const turned = (a: ArrayLike<number>, n: number, m: number) =>
  Float32Array.from({ length: n * m }, (_, at) => a[(at % n) * m + Math.floor(at / n)] as number);

const scalingOf = ({ r, lora_alpha, use_rslora }: OneLayer) =>
  lora_alpha / (use_rslora ? Math.sqrt(r) : r);

/** scaling · B · A, row by row. */
function deltaOf(adapter: Adapter, scaling: number): Float64Array {
  const a = (adapter.parameters.loraA as Tensor).readSync();
  const b = (adapter.parameters.loraB as Tensor).readSync();
  const { inFeatures: K, outFeatures: N } = adapter;
  const r = a.length / K;
  return Float64Array.from({ length: N * K }, (_, at) => {
    let sum = 0;
    for (let i = 0; i < r; i++) {
      sum += (b[Math.floor(at / K) * r + i] as number) * (a[i * K + (at % K)] as number);
    }
    return scaling * sum;
  });
}

/** Rows rounded to int8 by the largest magnitude of each, from values that f16 holds: LLM.int8's weights. */
function rowwise(w: Tensor): Tensor {
  const [, K = 0] = w.shape;
  const values = w.to({ dtype: 'f16' }).to({ dtype: 'f32' }).readSync();
  const out = new Float32Array(values.length);
  for (let at = 0; at < values.length; at += K) {
    const most = values.subarray(at, at + K).reduce((a, v) => Math.max(a, Math.abs(v)), 0);
    for (let k = at; k < at + K; k++) {
      const code = Math.round(((values[k] as number) * 127) / most);
      out[k] = (code * most) / 127;
    }
  }
  return Tensor.from(out, w.shape, { device: w.device });
}

const NF4 = { format: 'nf4', blocksize: 64 } as const;

/** The start of each case of one layer. */
const ONE: Readonly<Record<string, readonly [start: string, settings: object]>> = {
  pissa_r8: ['pissa', { iterations: 0 }],
  pissa_r4_conv1d: ['pissa', { iterations: 0 }],
  pissa_rslora_r6: ['pissa', { iterations: 0 }],
  pissa_niter4_r8: ['pissa', { iterations: 4 }],
  pissa_bf16_r8: ['pissa', { iterations: 0, format: (w: Tensor) => w.to({ dtype: 'bf16' }) }],
  olora_r8: ['olora', {}],
  mica_r4: ['mica', {}],
  loftq_4bit_iter1_r8: ['loftq', { rounds: 1, iterations: 0, format: NF4 }],
  loftq_4bit_iter5_r8: ['loftq', { rounds: 5, iterations: 0, format: NF4 }],
  loftq_8bit_iter1_r8: ['loftq', { rounds: 1, iterations: 0, format: rowwise }],
};

/** A network of two layers, fc2(tanh(fc1(x))), on a device. */
function layersOf(golden: GoldenCase, device: Device) {
  const [w1, b1, w2, b2] = ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias'].map((name) =>
    tensorOf(golden.tensor(`base.${name}`), device),
  ) as [Tensor, Tensor, Tensor, Tensor];
  const hidden = (x: Tensor): Tensor => {
    const none = adapters.lora.create({ inFeatures: 24, outFeatures: 32, device });
    const { y } = none.forward(x, w1, { bias: b1, training: false });
    return Tensor.from(y.readSync().map(Math.tanh), y.shape, { device });
  };
  return { fc1: w1, fc2: w2, b2, hidden };
}

/** Sums of the inputs of both layers over batches of rows. */
function inputsOf(golden: GoldenCase, device: Device, batches: number) {
  const { hidden } = layersOf(golden, device);
  const x = golden.numbers('in.x');
  const rows = x.length / 24 / batches;
  const sums = { fc1: new InputSums(24), fc2: new InputSums(32) };
  for (let i = 0; i < batches; i++) {
    const part = Float32Array.from(x.subarray(i * rows * 24, (i + 1) * rows * 24));
    const tensor = Tensor.from(part, [rows, 24], { device });
    sums.fc1.add(tensor);
    sums.fc2.add(hidden(tensor));
  }
  return sums;
}

describe.each(DEVICES)('on %s', (device) => {
  it.each(Object.entries(ONE))('inits/%s', (name, [start, settings]) =>
    replay(`inits/${name}`, async (golden, rules) => {
      const params = golden.params as unknown as OneLayer;
      // Transposed-weight layers hold [in, out].
      const swap = name.includes('conv1d');
      const given = tensorOf(golden.tensor('in.W'), device);
      const [a = 0, b = 0] = given.shape;
      const w = swap ? Tensor.from(turned(given.readSync(), a, b), [b, a], { device }) : given;
      const { r, lora_alpha: loraAlpha, use_rslora: rslora } = params;
      const { adapter, weight } = startLayer(w, { start, r, loraAlpha, rslora, ...settings });
      const [N = 0, K = 0] = w.shape;
      const order = (values: ArrayLike<number>) => (swap ? turned(values, N, K) : values);
      const dense = await (weight instanceof Tensor
        ? weight.to({ dtype: 'f32' })
        : dequantize(weight)
      ).read();
      rules.check('out.delta', order(deltaOf(adapter, scalingOf(params))));
      rules.check('out.base_weight', order(dense));
      const x = tensorOf(golden.tensor('in.x'), device);
      const bias = tensorOf(golden.tensor('in.bias'), device);
      const { y } = adapter.forward(x, weight, { bias, training: false });
      rules.check('out.y', await y.read());
      for (const factor of ['A', 'B']) {
        if (!rules.has(`out.lora_${factor}`)) continue;
        rules.check(
          `out.lora_${factor}`,
          await (adapter.parameters[`lora${factor}`] as Tensor).read(),
        );
      }
    }),
  );

  it('inits/dora_magnitude_r4', () =>
    replay('inits/dora_magnitude_r4', async (golden, rules) => {
      const { r, lora_alpha: loraAlpha } = golden.params as unknown as OneLayer;
      const w = tensorOf(golden.tensor('in.W'), device);
      const [outFeatures = 0, inFeatures = 0] = w.shape;
      const adapter = adapters.dora.create({ inFeatures, outFeatures, r, loraAlpha, weight: w });
      rules.check('out.delta', deltaOf(adapter as Adapter, loraAlpha / r));
      rules.check('out.base_weight', await w.read());
      rules.check('out.magnitude', await (adapter.parameters.magnitude as Tensor).read());
      const options = { bias: tensorOf(golden.tensor('in.bias'), device), training: false };
      const { y } = adapter.forward(tensorOf(golden.tensor('in.x'), device), w, options);
      rules.check('out.y', await y.read());
    }));

  it.each(['ipm', 'kpm'])('inits/corda_%s_r4', (mode) =>
    replay(`inits/corda_${mode}_r4`, async (golden, rules) => {
      const inputs = inputsOf(golden, device, 1);
      const layers = layersOf(golden, device);
      for (const name of ['fc1', 'fc2'] as const) {
        const options = { r: 4, loraAlpha: 4, mode, iterations: 0, inputs: inputs[name] };
        const { adapter, weight } = startLayer(layers[name], { start: 'corda', ...options });
        rules.check(`out.${name}.delta`, deltaOf(adapter, 1));
        rules.check(`out.${name}.base_weight`, await (weight as Tensor).read());
      }
    }),
  );

  it.each([
    ['ArBr_stable', { direction: 'ArBr', scale: 'stable' }],
    ['A2rBr_gd_scale', { direction: 'A2rBr', scale: 'gd_scale' }],
    ['ArB2r_weight_svd', { direction: 'ArB2r', scale: 'weight_svd' }],
  ])('inits/lora_ga_%s_r4', (name, settings) =>
    replay(`inits/lora_ga_${name}_r4`, async (golden, rules) => {
      const layers = layersOf(golden, device);
      for (const module of ['fc1', 'fc2'] as const) {
        const dw = tensorOf(golden.tensor(`aux.${module}.grad`), device);
        const options = { r: 4, loraAlpha: 8, dw, iterations: 0, ...settings };
        const { adapter } = startLayer(layers[module], { start: 'lora-ga', ...options });
        for (const factor of ['A', 'B']) {
          const values = await (adapter.parameters[`lora${factor}`] as Tensor).read();
          rules.check(`out.${module}.lora_${factor}`, values);
        }
      }
    }),
  );

  it.each([1, 2])('inits/eva_rho%i_r4', (rho) =>
    replay(`inits/eva_rho${rho}_r4`, async (golden, rules) => {
      const inputs = inputsOf(golden, device, 2);
      const layers = layersOf(golden, device);
      const settings = { rho, whiten: false };
      const names = ['fc1', 'fc2'] as const;
      const of = (name: (typeof names)[number]): StartLayer => {
        const w = layers[name];
        const [N = 0, K = 0] = w.shape;
        return { module: name, N, K, device, w, inputs: inputs[name], quantise: () => w };
      };
      const call = (r: number) => ({ r, scaling: 2, seed: 0, settings, config: {} });
      const measured = names.map((name) => starts.eva.measure?.(of(name), call(4)) ?? []);
      const sizes = names.map(of);
      const ranks = starts.eva.ranks?.(measured, 4, settings, sizes) ?? [];
      expect(ranks).toEqual(Object.values(golden.params.r as object));
      for (const [i, name] of names.entries()) {
        const r = ranks[i] as number;
        const factors = starts.eva.factors as NonNullable<typeof starts.eva.factors>;
        const a = (factors(of(name), call(r)).loraA as Tensor).readSync();
        const K = of(name).K;
        const projector = Float64Array.from({ length: K * K }, (_, at) => {
          let sum = 0;
          for (let j = 0; j < r; j++) {
            sum += (a[j * K + Math.floor(at / K)] as number) * (a[j * K + (at % K)] as number);
          }
          return sum;
        });
        rules.check(`out.${name}.projector`, projector);
      }
    }),
  );

  it('inits/qera_exact_r4', () =>
    replay('inits/qera_exact_r4', async (golden, rules) => {
      const w = tensorOf(golden.tensor('base.w'), device);
      const quantised = tensorOf(golden.tensor('base.w_quantised'), device);
      const [N = 0, K = 0] = w.shape;
      const inputs = new InputSums(K);
      inputs.add(tensorOf(golden.tensor('in.x'), device));
      const options = { r: 4, loraAlpha: 8, iterations: 0, inputs, format: () => quantised.to({}) };
      const { adapter } = startLayer(w, { start: 'qera', ...options });
      const update = deltaOf(adapter, 2);
      rules.check('out.update', update);
      rules.check('out.output_error', [outputError(golden, update, N, K)]);
    }));

  it('inits/pissa_to_lora', () =>
    replay('inits/pissa_to_lora', async (golden, rules) => {
      const place = { inFeatures: 40, outFeatures: 32, r: 4, loraAlpha: 8, device };
      const factor = (name: string) => tensorOf(golden.tensor(`in.${name}`), device);
      const trained = { loraA: factor('trained.lora_A'), loraB: factor('trained.lora_B') };
      const start = { loraA: factor('init.lora_A'), loraB: factor('init.lora_B') };
      const bias = tensorOf(golden.tensor('base.lin.bias'), device);
      const x = factor('x');
      const run = (w: Tensor, tensors: typeof trained, r: number, loraAlpha: number) =>
        adapters.lora
          .from(tensors, { ...place, r, loraAlpha })
          .forward(x, w, { bias, training: false })
          .y.readSync();
      rules.check('out.y', run(factor('residual_weight'), trained, 4, 8));
      const wide = convertedFactors(trained, start);
      const original = tensorOf(golden.tensor('base.lin.weight'), device);
      const { config, tensors } = readAdapterFolder(
        new URL('./inits/pissa_to_lora', import.meta.url).pathname,
      );
      expect(config).toMatchObject({ r: 8, lora_alpha: 16 });
      for (const [name, key] of [
        ['loraA', 'lora_A'],
        ['loraB', 'lora_B'],
      ] as const) {
        const peer = tensors.get(`base_model.model.lin.${key}.weight`) as { data: Float32Array };
        expect([...wide[name].readSync()]).toEqual([...peer.data]);
      }
      rules.check('out.y_converted', run(original, wide, 8, 16));
    }));
});

/** The mean square of x · (w − q − update)ᵀ over its entries, as the case has it. */
function outputError(golden: GoldenCase, update: Float64Array, N: number, K: number): number {
  const [x, w, q] = ['in.x', 'base.w', 'base.w_quantised'].map((name) => golden.numbers(name)) as [
    Float64Array,
    Float64Array,
    Float64Array,
  ];
  const M = x.length / K;
  let total = 0;
  for (let m = 0; m < M; m++) {
    for (let n = 0; n < N; n++) {
      let sum = 0;
      for (let k = 0; k < K; k++) {
        const at = n * K + k;
        sum +=
          (x[m * K + k] as number) *
          ((w[at] as number) - (q[at] as number) - (update[at] as number));
      }
      total += sum * sum;
    }
  }
  return total / (M * N);
}
