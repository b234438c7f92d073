import { defineRule } from '../definition/define.js';
import { below } from '../parts/checks.js';
import { mergeAndRestart } from '../parts/restart.js';

/** Settings of {@link cola}. */
export interface ColaSettings {
  /** Adapters in the chain. */
  readonly links: number;
}

/** The steps of a link, but for the last, which has the rest. */
const lengthOf = (links: number, steps: number): number => Math.floor(steps / links);

/**
 * A chain of adapters: the run is cut into `links` parts of equal length. At the end of each but the last the update goes into
 * the base, and a new adapter begins with a new optimiser and the whole schedule of the learning rate, warm-up included.
 */
export const cola = defineRule<ColaSettings>({
  rule: 'cola',
  reference:
    'Xia et al., Chain of LoRA: Efficient Fine-tuning of Language Models via Residual Learning, 2024, arXiv:2401.04151',
  defaults: { links: 3 },
  claims: ['base', 'rate'],
  adapters: ['lora'],
  resetsOptimizer: true,
  check: ({ links }, { steps }) =>
    below('links', links, 1) ??
    (links <= steps ? undefined : ['links', `at most the steps (${steps})`, String(links)]),
  rate: ({ step, steps, warmup, schedule, settings: { links } }) => {
    const length = lengthOf(links, steps);
    const link = Math.min(links - 1, Math.floor(step / length));
    const own = link === links - 1 ? steps - link * length : length;
    return schedule(step - link * length, Math.ceil((warmup * own) / steps), own);
  },
  after: (run) => {
    const { links } = run.settings;
    const length = lengthOf(links, run.steps);
    const link = run.step / length;
    if (Number.isInteger(link) && link < links) mergeAndRestart(run);
  },
});
