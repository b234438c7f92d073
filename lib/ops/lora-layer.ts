import { fail } from '../core/errors.js';
import type { Tensor } from '../core/tensor.js';
import type { BaseWeight } from './base-weight.js';
import type { ComputePrecision } from './compute.js';
import { LoraAdapter } from './lora-adapter.js';
import {
  type LoraBackwardOptions,
  type LoraForwardOptions,
  type LoraGradients,
  type LoraSaved,
  loraBackward,
  loraForward,
} from './lora-linear.js';
import { matmul, matmulInputGrad } from './matmul.js';

/**
 * One linear layer for trainers written by hand: a frozen base weight, an optional bias, and one
 * adapter at a time out of several.
 * @example
 * const layer = new LoraLinear({ weight: w4, adapters: { default: adapter } });
 * const y = layer.forward(x, { seed: step });
 * const { dx, dLoraA, dLoraB } = layer.backward(dy);
 */
export class LoraLinear implements Disposable {
  /** [N, K] */
  readonly weight: BaseWeight;
  /** [N] */
  readonly bias: Tensor | undefined;
  readonly adapters: Map<string, LoraAdapter>;
  /** Precision of the base product where {@link LoraLinear.forward} is not told another. */
  readonly compute: ComputePrecision;
  /** Name of the adapter in use; undefined is the base layer alone. */
  active: string | undefined;
  #saved: LoraSaved | undefined;

  constructor(parts: {
    weight: BaseWeight;
    bias?: Tensor;
    adapters?: Record<string, LoraAdapter> | Map<string, LoraAdapter>;
    active?: string;
    compute?: ComputePrecision;
  }) {
    this.weight = parts.weight;
    this.bias = parts.bias;
    this.compute = parts.compute ?? 'exact';
    const given = parts.adapters ?? {};
    this.adapters = given instanceof Map ? new Map(given) : new Map(Object.entries(given));
    for (const [name, adapter] of this.adapters) {
      if (!(adapter instanceof LoraAdapter)) {
        fail('ERR_VALUE', 'LoraLinear', `adapters.${name}`, 'a LoraAdapter', typeof adapter);
      }
    }
    this.active = parts.active ?? this.adapters.keys().next().value;
  }

  #adapter(op: string): LoraAdapter | undefined {
    if (this.active === undefined) return undefined;
    const adapter = this.adapters.get(this.active);
    if (adapter === undefined) {
      const known = [...this.adapters.keys()].map((name) => `'${name}'`).join(', ') || 'none';
      fail('ERR_VALUE', op, 'active', `one of the adapters (${known})`, `'${this.active}'`);
    }
    return adapter;
  }

  /** y [..., N]. The saved state stays here until {@link LoraLinear.backward}. */
  forward(x: Tensor, options?: Omit<LoraForwardOptions, 'bias'>): Tensor {
    const adapter = this.#adapter('LoraLinear.forward');
    const base = {
      ...(this.bias === undefined ? {} : { bias: this.bias }),
      compute: options?.compute ?? this.compute,
    };
    this.#saved?.dispose();
    this.#saved = undefined;
    if (adapter === undefined) return matmul(x, this.weight, base);
    const { y, saved } = loraForward(x, this.weight, adapter, { ...options, ...base });
    if (options?.training === false) saved.dispose();
    else this.#saved = saved;
    return y;
  }

  /** Gradients of the last {@link LoraLinear.forward}; see {@link loraBackward}. */
  backward(dy: Tensor, options?: LoraBackwardOptions): LoraGradients {
    const op = 'LoraLinear.backward';
    if (this.#adapter(op) === undefined) return { dx: matmulInputGrad(dy, this.weight) };
    const saved = this.#saved;
    if (saved === undefined) {
      fail('ERR_VALUE', op, 'state', 'that of a training forward pass', 'none');
    }
    const gradients = loraBackward(dy, saved, options);
    if (options?.keep !== true) this.#saved = undefined;
    return gradients;
  }

  /** Frees the saved state, the adapters, the weight and the bias. */
  dispose(): void {
    this.#saved?.dispose();
    for (const adapter of this.adapters.values()) adapter.dispose();
    this.weight.dispose();
    this.bias?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
