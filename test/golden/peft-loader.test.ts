// The oracle of how PEFT loads folders (test/oracle/peft) against PEFT's own: its recorded folders and outputs.
import { describe, expect, it } from 'vitest';
import { Matrix } from '../oracle/adapter-layer.js';
import { kPeftMethods, loadAsPeft, type PeftLinear, type PeftModel } from '../oracle/peft/index.js';
import { psoftWith } from '../oracle/peft/transforms.js';
import { layerNames } from './adapter-case.js';
import { caseIds, configOf, type GoldenCase, layerKind, loadCase, numbersOf } from './case-file.js';

/** Cases of layers that are not [N, K], of biases of the base, and of dropout: they say nothing of what is written here. */
function isElsewhere(id: string): boolean {
  const { bias, fan_in_fan_out, target_parameters, peft_type } = configOf(id);
  const other = bias !== undefined && bias !== 'none';
  return (
    layerKind(id) === 'convolution' ||
    (layerKind(id) === 'embedding' && peft_type === 'LORA') ||
    /bf16|f16|dropout/.test(id) ||
    other ||
    fan_in_fan_out === true ||
    Array.isArray(target_parameters) ||
    // Not written for PEFT: see lib/adapters/methods/structured/adamss.ts.
    peft_type === 'ADAMSS'
  );
}

const cases = [
  ...caseIds('tuners'),
  ...caseIds('lora'),
  ...caseIds('qlora'),
  'routing/poly_eval',
].filter((id) => !isElsewhere(id));

function modelOf(golden: GoldenCase): PeftModel {
  const names = ['emb', 'ln', ...layerNames(golden)].filter(
    (name, i, all) => golden.has(`base.${name}.weight`) && all.indexOf(name) === i,
  );
  return new Map(
    names.map((name): [string, PeftLinear] => {
      const key = [`base_dequant.${name}.weight`, `base.${name}.weight`].find((k) => golden.has(k));
      const { shape } = golden.tensor(key as string);
      const [rows = 1, cols = rows] = shape;
      const values = golden.numbers(key as string);
      const weight =
        shape.length === 1 ? new Matrix(1, rows, values) : new Matrix(rows, cols, values);
      const bias = golden.has(`base.${name}.bias`)
        ? golden.numbers(`base.${name}.bias`)
        : undefined;
      return [name, { weight, bias }];
    }),
  );
}

const rowsOf = (golden: GoldenCase, name: string): Matrix => {
  const { shape } = golden.tensor(name);
  const cols = shape.at(-1) as number;
  const values = golden.numbers(name);
  return new Matrix(values.length / cols, cols, values);
};

function inputsOf(golden: GoldenCase) {
  if (!golden.has('in.task_ids')) return {};
  const tasks = golden.params.n_tasks as number;
  const ids = golden.numbers('in.task_ids');
  // A task is that of a whole sequence.
  const { rows } = rowsOf(golden, 'in.x');
  const taskOf = (m: number) => ids[Math.floor((m * ids.length) / rows)];
  return { tasks: Matrix.of(rows, tasks, (m, t) => (taskOf(m) === t ? 1 : 0)) };
}

function run(golden: GoldenCase, model: PeftModel): { y: Matrix; ignored: readonly string[] } {
  const { config, tensors } = golden.adapter();
  const all = new Map(tensors);
  // Tables that the folder leaves out are recorded beside it: as if it had them.
  for (const [key, tensor] of golden.tensors) {
    if (/unilora_(indices|scales)/.test(key)) all.set(key.slice('adapter.'.length), tensor);
  }
  const files = new Map(
    [...all].map(([key, tensor]) => [key, { shape: tensor.shape, values: numbersOf(tensor) }]),
  );
  // The factors that PEFT had are recorded beside the folder.
  const psoft = psoftWith((load, module) => {
    const { N, K } = load.sizes(module);
    const r = load.number('r');
    const cache = (name: string) =>
      golden.numbers(`adapter.base_model.model.${module}._psoft_${name}_cache`);
    return { a: new Matrix(r, K, cache('A')), b: new Matrix(N, r, cache('B')) };
  });
  const saved = config.save_indices === false ? { ...config, save_indices: true } : config;
  const loaded = loadAsPeft({ config: saved, tensors: files }, model, { PSOFT: psoft });
  const inputs = inputsOf(golden);
  let x = layerKind(golden.id) === 'embedding' ? oneHotOf(golden, model) : rowsOf(golden, 'in.x');
  [...model.keys()].forEach((name, i) => {
    if (name === 'fc2' && i === 1) x = x.map(Math.tanh);
    x = loaded.forward(name, x, inputs);
  });
  return { y: x, ignored: loaded.ignored };
}

function oneHotOf(golden: GoldenCase, model: PeftModel): Matrix {
  const [table] = model.values();
  const ids = golden.numbers('in.x');
  const { rows } = (table as PeftLinear).weight;
  return Matrix.of(ids.length, rows, (m, id) => (ids[m] === id ? 1 : 0));
}

describe('our reading of how PEFT loads folders', () => {
  it.each(cases)('gives the output that PEFT recorded: %s', (id) => {
    const golden = loadCase(id);
    const { y, ignored } = run(golden, modelOf(golden));
    expect(ignored).toEqual([]);
    const rule = golden.rules.find(({ tensor }) => tensor === 'out.y');
    const expected = golden.numbers(rule?.reference ?? 'out.y');
    expect(y.data.length).toBe(expected.length);
    let worst = 0;
    y.data.forEach((v, i) => {
      worst = Math.max(worst, Math.abs(v - (expected[i] as number)));
    });
    expect(worst).toBeLessThanOrEqual(rule?.atol ?? 0);
  });

  it('is there for every type of which PEFT recorded a folder', () => {
    const types = new Set(cases.map((id) => configOf(id).peft_type as string));
    expect([...types].sort()).toEqual(Object.keys(kPeftMethods).sort());
  });
});
