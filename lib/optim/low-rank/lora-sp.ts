import { hash32, uniform } from '../../core/random.js';
import { defineOptimizer } from '../definition/define.js';
import type { TrainedParameter } from '../definition/definition.js';
import { adamw } from '../elementwise/adamw.js';

/** Settings of {@link loraSp} beside those of `adamw`. */
export interface LoraSpSettings {
  /** The share of entries that keep their values. */
  readonly frozen: number;
  /** Names the choice. */
  readonly seed: number;
}

/** Calls `visit` with the places of the frozen entries of a factor. The choice depends on its name and the seed alone. */
function frozenEntries(
  { name, role, tensor }: TrainedParameter,
  { frozen, seed }: LoraSpSettings,
  visit: (index: number) => void,
): void {
  if (role !== 'down' && role !== 'up') return;
  const random = uniform(hash32(seed, 'lora-sp', name));
  for (let i = 0; i < tensor.size; i++) if (random() < frozen) visit(i);
}

/**
 * LoRA-SP (Wu and others, LoRA-SP: Streamlined Partial Parameter Adaptation, 2024, arXiv:2403.08822): AdamW that trains a
 * random half of the entries of loraA and loraB. The others keep their values and have states of 0, also with weight decay.
 * The choice is made once for the run.
 */
export const loraSp = defineOptimizer({
  optimizer: 'lora-sp',
  reference:
    'Wu and others, LoRA-SP: Streamlined Partial Parameter Adaptation for Resource-Efficient Fine-Tuning of Large Language Models, 2024, arXiv:2403.08822',
  base: adamw,
  defaults: { frozen: 0.5, seed: 1 } as LoraSpSettings,
  check: (settings) =>
    settings.frozen >= 0 && settings.frozen < 1
      ? adamw.check?.(settings)
      : ['frozen', 'in [0, 1)', String(settings.frozen)],
  gradient: ({ g, parameter, settings }) => {
    frozenEntries(parameter, settings, (i) => {
      g[i] = 0;
    });
  },
  after: ({ p, before, parameter, settings }) => {
    frozenEntries(parameter, settings, (i) => {
      p[i] = before[i] as number;
    });
  },
});
