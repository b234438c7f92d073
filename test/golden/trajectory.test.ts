// Twenty steps of training a network of two layers, as PEFT, bitsandbytes and PyTorch ran them: losses, norms of gradients,
// and the adapters at the end.
import { describe, expect, it } from 'vitest';
import { adamw, optimizers, scope, Trainer } from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { caseIds, loadCase } from './case-file.js';
import { RuleBook } from './rules.js';
import { layersOf, parametersOf, passOf } from './two-layers.js';

interface Params {
  readonly compute_dtype: 'f32' | 'bf16';
  readonly steps: number;
  readonly batches: number;
  readonly grad_accumulation: number;
  readonly clip_grad_norm: number;
  readonly param_groups: readonly { lr: number; weight_decay: number; n: number }[];
}

/** AdamW, or LoRA+ where the last group, that of lora_B, has a learning rate of its own. */
function optimizerOf({ param_groups: groups }: Params) {
  const used = groups.filter(({ n }) => n > 0);
  const [first, last] = [used[0], used.at(-1)] as [{ lr: number }, { lr: number }];
  if (first.lr === last.lr) return { optimizer: adamw };
  return { optimizer: optimizers.loraPlus, settings: { ratio: last.lr / first.lr } };
}

describe.each(DEVICES)('on %s', (device) => {
  it.each(caseIds('trajectory'))('%s', (id) => {
    scope(() => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const params = golden.params as unknown as Params;
      const { compute_dtype: dtype, grad_accumulation: passes } = params;
      const layers = layersOf(golden, device);
      const parameters = parametersOf(layers, 1);
      const [group] = params.param_groups as [Params['param_groups'][number]];
      const trainer = new Trainer(parameters, {
        ...optimizerOf(params),
        lr: group.lr,
        weightDecay: group.weight_decay,
        clip: params.clip_grad_norm,
      });
      const losses: number[] = [];
      const norms: number[] = [];
      for (let step = 0; step < params.steps; step++) {
        const own = Array.from({ length: passes }, (_, pass) => {
          const index = (step * passes + pass) % params.batches;
          return passOf(golden, [layers.fc1, layers.fc2], index, device, { dtype, passes });
        });
        const { loss, gradientNorm } = trainer.step(own);
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
