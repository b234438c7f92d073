import { fail } from '../../core/errors.js';
import { defineOptimizer } from '../definition/define.js';

/** Settings of {@link tSignSgd}. */
export interface TSignSgdSettings {
  /** The share of a tensor's entries that a step moves at first. */
  readonly share: number;
  /** The share at 80 % of `steps`; it falls evenly until then. */
  readonly endShare: number;
  /** The share after that. */
  readonly tailShare: number;
  /** Steps of the run; 0 keeps the first share. */
  readonly steps: number;
  /** No entry with a smaller gradient moves. */
  readonly least: number;
}

/** The share of entries that a step moves. */
function shareAt(step: number, { share, endShare, tailShare, steps }: TSignSgdSettings): number {
  if (steps === 0) return share;
  const done = (step - 1) / (0.8 * steps);
  return done < 1 ? share + (endShare - share) * done : tailShare;
}

/** The value below which a share q of the values lies, between neighbours in a line. */
function quantileOf(values: Float32Array, q: number): number {
  const sorted = values.slice().sort();
  const at = q * (sorted.length - 1);
  const [low, high] = [sorted[Math.floor(at)] as number, sorted[Math.ceil(at)] as number];
  return low + (high - low) * (at - Math.floor(at));
}

/**
 * Ternary sign descent: the entries of a tensor with the largest gradients move by one against their sign, within −1, 0 and 1;
 * the others stay (Chen et al., LoTA-QAF, 2025, arXiv:2505.18724). The learning rate and weight decay play no part. The paper's
 * share falls from 5 % to 0.1 % over 80 % of the run and is 0.01 % in the rest: give `steps`.
 */
export const tSignSgd = defineOptimizer({
  optimizer: 't-sign-sgd',
  reference:
    'Chen et al., LoTA-QAF: Lossless Ternary Adaptation for Quantization-Aware Fine-Tuning, 2025, arXiv:2505.18724',
  defaults: {
    share: 0.05,
    endShare: 0.001,
    tailShare: 0.0001,
    steps: 0,
    least: 1e-9,
  } as TSignSgdSettings,
  check: (settings) => {
    for (const name of ['share', 'endShare', 'tailShare'] as const) {
      const value = settings[name];
      if (!(value > 0 && value <= 1)) return [name, 'in (0, 1]', String(value)];
    }
    if (!(Number.isInteger(settings.steps) && settings.steps >= 0)) {
      return ['steps', 'an integer from 0 on', String(settings.steps)];
    }
    return settings.least >= 0 ? undefined : ['least', 'at least 0', String(settings.least)];
  },
  clips: true,
  state: () => ({}),
  update: ({ parameter, p, g, step, settings }) => {
    const other = p.find((value) => value !== 0 && Math.abs(value) !== 1);
    if (other !== undefined) {
      const expected = 'of −1, 0 and 1, as lota-qaf has them';
      fail('ERR_VALUE', 't-sign-sgd', parameter.name, expected, `${other}`);
    }
    const sizes = g.map(Math.abs);
    const bound = Math.max(settings.least, quantileOf(sizes, 1 - shareAt(step, settings)));
    for (let i = 0; i < p.length; i++) {
      if (!((sizes[i] as number) > bound)) continue;
      const moved = (p[i] as number) - Math.sign(g[i] as number);
      p[i] = Math.min(1, Math.max(-1, moved));
    }
  },
});
