/** What a rule of training declares: what it takes for itself, what it keeps, and its hooks around a step. */

import type { RefusedSetting } from '../../core/refused-setting.js';
import type { RuleAnchor, RulePass, RuleRate, RuleRun, RuleSizes, RuleStep } from './run.js';

/**
 * What only one rule of a run may have. `base`: it merges into the weights. `shapes`: it removes or adds ranks. `step`: it
 * chooses what a step changes. `rate`: the schedule of the learning rate. `data`: which sequences a step sees.
 */
export type RuleClaim = 'base' | 'shapes' | 'step' | 'rate' | 'data';

/** What happens around the steps of a run. All hooks are optional; without any the run is as it was. */
export interface RuleDefinition<S extends object> {
  /** Its name in options, on the command line and in checkpoints: letters, digits, - and _. */
  readonly rule: string;
  /** Authors, title, year, arXiv number. */
  readonly reference: string;
  /** Settings with their values. */
  readonly defaults: Readonly<S>;
  /** What it takes for itself. Two rules that claim the same are refused together. Default none. */
  readonly claims?: readonly RuleClaim[];
  /** Methods of adapters that it works on; default all. */
  readonly adapters?: readonly string[];
  /** Does `after` read {@link RuleParameter.gradient}? Default false: gradients stay on their device. */
  readonly keepsGradients?: boolean;
  /** Does it start anew what the optimiser keeps? An optimiser that evaluates other values than it trains is then refused. */
  readonly resetsOptimizer?: boolean;
  /** Does it write what the optimiser keeps? An optimiser with states in bytes is then refused. */
  readonly writesStates?: boolean;
  /** Refuses values of settings, in words. Settings have the types of the defaults already. */
  check?(settings: S, sizes: RuleSizes): RefusedSetting | undefined;
  /** Shapes of arrays by name, zeros at first: all that it remembers from step to step. A checkpoint has them with their bits. */
  state?(run: RuleRun<S>): Readonly<Record<string, readonly number[]>>;
  /** Called once, before the first step. A resumed run does not call it: its values are in the checkpoint. */
  prepare?(run: RuleRun<S>): void;
  /** The learning rate of a step. It follows from the number of the step alone. */
  rate?(rate: RuleRate<S>): number;
  /** Which sequences the passes of a step see: one part of several. It follows from the number of the step alone. */
  data?(step: RuleStep<S>): RulePass | undefined;
  /** Before the passes of a step. It may write parameters. */
  before?(run: RuleRun<S>): void;
  /** Is the parameter trained in this step? It has no gradient otherwise. Default true. */
  trains?(run: RuleRun<S>, name: string): boolean;
  /**
   * Holds the step to what the model computes with other values: the loss gets `weight` times the mean squared difference of the
   * features that the head takes. It costs a forward pass more.
   */
  anchor?(run: RuleRun<S>): RuleAnchor | undefined;
  /** Names of {@link RuleRun.blocks} that the backward pass of this pass leaves out. */
  skip?(run: RuleRun<S>, pass: number): ReadonlySet<string>;
  /** After the passes and before clipping: changes {@link RuleParameter.gradient}; undefined for a step without it. */
  gradients?(run: RuleRun<S>): void;
  /**
   * Which elements of the parameter this step changes: 1 where it does. Others have a gradient of 0, and keep their values. It
   * sees the gradients. Undefined for all.
   */
  mask?(run: RuleRun<S>, name: string): Uint8Array | undefined;
  /** After a step that changed the parameters. `run.step` counts it. */
  after?(run: RuleRun<S>): void;
  /**
   * After the last step, before the last evaluation: what is evaluated then is what is written. Twice gives what once gives: a
   * run whose folder could not be written goes on here.
   */
  finish?(run: RuleRun<S>): void;
}

/** Any rule, whatever its settings. */
// biome-ignore lint/suspicious/noExplicitAny: settings are checked against the defaults where they enter
export type AnyRule = RuleDefinition<any>;

/** A rule with its settings, as options name it. */
export interface ChosenRule {
  readonly rule: AnyRule;
  /** Those that differ from its defaults; default none. */
  readonly settings?: Readonly<Record<string, unknown>>;
}
