/** What an optimiser declares: groups of parameters, what it keeps of each, and how a step changes them. */

import type { RefusedSetting } from '../../core/refused-setting.js';
import type { Tensor } from '../../core/tensor.js';

/**
 * What a trained tensor is in its layer's formula: the factor that shrinks (loraA), the one that expands (loraB), a bias, or
 * another.
 */
export type ParameterRole = 'down' | 'up' | 'bias' | 'other';

/** A trained tensor. */
export interface TrainedParameter {
  /** Distinct in a run: `model.layers.0.self_attn.q_proj.loraA`. */
  readonly name: string;
  readonly role: ParameterRole;
  readonly tensor: Tensor;
  /** Other tensors over the same memory, through which layers share it: their gradients add up. */
  readonly views?: readonly Tensor[];
  /**
   * The layer of a low-rank update `scaling · loraB · loraA`. The parameters of a layer with the roles `down` [r, K] and `up`
   * [N, r] are a pair.
   */
  readonly layer?: string;
  /** Of the layer's update; default 1. */
  readonly scaling?: number;
}

/** Both factors of a layer. */
export interface PairedParameters {
  /** loraA, [r, K] */
  readonly down: TrainedParameter;
  /** loraB, [N, r] */
  readonly up: TrainedParameter;
}

/** Where a parameter differs from the run's settings. */
export interface ParameterGroup {
  /** Times the learning rate; default 1. */
  readonly rate?: number;
  /** Instead of the run's weight decay. */
  readonly weightDecay?: number;
  /** True: it keeps its values and has no gradient and no state. */
  readonly frozen?: boolean;
}

/** A state of a parameter: the shape of a tensor of f32, or of bytes, which stay on the host. */
export type StateShape = readonly number[] | { readonly bytes: readonly number[] };

/** Bytes of a state, on the host. */
export interface StateBytes {
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** One parameter of a step. */
export interface ParameterUpdate {
  readonly parameter: TrainedParameter;
  /** Shape of the parameter. */
  readonly gradient: Tensor;
  /** By the names of {@link OptimizerDefinition.state}; f32. */
  readonly state: Readonly<Record<string, Tensor>>;
  readonly rate: number;
  readonly weightDecay: number;
}

/** The numbers of a step in tensors, [1] f32, which hold other values in each replay. */
export interface CapturedRate {
  readonly lr: Tensor;
  /** The number of steps before this one; an op may add one to it. */
  readonly stepsDone: Tensor;
}

/** What a step of an optimiser works with. */
export interface OptimizerStep<S extends object> {
  readonly updates: readonly ParameterUpdate[];
  readonly settings: S;
  /** The number of this step, from 1 on. */
  readonly step: number;
  readonly lr: number;
  /**
   * Of a step that is being captured: what its replays read instead of `lr` and `step`. Only for an optimiser that is
   * {@link OptimizerDefinition.capturable}.
   */
  readonly captured?: CapturedRate | undefined;
  /** [1] f32: the global norm of all gradients. A step with a norm that is not finite writes nothing. */
  readonly norm: Tensor;
  /** Gradients are scaled by `min(1, maxNorm / (norm + 1e-6))`; undefined for no clipping. */
  readonly maxNorm: number | undefined;
}

/** One parameter of a step in arrays of the host, which a function of the definition writes. */
export interface HostUpdate<S extends object, N extends string = string> {
  readonly parameter: TrainedParameter;
  readonly shape: readonly number[];
  /** Values of the parameter. */
  readonly p: Float32Array;
  /** Its gradient; empty for a frozen factor of a pair. */
  readonly g: Float32Array;
  /** States of f32 by name. */
  readonly state: Readonly<Record<N, Float32Array>>;
  /** States of bytes by name. */
  readonly bytes: Readonly<Record<string, Uint8Array>>;
  /** With the factor of the parameter's group. */
  readonly lr: number;
  readonly weightDecay: number;
  /** The number of this step, from 1 on. */
  readonly step: number;
  readonly settings: S;
}

/** Both factors of a layer in a step. */
export interface HostPair<S extends object, N extends string = string> {
  /** loraA [r, K] */
  readonly a: HostUpdate<S, N>;
  /** loraB [N, r] */
  readonly b: HostUpdate<S, N>;
  readonly r: number;
  /** K */
  readonly inFeatures: number;
  /** N */
  readonly outFeatures: number;
  readonly scaling: number;
  readonly step: number;
  readonly settings: S;
}

/** What every optimiser may declare beside its step. */
export interface OptimizerTraits<S extends object, N extends string> {
  /** Its name in options and checkpoints: letters, digits, - and _. */
  readonly optimizer: string;
  /** Authors, title, year, arXiv number. */
  readonly reference: string;
  /** Refuses values of settings, in words. Settings have the types of the defaults already. */
  check?(settings: NoInfer<S>): RefusedSetting | undefined;
  /** Groups of parameters; default one for all. */
  group?(parameter: TrainedParameter, settings: S): ParameterGroup;
  /** Names of states that hold no value below 0; a checkpoint with one is rejected. */
  readonly notNegative?: readonly NoInfer<N>[];
  /** Times the learning rate that a run has by default: 0.1 for Lion. */
  readonly rate?: number;
  /** `constant`: the learning rate of a run does not fall after its warm-up. */
  readonly schedule?: 'constant';
  /** True: it clips gradients itself, and the run's largest norm does not count. */
  readonly clips?: boolean;
  /** Changes the gradient in place, before clipping and the step. The result is proportional to the gradient. */
  gradient?(update: HostUpdate<S, N>): void;
  /** Changes the gradients of both factors of a layer in place, as `gradient` does. */
  precondition?(pair: HostPair<S, N>): void;
  /** Changes the parameter in place after the step. `before` are its values before the step. */
  after?(update: HostUpdate<S, N> & { readonly before: Float32Array }): void;
  /** Writes into p what is evaluated and saved, where that is not what is trained. `step` counts the finished steps. */
  evaluated?(update: HostUpdate<S, N>): void;
}

/** An optimiser. It has either `step` (ops on tensors) or `update` or `updatePairs` (arrays of the host). */
export interface OptimizerDefinition<S extends object, N extends string = string>
  extends OptimizerTraits<S, N> {
  readonly defaults: Readonly<S>;
  /**
   * The state of a parameter, by name: zeros at first.
   * @param pair the factors of its layer, if it is one of them
   */
  state(
    parameter: TrainedParameter,
    settings: S,
    pair?: PairedParameters,
  ): Readonly<Record<N, StateShape>>;
  /** Does `step` read {@link OptimizerStep.captured} where it is given? Default false: its steps are not captured. */
  readonly capturable?: boolean;
  /** Writes the parameters and their states. */
  step?(step: OptimizerStep<S>): void;
  /** Writes one parameter and its states. Gradients are clipped. */
  update?(update: HostUpdate<S, N>): void;
  /** Writes all pairs of factors. `update` gets what is not in a pair. */
  updatePairs?(pairs: readonly HostPair<S, N>[]): void;
}

/** An optimiser that takes what it leaves out from another: its states, its step, its settings. */
export interface OptimizerExtension<S extends object, B extends object>
  extends OptimizerTraits<S & B, string> {
  readonly base: OptimizerDefinition<B>;
  /** Settings beside those of `base`, and settings of `base` that have another default. */
  readonly defaults: Readonly<S>;
}

/** Any optimiser, whatever its settings. */
// biome-ignore lint/suspicious/noExplicitAny: settings are checked against the defaults where they enter
export type AnyOptimizer = OptimizerDefinition<any, any>;
