import { defineOptimizer } from '../definition/define.js';
import { adamw } from '../elementwise/adamw.js';
import { negative } from '../parts/checks.js';

/** Settings of {@link star} beside those of `adamw`. */
export interface StarSettings {
  /** Weight decay of loraB. */
  readonly decay: number;
}

/**
 * STAR's regularisation (Zhang and others, STAR: Constraint LoRA with Dynamic Active Learning, 2024, arXiv:2403.01165): AdamW
 * with weight decay for loraB alone. Its dropout before loraA is the adapter's (`--dropout`); the choice of data is not part
 * of an optimiser.
 */
export const star = defineOptimizer({
  optimizer: 'star',
  reference:
    'Zhang and others, STAR: Constraint LoRA with Dynamic Active Learning for Data-Efficient Fine-Tuning of Large Language Models, 2024, arXiv:2403.01165',
  base: adamw,
  defaults: { decay: 0.01 } as StarSettings,
  check: (settings) => negative(settings, 'decay') ?? adamw.check?.(settings),
  group: ({ role }, { decay }) => ({ weightDecay: role === 'up' ? decay : 0 }),
});
