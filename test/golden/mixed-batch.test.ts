// GroupedLora against PEFT's mixed batches: an adapter of its own, or none, for each entry of a batch.
import { describe, expect, it } from 'vitest';
import { GroupedLora, LoraAdapter, scope, Tensor } from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { caseIds, type GoldenCase, loadCase } from './case-file.js';
import { baseWeight, tensorOf } from './library.js';
import { RuleBook } from './rules.js';

interface Params {
  readonly adapter_order: readonly string[];
  readonly adapter_names: readonly string[];
  readonly scaling: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

/** One layer of the case as a function of x and of each entry's adapter. */
function layerOf(golden: GoldenCase, layer: string, device: (typeof DEVICES)[number]) {
  const { adapter_order, scaling } = golden.params as unknown as Params;
  const w = baseWeight(golden, layer, device);
  const [N, K] = w.shape as [number, number];
  const group = new GroupedLora({ inFeatures: K, outFeatures: N, device });
  const folders = golden.adapters();
  for (const [i, name] of adapter_order.entries()) {
    const { config, tensors } = folders[i] as (typeof folders)[number];
    const part = (key: string) =>
      tensors.get(`base_model.model.${layer}.${key}.weight`) as Parameters<typeof tensorOf>[0];
    const adapter = new LoraAdapter({
      loraA: tensorOf(part('lora_A'), device),
      loraB: tensorOf(part('lora_B'), device),
      loraAlpha: Number(config.lora_alpha),
      rslora: config.use_rslora === true,
    });
    // The scaling that the peer computed.
    expect(adapter.scaling).toBeCloseTo(scaling[layer]?.[name] as number, 12);
    group.add(name, adapter);
  }
  const bias = tensorOf(golden.tensor(`base.${layer}.bias`), device);
  return (x: Tensor, rows: readonly (string | null)[]): Tensor =>
    group.forward(x, w, rows, { bias, training: false }).y;
}

describe.each(DEVICES)('mixed batches on %s', (device) => {
  it.each(caseIds('mixed_batch'))('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const { adapter_names, adapter_order } = golden.params as unknown as Params;
      const layers = golden.has('base.fc1.weight') ? ['fc1', 'fc2'] : ['lin'];
      const runs = layers.map((layer) => layerOf(golden, layer, device));
      const x = tensorOf(golden.tensor('in.x'), device);
      const network = async (rows: readonly (string | null)[]): Promise<Float32Array> => {
        let value = x;
        for (const [i, run] of runs.entries()) {
          if (i > 0) {
            const hidden = (await value.read()).map(Math.tanh);
            value = Tensor.from(hidden, value.shape, { device });
          }
          value = run(value, rows);
        }
        return value.read();
      };
      const rows = adapter_names.map((name) => (name === '__base__' ? null : name));
      // The index of the case says the same as the names.
      const index = golden.numbers('in.adapter_index');
      expect([...index]).toEqual(
        rows.map((name) => (name === null ? -1 : adapter_order.indexOf(name))),
      );
      const y = await network(rows);
      rules.check('out.y', y);
      rules.finish();

      // Rows of a batch that has one adapter, which the case holds too, by the same rule.
      const { atol = 0 } = rules.rule('out.y');
      const largest = Math.max(...golden.numbers('f64.y').map(Math.abs));
      for (const name of adapter_order) {
        const expected = golden.numbers(`out.y_all_${name}`);
        const all = await network(rows.map(() => name));
        const limit = 2 * atol * Math.max(1, Math.max(...expected.map(Math.abs)) / largest);
        all.forEach((value, i) => {
          expect(Math.abs(value - (expected[i] as number)), `${name}[${i}]`).toBeLessThan(limit);
        });
        const each = y.length / rows.length;
        rows.forEach((row, m) => {
          if (row !== name || device.startsWith('cuda')) return;
          const [mine, theirs] = [y, all].map((v) => v.subarray(m * each, (m + 1) * each));
          expect(mine).toEqual(theirs);
        });
      }
    });
  });
});
