import { ModelTape } from '../../../autograd/model/model-tape.js';
import { scope } from '../../../core/scope.js';
import type { Tensor } from '../../../core/tensor.js';
import { tokensOf } from '../../../model/decoder-tokens.js';
import { learnedOf } from '../../../text/sequences.js';
import { defineStart } from '../../definition/definition.js';
import { integerIn, numberIn } from '../../parts/settings.js';
import { FactorTraining, meanSquares } from '../../parts/train-factors.js';

/**
 * Factors that make up for quantising all layers together: they are trained with Adam to bring the features behind the last
 * norm to those of the dense model, `discrepancy · mean (f − f*)² + truth · cross-entropy`. The loss of the whole model is reached
 * with any rank; those of single layers need a high one. The base stays as the run stores it.
 */
export const rilq = defineStart({
  start: 'rilq',
  reference:
    'Lee et al., RILQ: Rank-Insensitive LoRA-based Quantization Error Compensation for Boosting 2-bit Large Language Model Accuracy, 2024, arXiv:2412.01129',
  from: 'model',
  quantises: true,
  defaults: { rounds: 16, lr: 1e-4, discrepancy: 0.5, truth: 0.5 },
  check: (settings) =>
    integerIn(settings, 'rounds', 1, 100_000) ??
    numberIn(settings, 'lr', 0, 1) ??
    numberIn(settings, 'discrepancy', 0, 1e6) ??
    numberIn(settings, 'truth', 0, 1e6),
  together: async ({ dense, stored, adapters, data, onBatch }, { settings }) => {
    const { batches, T, dtype } = data;
    const total = batches.length * (settings.rounds + 1);
    let done = 0;
    const { device } = stored.weights;
    const targets: Tensor[] = [];
    const all = [...adapters.values()];
    const tensors = all.flatMap(({ parameters }) => Object.values(parameters));
    using training = new FactorTraining([{ tensors, lr: settings.lr }]);
    try {
      for (const batch of batches) {
        await onBatch(done++, total);
        const features = scope(() => {
          const tape = new ModelTape({ recording: false });
          const pass = dense.forward(tape, tokensOf(batch, T, device), { dtype });
          return pass.features.tensor.to({ dtype: 'f32' });
        });
        targets.push(features);
      }
      for (let round = 0; round < settings.rounds; round++) {
        for (const [i, batch] of batches.entries()) {
          await onBatch(done++, total);
          training.step(
            () => new ModelTape(),
            1,
            (tape) => {
              const tokens = tokensOf(batch, T, device);
              const { features } = stored.forward(tape, tokens, { dtype, adapters });
              const squares = meanSquares(tape, features, targets[i] as Tensor);
              const { targets: next } = batch;
              const scale = 1 / Math.max(learnedOf(next), 1);
              const { loss } = stored.loss(tape, features, next, { dtype, scale });
              return tape.add(squares, loss, settings.discrepancy, settings.truth);
            },
          );
        }
      }
    } finally {
      for (const each of targets) each.dispose();
    }
    return new Map([...adapters].map(([module, { parameters }]) => [module, { ...parameters }]));
  },
});
