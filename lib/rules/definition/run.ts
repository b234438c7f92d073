/** What a rule sees of a run, and what it may do with it. */

import type { ParameterRole } from '../../optim/definition/definition.js';

/** What is known of a run before its model is read. */
export interface RuleSizes {
  /** Steps of the whole run. */
  readonly steps: number;
  /** Steps until the learning rate is at its peak. */
  readonly warmup: number;
}

/** A part of the training sequences, and where a pass is in it. */
export interface RulePass {
  /** Sequence i is in the part if i mod `parts` is from `part` to `part + width − 1`. */
  readonly part: number;
  readonly parts: number;
  /** Default 1. */
  readonly width?: number;
  /** How many steps the part has served; default the number of the step. */
  readonly index?: number;
}

/** A trained tensor. */
export interface RuleParameter {
  readonly name: string;
  readonly role: ParameterRole;
  /** Its name in its layer: `loraA`. */
  readonly part: string;
  /** The module that it adapts. */
  readonly module: string | undefined;
  readonly shape: readonly number[];
  /**
   * The gradient of this step: in `gradients` to be changed in place, in `after` as the step used it, after clipping. Undefined
   * where the loss does not depend on the parameter, and outside these hooks.
   */
  gradient: Float32Array | undefined;
  /** Names of what the optimiser keeps of it in f32: `m`, `v`. */
  readonly states: readonly string[];
  /** A copy of its values. */
  values(): Float32Array;
  /** @throws ERR_SHAPE, ERR_NON_FINITE */
  write(values: Float32Array): void;
  /** A copy of a state of the optimiser. */
  state(name: string): Float32Array;
  /** @throws ERR_SHAPE, ERR_NON_FINITE */
  writeState(name: string, values: Float32Array): void;
}

/** Half a block of the model. */
export interface RuleBlock {
  /** `layers.0.attention`, `layers.0.mlp` */
  readonly name: string;
  /** Products of a row in its linear layers: the sum of their N · K. */
  readonly cost: number;
}

/** The factors of an update `scaling · b · a`. */
export interface RuleUpdate {
  /** [r, K] */
  readonly a: Float32Array;
  /** [N, r] */
  readonly b: Float32Array;
}

/** An adapted layer. */
export interface RuleLayer {
  readonly module: string;
  /** Output features. */
  readonly N: number;
  /** Input features. */
  readonly K: number;
  /** Rank; 0 for a method without one. */
  readonly r: number;
  /** Of the update `scaling · loraB · loraA`. 1 for a method without one. */
  readonly scaling: number;
  /** Settings of the adapter. */
  readonly config: Readonly<Record<string, unknown>>;
  /** By their names in the layer. */
  readonly parameters: Readonly<Record<string, RuleParameter>>;
  /** New initial values of its parameters, as the method draws them. The same for the same seed. */
  initial(seed: number): Readonly<Record<string, Float32Array>>;
  /**
   * Adds `share · scaling · loraB · loraA` to the base, for a rule that claims it. The adapter is as it was. The base is
   * stored anew from the weight of the files and the sum of all that was merged, so that nothing rounds twice.
   * @throws ERR_UNSUPPORTED without the claim
   */
  merge(share?: number): void;
  /**
   * The base becomes the weight of the files and the sum of these updates, times the scaling, for a rule that claims it. What
   * was merged before is out of it.
   * @throws ERR_UNSUPPORTED without the claim · ERR_SHAPE
   */
  rebase(updates: readonly RuleUpdate[]): void;
  /**
   * Leaves these ranks out of the folder that is written, for a rule that claims the shapes. What they add must be 0.
   * @param keep one a rank: 1 for those that stay
   */
  keepRanks(keep: ArrayLike<number>): void;
}

/** Other values of the parameters, whose features a step is held to. */
export interface RuleAnchor {
  /** By the names of parameters; those that are left out are as they are. */
  readonly values: ReadonlyMap<string, Float32Array>;
  /** Of the mean squared difference of the features, in the loss. */
  readonly weight: number;
}

/** What the optimiser does for a rule. */
export interface RuleOptimizer {
  readonly name: string;
  /** Steps that it counts, for optimisers that correct means of few steps. */
  readonly steps: number;
  /**
   * All that it keeps becomes 0, and it counts its steps from 1 again, as a new one.
   * @param steps counts from here on instead
   */
  restart(steps?: number): void;
}

/** A run, as a hook of a rule sees it. */
export interface RuleRun<S extends object> {
  readonly settings: S;
  /** Number of finished steps. */
  readonly step: number;
  /** Steps of the whole run. */
  readonly steps: number;
  /** Of the run. */
  readonly seed: number;
  /** Learning rate of this step. */
  readonly lr: number;
  readonly layers: readonly RuleLayer[];
  /** In the order of the forward pass. */
  readonly blocks: readonly RuleBlock[];
  /** By name. */
  readonly parameters: ReadonlyMap<string, RuleParameter>;
  /** Arrays that the rule declared, which it writes in place. */
  readonly state: Readonly<Record<string, Float64Array>>;
  readonly optimizer: RuleOptimizer;
  /** A seed that depends on the run's and on these parts. */
  seedOf(...parts: readonly (number | string)[]): number;
  /** Mean loss over as many sequences of a part as a step has, in nats per token, with the parameters as they are. */
  lossOf(pass: RulePass): number;
  /**
   * The gradients of that loss, by name; with the dropout of the step.
   * @param skip blocks that the backward pass leaves out; default none
   */
  gradientsOf(pass: RulePass, skip?: ReadonlySet<string>): ReadonlyMap<string, Float32Array>;
  /** Calls `input` with the inputs [rows, K] of each adapted layer on these sequences. */
  observeInputs(pass: RulePass, input: (module: string, x: Float32Array) => void): void;
  /**
   * The gradients of the loss by the weight [N, K] of each adapted layer, base and update together, by module.
   * @param pass default the sequences of the next step
   */
  weightGradients(pass?: RulePass): ReadonlyMap<string, Float32Array>;
}

/** A step, for what follows from its number alone. */
export interface RuleStep<S extends object> extends RuleSizes {
  readonly settings: S;
  /** 0 for the first. */
  readonly step: number;
}

/** The learning rate of a step. */
export interface RuleRate<S extends object> extends RuleStep<S> {
  /** The run's schedule, from its warm-up to a tenth of the peak; of other lengths where they are given. */
  schedule(step: number, warmup?: number, steps?: number): number;
}
