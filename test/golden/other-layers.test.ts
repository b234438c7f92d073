// Trained rows of an embedding, and trained norms, against PEFT.
import { describe, expect, it } from 'vitest';
import {
  adapterFromPeft,
  adaptersToPeft,
  type Device,
  matmul,
  matmulInputGrad,
  NormAdapter,
  oneHot,
  scope,
  Tensor,
} from '../../lib/index.js';
import { folderOf, layerNames, PREFIX } from './adapter-case.js';
import { caseIds, configOf, type GoldenCase, loadCase } from './case-file.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';

const DEVICES = ['cpu', 'reference'] as const;

/** [rows, cols] to [cols, rows]. */
const transposed = (values: ArrayLike<number>, rows: number, cols: number): Float32Array =>
  Float32Array.from(
    { length: rows * cols },
    (_, i) => values[(i % rows) * cols + Math.floor(i / rows)] as number,
  );

const casesOf = (type: string): string[] =>
  caseIds('tuners').filter((id) => configOf(id).peft_type === type);

const sameFile = (
  golden: GoldenCase,
  tensors: ReadonlyMap<string, { readonly shape: readonly number[]; readonly data: unknown }>,
): void => {
  const stored = golden.adapter().tensors;
  expect([...tensors.keys()].sort()).toEqual([...stored.keys()].sort());
  for (const [name, { shape, data }] of tensors) {
    expect(shape).toEqual(stored.get(name)?.shape);
    expect(data).toEqual(new Float32Array(stored.get(name)?.bytes.buffer as ArrayBuffer));
  }
};

describe.each(DEVICES)('other layers on %s', (device: Device) => {
  it.each(casesOf('TRAINABLE_TOKENS'))('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const [name = ''] = layerNames(golden);
      const [V = 0, D = 0] = golden.tensor(`base.${name}.weight`).shape;
      const table = transposed(golden.numbers(`base.${name}.weight`), V, D);
      const w = Tensor.from(table, [D, V], { device });
      const place = { inFeatures: V, outFeatures: D, device };
      const adapter = adapterFromPeft(folderOf(golden), name, place);
      const x = oneHot(golden.numbers('in.x'), V, { device });
      const { y, saved } = adapter.forward(x, w);
      rules.check('out.y', await y.read());
      // Rows of the table are looked up, not computed.
      expect(await y.read()).toEqual(new Float32Array(golden.tensor('out.y').bytes.buffer));
      const dy = Float32Array.from(golden.numbers('in.grad_out'));
      const { parameters } = adapter.backward(Tensor.from(dy, y.shape, { device }), saved, {
        needs: ['rows'],
      });
      const key = `${PREFIX}${name}.trainable_tokens_delta`;
      rules.check(`grad.${key}`, await (parameters.rows as Tensor).read());
      const merged = adapter.merge(w).weight as Tensor;
      rules.check(`merged.${name}.weight`, transposed(await merged.read(), D, V));
      rules.check('out.y_merged', await matmul(x, merged).read());
      rules.finish();
      const { config, tensors } = await adaptersToPeft(new Map([[name, adapter]]));
      expect(config.token_indices).toEqual(golden.adapter().config.token_indices);
      sameFile(golden, tensors);
    });
  });

  it.each(casesOf('LN_TUNING'))('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const norm = NormAdapter.fromPeft(folderOf(golden), 'ln', { device });
      const w = tensorOf(golden.tensor('base.lin.weight'), device);
      const bias = tensorOf(golden.tensor('base.lin.bias'), device);
      const x = tensorOf(golden.tensor('in.x'), device);
      const { y, saved } = norm.forward(x);
      const out = await matmul(y, w, { bias }).read();
      rules.check('out.y', out);
      const dy = tensorOf(golden.tensor('in.grad_out'), device);
      const { dx, dWeight, dBias } = norm.backward(matmulInputGrad(dy, w), saved);
      rules.check('grad.x', await (dx as Tensor).read());
      const key = `grad.${PREFIX}ln.ln_tuning_layers`;
      rules.check(`${key}.weight`, await (dWeight as Tensor).read());
      rules.check(`${key}.bias`, await (dBias as Tensor).read());
      // Merged, they are the norm's own.
      rules.check('merged.ln.weight', await norm.weight.read());
      rules.check('merged.ln.bias', await (norm.bias as Tensor).read());
      rules.check('out.y_merged', out);
      rules.finish();
      const { config, tensors } = await NormAdapter.toPeft(new Map([['ln', norm]]));
      expect(config).toMatchObject({ peft_type: 'LN_TUNING', target_modules: ['ln'] });
      sameFile(golden, tensors);
    });
  });
});
