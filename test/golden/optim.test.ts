// The op of AdamW as PyTorch and bitsandbytes took its steps, and PyTorch's clipping of gradients.
import { describe, expect, it } from 'vitest';
import { adamwStep, type Device, globalNorm, scope, Tensor } from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { loadCase } from './case-file.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';

const ADAMW = ['optim/torch_adamw', 'optim/torch_adamw_big_wd', 'optim/bnb_adamw32'];

/** Row i of a tensor's first dimension. */
function rowOf(name: string, golden: ReturnType<typeof loadCase>, i: number, device: Device) {
  const { shape } = golden.tensor(name);
  const size = shape.slice(1).reduce((a, b) => a * b, 1);
  const values = golden.numbers(name).subarray(i * size, (i + 1) * size);
  return Tensor.from(Float32Array.from(values), shape.slice(1), { device });
}

describe.each(DEVICES)('on %s', (device) => {
  it.each(ADAMW)('%s', async (id) => {
    await scope(async () => {
      const golden = loadCase(id);
      const rules = new RuleBook(golden);
      const { lr, betas, eps, weight_decay } = golden.params as {
        lr: number;
        betas: [number, number];
        eps: number;
        weight_decay: number;
      };
      const p = tensorOf(golden.tensor('in.p0'), device);
      const [m, v] = [0, 1].map(() => Tensor.zeros(p.shape, { device })) as [Tensor, Tensor];
      const steps = golden.tensor('in.grads').shape[0] as number;
      const all: number[] = [];
      for (let step = 1; step <= steps; step++) {
        const g = rowOf('in.grads', golden, step - 1, device);
        adamwStep([p], [g], [m], [v], { lr, step, betas, eps, weightDecay: weight_decay });
        const now = await p.read();
        all.push(...now);
        if (rules.has(`out.p.${step}`)) rules.check(`out.p.${step}`, now);
      }
      if (rules.has('out.p_steps')) {
        rules.check('out.p_steps', all);
        rules.check('out.state.exp_avg', await m.read());
        rules.check('out.state.exp_avg_sq', await v.read());
      }
      rules.finish();
    });
  });

  it('optim/clip_grad_norm', async () => {
    await scope(async () => {
      const golden = loadCase('optim/clip_grad_norm');
      const rules = new RuleBook(golden);
      const g = [0, 1, 2].map((i) => tensorOf(golden.tensor(`in.g${i}`), device));
      const zeros = () => g.map(({ shape }) => Tensor.zeros(shape, { device }));
      const norm = globalNorm(g);
      rules.check('out.norm', await norm.read());
      // Without memory the first moment is the clipped gradient.
      const m = zeros();
      const maxNorm = golden.params.max_norm as number;
      adamwStep(zeros(), g, m, zeros(), { lr: 0, step: 1, betas: [0, 0], norm, maxNorm });
      for (const [i, clipped] of m.entries()) rules.check(`out.g${i}`, await clipped.read());
      rules.finish();
      expect((await norm.read())[0]).toBeGreaterThan(maxNorm);
    });
  });
});
