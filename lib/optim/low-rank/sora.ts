import { defineOptimizer } from '../definition/define.js';
import { adamw } from '../elementwise/adamw.js';
import { negative } from '../parts/checks.js';

/** Settings of {@link sora} beside those of `adamw`. */
export interface SoraSettings {
  /** What each step takes from the size of a gate. */
  readonly threshold: number;
}

/**
 * The proximal step of SoRA (Ding and others, Sparse Low-rank Adaptation of Pre-trained Language Models, 2023,
 * arXiv:2311.11696): AdamW, then a soft threshold of the gates of the adapter `sora`, which have no weight decay. As in the
 * authors' program the threshold is a constant of the run and not times the learning rate; the program sets gates between
 * the threshold and twice the threshold to 0, which the paper's formula, followed here, does not.
 *
 *   gate ← sign(gate) · max(0, |gate| − threshold)
 */
export const sora = defineOptimizer({
  optimizer: 'sora',
  reference:
    'Ding and others, Sparse Low-rank Adaptation of Pre-trained Language Models, 2023, arXiv:2311.11696',
  base: adamw,
  defaults: { threshold: 1e-3 } as SoraSettings,
  check: (settings) => negative(settings, 'threshold') ?? adamw.check?.(settings),
  group: ({ name }) => (isGate(name) ? { weightDecay: 0 } : {}),
  after: ({ p, parameter, settings: { threshold } }) => {
    if (!isGate(parameter.name)) return;
    for (let i = 0; i < p.length; i++) {
      const gate = p[i] as number;
      p[i] = Math.sign(gate) * Math.max(0, Math.abs(gate) - threshold);
    }
  },
});

/** The adapter's parameter of that name. */
const isGate = (name: string): boolean => /(^|\.)gate$/.test(name);
