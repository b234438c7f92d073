// LoRA+ against LoRA on the bundled model: the published effect of a larger learning rate for loraB.
import { afterAll, beforeAll, expect, it } from 'vitest';
import { optimizers } from '../../lib/index.js';
import type { AnyOptimizer } from '../../lib/optim/definition/definition.js';
import { type Bundled, loadBundled, trainerOf } from './bundled.js';

/** Steps of 4 sequences of 64 tokens with the constant learning rate 0.001. */
const kSteps = 60;

let bundled: Bundled;
beforeAll(async () => {
  bundled = await loadBundled(64);
});
afterAll(() => bundled.decoder.dispose());

/** Mean held-out loss after the steps. */
async function lossAfter(optimizer: AnyOptimizer): Promise<number> {
  const trainer = trainerOf(bundled, { optimizer, batch: 4, lr: 1e-3, steps: kSteps });
  for (let i = 0; i < kSteps; i++) await trainer.train();
  const { heldOut: all } = trainer.data;
  const { T } = all;
  const count = Math.min(all.count, 40);
  const some = { count, T, learned: count * T, whole: true, batch: all.batch.bind(all) };
  const loss = await trainer.evaluate(some);
  trainer.dispose();
  trainer.adapters.dispose();
  return loss;
}

it('LoRA+ with the ratio 16 ends at least 0.1 nats below LoRA', async () => {
  const [plain, plus] = [await lossAfter(optimizers.adamw), await lossAfter(optimizers.loraPlus)];
  console.log(
    `held-out loss after ${kSteps} steps: LoRA ${plain.toFixed(4)}, LoRA+ ${plus.toFixed(4)}`,
  );
  expect(plain - plus).toBeGreaterThan(0.1);
});
