import { uniform } from '../../core/random.js';
import { defineRule } from '../definition/define.js';
import type { RuleRun } from '../definition/run.js';
import { outside } from '../parts/checks.js';
import { noSteps, stepsOf } from '../parts/steps.js';

/** Settings of {@link dropbp}. */
export interface DropbpSettings {
  /** Share of the backward products that is left out on average. */
  readonly rate: number;
  /** The smallest rate of a block. */
  readonly least: number;
  /** Steps at one rate before rates follow sensitivities; below 1 a share of the run's; 0 for one rate in the whole run. */
  readonly measure: number;
}

type Run = RuleRun<DropbpSettings>;

const kStep = 0.1;
const kMost = 0.9;

/**
 * Backward passes go past blocks that are drawn at random, attention and feed-forward layers each alone; the forward pass has them
 * all. After `measure` steps the rate of a block follows from its sensitivity, ‖g − gᵢ‖² with the gradients of a step without its
 * backward pass: blocks whose rate times sensitivity is the smallest get 0.1 more, up to 0.9, until the share `rate` of the products
 * is left out. The cost of a block is that of its linear layers. The authors' program, with its numbers.
 */
export const dropbp = defineRule<DropbpSettings>({
  rule: 'dropbp',
  reference:
    'Woo et al., DropBP: Accelerating Fine-Tuning of Large Language Models by Dropping Backward Propagation, 2024, arXiv:2402.17812',
  defaults: { rate: 0.5, least: 0, measure: 0.1 },
  claims: ['step'],
  check: ({ rate, least, measure }) =>
    outside('rate', rate, 0, kMost) ??
    outside('least', least, 0, rate) ??
    noSteps('measure', measure),
  state: ({ blocks }) => ({ rates: [blocks.length], sensitivities: [blocks.length] }),
  prepare: ({ state, settings }) => {
    state.rates?.fill(settings.rate);
  },
  skip: ({ blocks, state, seed, step }, pass) => {
    const next = uniform(seed, 'dropbp', step, pass);
    return new Set(
      blocks.flatMap(({ name }, i) => (next() < (state.rates?.[i] as number) ? [name] : [])),
    );
  },
  after: (run) => {
    const { step, steps, settings, state } = run;
    if (step !== stepsOf(settings.measure, steps)) return;
    const sensitivities = state.sensitivities as Float64Array;
    sensitivities.set(measured(run));
    (state.rates as Float64Array).set(allocated(run, sensitivities));
  },
});

/** ‖g − gᵢ‖² for each block, on the sequences of the next step. */
function measured(run: Run): readonly number[] {
  const pass = { part: 0, parts: 1 };
  const whole = run.gradientsOf(pass);
  return run.blocks.map(({ name }) => {
    const without = run.gradientsOf(pass, new Set([name]));
    let sum = 0;
    for (const [parameter, g] of whole) {
      const own = without.get(parameter);
      for (let i = 0; i < g.length; i++) sum += ((g[i] as number) - (own?.[i] ?? 0)) ** 2;
    }
    return sum;
  });
}

/** A rate for each block. */
function allocated({ blocks, settings }: Run, sensitivities: Float64Array): readonly number[] {
  const { rate, least } = settings;
  const rates = blocks.map(() => least);
  const loss = blocks.map((_, i) => (sensitivities[i] as number) * (kStep + least));
  const cost = blocks.reduce((sum, block) => sum + block.cost, 0);
  let left = (1 - least) * cost;
  while (left > (1 - rate) * cost * (1 + 1e-12)) {
    let best = -1;
    for (let i = 0; i < blocks.length; i++) {
      const open = (rates[i] as number) < kMost - 1e-9;
      if (open && (best < 0 || (loss[i] as number) < (loss[best] as number))) best = i;
    }
    if (best < 0) break;
    rates[best] = (rates[best] as number) + kStep;
    loss[best] = (loss[best] as number) + kStep * (sensitivities[best] as number);
    left -= kStep * (blocks[best]?.cost as number);
  }
  return rates;
}
