import { defineOptimizer } from '../definition/define.js';
import { adamw } from '../elementwise/adamw.js';
import { negative } from '../parts/checks.js';

/** Settings of {@link loraPlus} beside those of `adamw`. */
export interface LoraPlusSettings {
  /** The learning rate of loraB over that of loraA. */
  readonly ratio: number;
}

/**
 * LoRA+ (Hayou, Ghosh and Yu, LoRA+: Efficient Low Rank Adaptation of Large Models, 2024, arXiv:2402.12354): AdamW with a
 * learning rate `ratio` times as large for loraB, as in PEFT's `create_loraplus_optimizer`. As there, parameters of one
 * dimension (DoRA's magnitude, biases) are in loraB's group, and biases have no weight decay.
 */
export const loraPlus = defineOptimizer({
  optimizer: 'lora-plus',
  reference:
    'Hayou, Ghosh and Yu, LoRA+: Efficient Low Rank Adaptation of Large Models, 2024, arXiv:2402.12354',
  base: adamw,
  defaults: { ratio: 16 } as LoraPlusSettings,
  check: (settings) => negative(settings, 'ratio') ?? adamw.check?.(settings),
  group: ({ role, tensor }, { ratio }) => ({
    rate: role === 'up' || tensor.shape.length === 1 ? ratio : 1,
    ...(role === 'bias' ? { weightDecay: 0 } : {}),
  }),
});
