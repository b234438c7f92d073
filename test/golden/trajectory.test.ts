// Twenty steps of training a network of two layers, as PEFT, bitsandbytes and PyTorch ran them: losses, norms of gradients,
// and the adapters at the end.
import { describe, expect, it } from 'vitest';
import { recordAdapter } from '../../lib/adapters/definition/record.js';
import {
  type Adapter,
  type AnyOptimizer,
  adamw,
  adapterFromPeft,
  type BaseWeight,
  type Device,
  defineOptimizer,
  scope,
  Tensor,
  Trainer,
  type TrainPass,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { folderOf, PREFIX } from './adapter-case.js';
import { caseIds, type GoldenCase, loadCase } from './case-file.js';
import { baseWeight, tensorOf } from './library.js';
import { RuleBook } from './rules.js';

interface Layer {
  readonly w: BaseWeight;
  readonly bias: Tensor;
  readonly adapter: Adapter;
}

interface Params {
  readonly dims: readonly [number, number, number];
  readonly compute_dtype: 'f32' | 'bf16';
  readonly steps: number;
  readonly batches: number;
  readonly grad_accumulation: number;
  readonly clip_grad_norm: number;
  readonly param_groups: readonly { lr: number; weight_decay: number; n: number }[];
}

const kFileNames: Readonly<Record<string, string>> = {
  loraA: 'lora_A.weight',
  loraB: 'lora_B.weight',
  magnitude: 'lora_magnitude_vector.weight',
};

function layersOf(golden: GoldenCase, device: Device): Readonly<Record<'fc1' | 'fc2', Layer>> {
  const { dims } = golden.params as unknown as Params;
  const folder = folderOf(golden);
  const of = (name: 'fc1' | 'fc2', at: number): Layer => {
    // A base that is not quantised is under the name of a dequantised one.
    const dense = !golden.has(`base.${name}.weight`);
    const own = (part: string) =>
      golden.tensor(`${dense ? 'base_dequant' : 'base'}.${name}.${part}`);
    const w = dense ? tensorOf(own('weight'), device) : baseWeight(golden, name, device);
    const size = { inFeatures: dims[at] as number, outFeatures: dims[at + 1] as number };
    const adapter = adapterFromPeft(folder, name, { ...size, weight: w, device });
    return { w, bias: tensorOf(own('bias'), device), adapter };
  };
  return { fc1: of('fc1', 0), fc2: of('fc2', 1) };
}

/** AdamW whose groups have learning rates of their own: that of lora_B is the last. */
function optimizerOf({ param_groups: groups }: Params): AnyOptimizer {
  const used = groups.filter(({ n }) => n > 0);
  const [first, last] = [used[0], used.at(-1)] as [{ lr: number }, { lr: number }];
  return defineOptimizer({
    ...adamw,
    group: ({ role }) => ({ rate: role === 'up' ? last.lr / first.lr : 1 }),
  });
}

/** Batch `index` of a tensor [batches, M, N]. */
function batchOf(golden: GoldenCase, name: string, index: number, device: Device): Tensor {
  const [, M = 0, N = 0] = golden.tensor(name).shape;
  const values = golden.numbers(name).subarray(index * M * N, (index + 1) * M * N);
  return Tensor.from(Float32Array.from(values), [M, N], { device });
}

/** `mean((fc2(tanh(fc1(x))) - target)²) / passes`. */
function passOf(
  golden: GoldenCase,
  { fc1, fc2 }: ReturnType<typeof layersOf>,
  index: number,
  device: Device,
): TrainPass {
  const { compute_dtype: dtype, grad_accumulation: passes } = golden.params as unknown as Params;
  return (tape) => {
    const run = (x: ReturnType<typeof tape.own>, { adapter, w, bias }: Layer) =>
      recordAdapter(tape, adapter, { x, w, bias: tape.constant(bias) }).y;
    const x = tape.own(batchOf(golden, 'in.x', index, device).to({ dtype }));
    const y = run(tape.map(run(x, fc1), 'tanh'), fc2);
    const target = tape.own(batchOf(golden, 'in.target', index, device));
    const wide = tape.record(y.tensor.to({ dtype: 'f32' }), [y], [], (dy, pass) =>
      pass.give(y, dy),
    );
    const apart = tape.add(wide, target, 1, -1);
    const squares = tape.multiply(apart, apart, 1 / (apart.tensor.size * passes));
    const rows = tape.sum(squares, 1);
    return tape.reshape(tape.sum(tape.reshape(rows, [1, rows.tensor.size]), 1), [1]);
  };
}

describe.each(DEVICES)('on %s', (device) => {
  it.each(caseIds('trajectory'))('%s', (id) => {
    scope(() => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const params = golden.params as unknown as Params;
      const layers = layersOf(golden, device);
      const parameters = Object.entries(layers).flatMap(([module, { adapter }]) =>
        Object.entries(adapter.parameters).map(([name, tensor]) => ({
          name: `${PREFIX}${module}.${kFileNames[name]}`,
          role: name === 'loraB' ? ('up' as const) : ('down' as const),
          tensor,
        })),
      );
      const [group] = params.param_groups as [Params['param_groups'][number]];
      const trainer = new Trainer(parameters, {
        optimizer: optimizerOf(params),
        lr: group.lr,
        weightDecay: group.weight_decay,
        clip: params.clip_grad_norm,
      });
      const losses: number[] = [];
      const norms: number[] = [];
      for (let step = 0; step < params.steps; step++) {
        const passes = Array.from({ length: params.grad_accumulation }, (_, pass) => {
          const index = (step * params.grad_accumulation + pass) % params.batches;
          return passOf(golden, layers, index, device);
        });
        const { loss, gradientNorm } = trainer.step(passes);
        losses.push(loss.readSync()[0] as number);
        norms.push(gradientNorm.readSync()[0] as number);
      }
      rules.check('out.losses', losses);
      for (const { name, tensor } of parameters) {
        rules.check(`out.final.${name}`, tensor.readSync());
      }
      rules.finish();
      // The manifest has no rule for the norms: they are those of the same run.
      const expected = golden.numbers('out.grad_norms');
      const slack = params.compute_dtype === 'bf16' ? 0.1 : 1e-3;
      for (const [step, norm] of norms.entries()) {
        expect(Math.abs(norm / (expected[step] as number) - 1), `step ${step}`).toBeLessThan(slack);
      }
    });
  });
});
