/** Tensors of a step in arrays of the host, as the functions of a definition take them. */

import type { Tensor } from '../../core/tensor.js';
import type { HostUpdate, StateBytes, TrainedParameter } from '../definition/definition.js';

/** A parameter with what the optimiser keeps of it. */
export interface Entry {
  readonly parameter: TrainedParameter;
  readonly state: Readonly<Record<string, Tensor>>;
  readonly bytes: Readonly<Record<string, StateBytes>>;
  readonly rate: number;
  readonly weightDecay: number;
  readonly frozen: boolean;
}

/** What all parameters of a step have in common. */
export interface StepFacts {
  readonly lr: number;
  readonly step: number;
  readonly settings: object;
}

/** The arrays of one parameter in a step; what a function wrote is stored with `store`. */
export class HostArrays {
  readonly update: HostUpdate<object>;

  constructor(
    readonly entry: Entry,
    gradient: Tensor | undefined,
    { lr, step, settings }: StepFacts,
  ) {
    const { parameter, state, bytes, rate, weightDecay } = entry;
    this.update = {
      parameter,
      shape: parameter.tensor.shape,
      p: parameter.tensor.readSync(),
      g: gradient?.readSync() ?? new Float32Array(),
      state: Object.fromEntries(
        Object.entries(state).map(([name, tensor]) => [name, tensor.readSync()]),
      ),
      bytes: Object.fromEntries(Object.entries(bytes).map(([name, own]) => [name, own.bytes])),
      lr: lr * rate,
      weightDecay,
      step,
      settings,
    };
  }

  /** Writes parameter and states. States of bytes were written in place. */
  store(): void {
    const { parameter, state } = this.entry;
    parameter.tensor.write(this.update.p);
    for (const [name, tensor] of Object.entries(state)) {
      tensor.write(this.update.state[name] as Float32Array);
    }
  }
}

/** Scales by `min(1, maxNorm / (norm + 1e-6))`, in f32 as the native steps do. */
export function clip(g: Float32Array, norm: number, maxNorm: number | undefined): void {
  if (maxNorm === undefined) return;
  const factor = Math.fround(Math.fround(maxNorm) / Math.fround(norm + Math.fround(1e-6)));
  if (factor >= 1) return;
  for (let i = 0; i < g.length; i++) g[i] = (g[i] as number) * factor;
}
