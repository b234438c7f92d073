// AdaLoRA's allocator and its penalty as PEFT has them, through the hooks of the rule.
import { describe, expect, it } from 'vitest';
import { rules } from '../../lib/index.js';
import { addOrthogonality } from '../../lib/rules/parts/orthogonal.js';
import { type MockTensor, mockRun } from '../rules/mock-run.js';
import { loadCase } from './case-file.js';
import { RuleBook } from './rules.js';

const PREFIX = 'base_model.model';
const PARTS = { lora_A: 'loraA', lora_B: 'loraB', lora_E: 'loraE' } as const;
const MODULES = ['fc1', 'fc2'];

describe('adalora', () => {
  it('allocator', () => {
    const golden = loadCase('adalora/allocator');
    const book = new RuleBook(golden);
    const params = golden.params as Readonly<Record<string, number>>;
    const at = (kind: string, module: string, peft: string, step: number): MockTensor => {
      const name = `in.${kind}.${PREFIX}.${module}.${peft}`;
      const [, ...shape] = golden.tensor(name).shape;
      const size = shape.reduce((a, b) => a * b, 1);
      const values = Float32Array.from(golden.numbers(name).slice(step * size, (step + 1) * size));
      return { shape, values };
    };
    const layers = Object.fromEntries(
      MODULES.map((module) => [
        module,
        Object.fromEntries(
          Object.entries(PARTS).map(([peft, part]) => [part, at('p', module, peft, 0)]),
        ),
      ]),
    );
    const run = mockRun(rules.adalora, {
      layers,
      steps: params.total_step as number,
      settings: {
        ...{ target: params.target_r, initial: params.tinit, final: params.tfinal },
        ...{ every: params.deltaT, beta1: params.beta1, beta2: params.beta2 },
      },
    });
    const after: Record<string, number[]> = { fc1: [], fc2: [] };
    for (let step = 0; step < run.steps; step++) {
      run.step = step + 1;
      for (const module of MODULES) {
        for (const [peft, part] of Object.entries(PARTS)) {
          const parameter = run.parameters.get(`${module}.${part}`);
          parameter?.write(at('p', module, peft, step).values);
          if (parameter) parameter.gradient = at('grad', module, peft, step).values;
        }
      }
      rules.adalora.after?.(run as never);
      for (const module of MODULES) {
        after[module]?.push(...(run.parameters.get(`${module}.loraE`)?.values() ?? []));
      }
    }
    for (const module of MODULES) {
      const name = `out.lora_E_after.${PREFIX}.${module}.lora_E`;
      book.check(name, after[module] as number[]);
      // The rule's bound is above some values: zeros must be at the same places.
      const zeros = (values: ArrayLike<number>) => Array.from(values, (value) => value === 0);
      expect(zeros(after[module] as number[]), module).toEqual(zeros(golden.numbers(name)));
    }
    book.finish();
    rules.adalora.finish?.(run as never);
    const pattern = golden.params.final_rank_pattern as Readonly<Record<string, boolean[]>>;
    for (const module of MODULES) {
      const flags = pattern[`${module}.lora_E.default`]?.map(Number);
      expect(run.kept.get(module), module).toEqual(flags);
    }
  });

  it('orthogonal loss', () => {
    const golden = loadCase('adalora/orthogonal_loss');
    const book = new RuleBook(golden);
    const parts = Object.entries(PARTS).slice(0, 2);
    const layers = Object.fromEntries(
      MODULES.map((module) => [
        module,
        Object.fromEntries(
          parts.map(([peft, part]) => {
            const name = `adapter.${PREFIX}.${module}.${peft}`;
            const values = Float32Array.from(golden.numbers(name));
            return [part, { shape: golden.tensor(name).shape, values }];
          }),
        ),
      ]),
    );
    const run = mockRun(rules.adalora, { layers });
    for (const parameter of run.parameters.values()) {
      parameter.gradient = new Float32Array(parameter.values().length);
    }
    const loss = addOrthogonality(run, golden.params.orth_reg_weight as number);
    book.check('out.loss', [loss]);
    for (const module of MODULES) {
      for (const [peft, part] of parts) {
        const { gradient = [] } = run.parameters.get(`${module}.${part}`) ?? {};
        book.check(`grad.${PREFIX}.${module}.${peft}`, gradient);
      }
    }
    book.finish();
  });
});
