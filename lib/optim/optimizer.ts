/** Optimisers as definitions: what a parameter's state is, and what a step does to all parameters at once. */

import { fail, wrongType } from '../core/errors.js';
import type { Tensor } from '../core/tensor.js';
import { ownFields } from '../core/validate.js';

/** What a trained tensor is in its layer's formula: the factor that shrinks, the one that expands, or another. */
export type ParameterRole = 'down' | 'up' | 'other';

/** A trained tensor. */
export interface TrainedParameter {
  /** Distinct in a run: `model.layers.0.self_attn.q_proj.loraA`. */
  readonly name: string;
  readonly role: ParameterRole;
  readonly tensor: Tensor;
  /** Other tensors over the same memory, through which layers share it: their gradients add up. */
  readonly views?: readonly Tensor[];
}

/** Where a parameter differs from the run's settings. */
export interface ParameterGroup {
  /** Times the learning rate; default 1. */
  readonly rate?: number;
  /** Instead of the run's weight decay. */
  readonly weightDecay?: number;
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

/** An optimiser. */
export interface OptimizerDefinition<S extends object> {
  /** Its name in options and checkpoints. */
  readonly optimizer: string;
  /** Where the method is published. */
  readonly reference: string;
  readonly defaults: Readonly<S>;
  /** Does `step` read {@link OptimizerStep.captured} where it is given? Default false: its steps are not captured. */
  readonly capturable?: boolean;
  /** The state of a parameter: f32 tensors of zeros, by name. */
  state(parameter: TrainedParameter, settings: S): Readonly<Record<string, readonly number[]>>;
  /** Groups of parameters; default one for all. */
  group?(parameter: TrainedParameter, settings: S): ParameterGroup;
  /** Writes the parameters and their states. */
  step(step: OptimizerStep<S>): void;
}

/** Any optimiser, whatever its settings. */
// biome-ignore lint/suspicious/noExplicitAny: settings are checked against the defaults where they enter
export type AnyOptimizer = OptimizerDefinition<any>;

/**
 * Checks and freezes an optimiser of one's own.
 * @throws ERR_TYPE · ERR_VALUE
 * @example
 * const sgd = defineOptimizer({
 *   optimizer: 'sgd', reference: 'Robbins and Monro, 1951', defaults: {}, state: () => ({}),
 *   step: ({ updates, lr }) => { for (const u of updates) subtract(u.parameter.tensor, u.gradient, lr); },
 * });
 */
export function defineOptimizer<S extends object>(
  definition: OptimizerDefinition<S>,
): OptimizerDefinition<S> {
  const op = 'defineOptimizer';
  const own = ownFields<object>(op, definition) as Record<string, unknown>;
  for (const name of ['optimizer', 'reference']) {
    const text = own[name];
    if (typeof text !== 'string') throw wrongType(op, name, 'a string', text);
    if (text === '') fail('ERR_VALUE', op, name, 'a text', 'an empty one');
  }
  if (typeof own.defaults !== 'object' || own.defaults === null) {
    throw wrongType(op, 'defaults', 'an object of settings', own.defaults);
  }
  for (const name of ['state', 'step']) {
    if (typeof own[name] !== 'function') throw wrongType(op, name, 'a function', own[name]);
  }
  if (own.capturable !== undefined && typeof own.capturable !== 'boolean') {
    throw wrongType(op, 'capturable', 'a boolean', own.capturable);
  }
  if (own.group !== undefined && typeof own.group !== 'function') {
    throw wrongType(op, 'group', 'a function', own.group);
  }
  return Object.freeze({ ...definition, defaults: Object.freeze({ ...definition.defaults }) });
}
