// Adapters that tokens are routed to, against PEFT: activated LoRA, X-LoRA's layer, Poly, Arrow.
import { describe, expect, it } from 'vitest';
import {
  activeTokens,
  adapterMethods,
  adapters,
  arrowExperts,
  arrowFromPeft,
  type Device,
  invocationOffsets,
  LoraAdapter,
  scope,
  Tensor,
} from '../../lib/index.js';
import { layerOf, PREFIX } from './adapter-case.js';
import { type GoldenCase, loadCase } from './case-file.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';

const DEVICES = ['cpu', 'reference'] as const;

const operands = (golden: GoldenCase, device: Device) => ({
  x: tensorOf(golden.tensor('in.x'), device),
  dy: tensorOf(golden.tensor('in.grad_out'), device),
  w: tensorOf(golden.tensor('base.lin.weight'), device),
  bias: tensorOf(golden.tensor('base.lin.bias'), device),
});

const rowsOf = (golden: GoldenCase, name: string): number[][] => {
  const values = golden.numbers(name);
  const T = golden.tensor(name).shape.at(-1) ?? 1;
  return Array.from({ length: values.length / T }, (_, i) => [...values.slice(i * T, (i + 1) * T)]);
};

/** Rows of [rows, cols] between two numbers. */
async function part(whole: Tensor, begin: number, end: number, by: 'rows' | 'columns') {
  const values = await whole.read();
  const [rows = 0, cols = 0] = whole.shape;
  const out: number[] = [];
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < cols; j++) {
      const at = by === 'rows' ? i : j;
      if (at >= begin && at < end) out.push(values[i * cols + j] as number);
    }
  }
  return out;
}

describe.each(DEVICES)('routing on %s', (device: Device) => {
  it('alora', async () => {
    await scope(async () => {
      const golden = loadCase('routing/alora');
      const rules = new RuleBook(golden);
      const { x, dy, w, bias } = operands(golden, device);
      const { adapter } = layerOf(golden, 'lin', device);
      expect(adapter?.method).toBe('alora');
      const offsets = (golden.params.alora_offsets as (number | null)[]).map((o) => o ?? -1);
      const active = activeTokens(offsets, x.shape[1] as number, device);
      const { y, saved } = (adapter as NonNullable<typeof adapter>).forward(x, w, {
        bias,
        inputs: { active },
      });
      rules.check('out.y', await y.read());
      const back = (adapter as NonNullable<typeof adapter>).backward(dy, saved);
      rules.check('grad.x', await (back.dx as Tensor).read());
      for (const [name, key] of [
        ['loraA', 'lora_A'],
        ['loraB', 'lora_B'],
      ] as const) {
        const gradient = back.parameters[name] as Tensor;
        rules.check(`grad.${PREFIX}lin.${key}.weight`, await gradient.read());
      }
      const tokens = golden.params.alora_invocation_tokens as number[];
      const found = invocationOffsets(rowsOf(golden, 'in.token_ids'), tokens);
      const bytes = new Uint8Array(BigInt64Array.from(found, BigInt).buffer);
      rules.check('out.offsets_from_tokens', bytes);
      rules.finish();
    });
  });

  it.each(['routing/xlora_layer_topall', 'routing/xlora_layer_top2_softmax'])('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const { x, dy, w, bias } = operands(golden, device);
      const names = golden.params.adapters as string[];
      const folders = golden.adapters();
      const factors = folders.map(({ tensors }) => ({
        a: tensors.get(`${PREFIX}lin.lora_A.weight`) as NonNullable<ReturnType<typeof tensors.get>>,
        b: tensors.get(`${PREFIX}lin.lora_B.weight`) as NonNullable<ReturnType<typeof tensors.get>>,
      }));
      const ranks = factors.map(({ a }) => a.shape[0] as number);
      const all = ranks.reduce((sum, r) => sum + r, 0);
      const [N = 0, K = 0] = w.shape;
      const loraA = factors.flatMap(({ a }) => [...new Float32Array(a.bytes.buffer)]);
      const loraB = new Float32Array(N * all);
      let begin = 0;
      factors.forEach(({ b }, e) => {
        const r = ranks[e] as number;
        new Float32Array(b.bytes.buffer).forEach((v, i) => {
          loraB[Math.floor(i / r) * all + begin + (i % r)] = v;
        });
        begin += r;
      });
      const method = adapterMethods.find((m) => m.method === 'x-lora');
      const scaling = golden.params.scaling as Record<string, number>;
      const adapter = (method as NonNullable<typeof method>).from(
        {
          loraA: Tensor.from(loraA, [all, K], { device }),
          loraB: Tensor.from(loraB, [N, all], { device }),
        },
        {
          inFeatures: K,
          outFeatures: N,
          ranks,
          scalings: names.map((name) => scaling[name] as number),
          topK: (golden.params.top_k_lora as number | null) ?? 0,
          softmaxTopK: golden.params.enable_softmax_topk as boolean,
          globalScaling: golden.params.global_scaling_weight as number,
        } as never,
      );
      // [batch, tokens, layers, experts]: this layer's.
      const scalings = golden.tensor('in.scalings');
      const [B = 0, T = 0, L = 0, E = 0] = scalings.shape;
      const layer = golden.params.layer_number as number;
      const given = golden.numbers('in.scalings');
      const gates = Float32Array.from({ length: B * T * E }, (_, at) => {
        return given[(Math.floor(at / E) * L + layer) * E + (at % E)] as number;
      });
      const { y, saved } = adapter.forward(x, w, {
        bias,
        inputs: { gates: Tensor.from(gates, [B, T, E], { device }) },
      });
      rules.check('out.y', await y.read());
      const { dx, parameters, inputs } = adapter.backward(dy, saved);
      rules.check('grad.x', await (dx as Tensor).read());
      // Other layers' gates have no gradient here.
      const dGates = await (inputs.gates as Tensor).read();
      const spread = new Float32Array(B * T * L * E);
      dGates.forEach((v, at) => {
        spread[(Math.floor(at / E) * L + layer) * E + (at % E)] = v;
      });
      rules.check('grad.scalings', spread);
      let from = 0;
      for (const [e, name] of names.entries()) {
        const to = from + (ranks[e] as number);
        const key = (factor: string) => `grad.${PREFIX}lin.${factor}.${name}.weight`;
        rules.check(key('lora_A'), await part(parameters.loraA as Tensor, from, to, 'rows'));
        rules.check(key('lora_B'), await part(parameters.loraB as Tensor, from, to, 'columns'));
        from = to;
      }
      rules.finish();
    });
  });

  it('poly_eval', async () => {
    await scope(async () => {
      const golden = loadCase('routing/poly_eval');
      const rules = new RuleBook(golden);
      const { x, dy, w, bias } = operands(golden, device);
      const { adapter } = layerOf(golden, 'lin', device);
      const [B = 0, T = 0] = x.shape;
      const nTasks = golden.params.n_tasks as number;
      const ids = golden.numbers('in.task_ids');
      const tasks = Float32Array.from({ length: B * T * nTasks }, (_, at) =>
        ids[Math.floor(at / (T * nTasks))] === at % nTasks ? 1 : 0,
      );
      const poly = adapter as NonNullable<typeof adapter>;
      const { y, saved } = poly.forward(x, w, {
        bias,
        inputs: { tasks: Tensor.from(tasks, [B, T, nTasks], { device }) },
      });
      rules.check('out.y', await y.read());
      const { dx, parameters } = poly.backward(dy, saved);
      rules.check('grad.x', await (dx as Tensor).read());
      for (const [name, gradient] of Object.entries(parameters)) {
        const key = poly.definition.peft?.tensors[name];
        rules.check(`grad.${PREFIX}lin.${key}`, await gradient.read());
      }
      rules.finish();
    });
  });

  it.each(['routing/arrow', 'routing/arrow_gks'])('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const x = tensorOf(golden.tensor('in.x'), device);
      const w = tensorOf(golden.tensor('base.lin.weight'), device);
      const bias = tensorOf(golden.tensor('base.lin.bias'), device);
      const { experts, general, lora_alpha, top_k, router_temperature } = golden.params as Record<
        string,
        number
      >;
      const expert = (_: unknown, e: number) =>
        new LoraAdapter({
          loraA: tensorOf(golden.tensor(`param.expert${e}.lora_A`), device),
          loraB: tensorOf(golden.tensor(`param.expert${e}.lora_B`), device),
          loraAlpha: lora_alpha as number,
        });
      const all = Array.from({ length: (experts as number) + (general as number) }, expert);
      const { tensors, settings } = arrowExperts(all.slice(0, experts), {
        general: all.slice(experts),
        // The seed is not in the case: it is the one of all seeds below 20,000 that gives its prototypes.
        iteration: { seed: 42 },
      });
      expect(settings.scalings).toEqual(all.slice(0, experts).map(() => golden.params.scaling));
      const routing = { ...settings, topK: top_k, temperature: router_temperature } as never;
      const near = (mine: ArrayLike<number>, name: string, bound: number): void => {
        golden.numbers(name).forEach((v, i) => {
          expect(Math.abs((mine[i] as number) - v), name).toBeLessThan(bound);
        });
      };
      const adapter = adapters.arrow.from(tensors, routing);
      const y = await adapter.forward(x, w, { bias }).y.read();
      const found = await tensors.prototypes.read();
      rules.check('out.prototypes', found);
      rules.check('out.y', y);
      // The rules allow for an iteration that has not converged; this is the same one.
      near(found, 'out.prototypes', 1e-6);
      near(y, 'out.y', 1e-5);
      // From folders in memory, by the router's config.
      const folderOf = (_: unknown, e: number) => ({
        config: { peft_type: 'LORA', r: golden.params.r, lora_alpha },
        tensors: new Map(
          ['A', 'B'].map((factor) => {
            const { shape, bytes } = golden.tensor(`param.expert${e}.lora_${factor}`);
            const data = new Float32Array(bytes.buffer);
            return [`${PREFIX}lin.lora_${factor}.weight`, { dtype: 'F32' as const, shape, data }];
          }),
        ),
      });
      const folders = all.map(folderOf);
      const arrow_config = { top_k, router_temperature, rng_seed: 42, use_gks: general !== 0 };
      const loaded = arrowFromPeft(
        {
          router: { config: { peft_type: 'LORA', arrow_config } },
          experts: folders.slice(0, experts),
          general: folders.slice(experts),
        },
        'lin',
        {
          inFeatures: x.shape.at(-1) ?? 0,
          outFeatures: y.length / (x.size / (x.shape.at(-1) ?? 1)),
          device,
        },
      );
      expect(loaded.forward(x, w, { bias }).y.readSync()).toEqual(y);
      if (general !== 0) {
        for (const [e, r] of settings.ranks.entries()) {
          const from = e * r;
          const after = `out.expert${e}_after_gks`;
          near(await part(tensors.loraA, from, from + r, 'rows'), `${after}.lora_A`, 1e-6);
          near(await part(tensors.loraB, from, from + r, 'columns'), `${after}.lora_B`, 1e-6);
        }
      }
      rules.finish();
    });
  });
});
