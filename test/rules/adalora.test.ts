// The rule of AdaLoRA in a run: the budget that is left, and a folder without the ranks that were removed.
import path from 'node:path';
import { expect, it } from 'vitest';
import type { FinetuneOptions } from '../../lib/finetune/finetune.js';
import { readAdapterFolder, Tensor } from '../../lib/index.js';
import { writeAdapter } from '../../lib/trained/write-adapter.js';
import { filesOf, matrixOf, worst } from '../adapters/peft-load.js';
import { temporaryFolder, tinyTrainer, weightsOf } from '../finetune/setup.js';
import { loadAsPeft } from '../oracle/peft/index.js';
import { named } from './setup.js';

it('leaves the budget, and PEFT loads what is left', async () => {
  const settings = { target: 2, initial: 1, final: 2, every: 2 };
  const made = tinyTrainer(
    { hiddenSize: 32, intermediateSize: 48, numKeyValueHeads: 2, headDim: 8 },
    { format: 'none' },
    {
      ...{ adapter: { method: 'adalora', r: 4 }, steps: 10 },
      rules: [{ rule: named('adalora'), settings }],
    },
  );
  const { trainer } = made;
  for (let i = 0; i < 10; i++) await trainer.train();
  trainer.finish();
  const { layers } = trainer.adapters;
  const left = layers.map(({ adapter }) =>
    (adapter.parameters.loraE as Tensor).readSync().reduce((n, e) => n + (e === 0 ? 0 : 1), 0),
  );
  expect(left.reduce((a, b) => a + b, 0)).toBe(2 * layers.length);
  expect(new Set(left).size).toBeGreaterThan(1);
  const out = path.join(temporaryFolder(), 'out');
  const options = { out, model: 'base', train: trainer.options } as unknown as FinetuneOptions;
  await writeAdapter(options, trainer.adapters, trainer.rules);
  const { tensors } = readAdapterFolder(out);
  const weights = weightsOf(made.decoder);
  const peft = loadAsPeft(
    filesOf(out),
    new Map([...weights].map(([module, w]) => [module, { weight: matrixOf(w as Tensor) }])),
  );
  for (const [i, { place, adapter }] of layers.entries()) {
    const { module, K } = place;
    const shape = tensors.get(`base_model.model.${module}.lora_A`)?.shape;
    expect(shape?.[0], module).toBe(left[i]);
    const x = Tensor.randn([3, K], { seed: 2, device: 'cpu' });
    const { y } = adapter.forward(x, weights.get(module) as Tensor, { training: false });
    expect(worst(y.readSync(), peft.forward(module, matrixOf(x))), module).toBeLessThan(2e-5);
  }
  made.dispose();
});
