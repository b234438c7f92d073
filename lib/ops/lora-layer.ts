import { fail, wrongType } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { checkTensor, readOptions } from '../core/validate.js';
import { QuantizedWeight } from '../quant/quantized-weight.js';
import { type BaseWeight, checkWeight } from './base-weight.js';
import type { ComputePrecision } from './compute.js';
import { checkLoraAdapter, type LoraAdapter } from './lora-adapter.js';
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

  /** @throws ERR_TYPE, ERR_SHAPE, ERR_DISPOSED */
  constructor(parts: {
    weight: BaseWeight;
    bias?: Tensor;
    adapters?: Record<string, LoraAdapter> | Map<string, LoraAdapter>;
    active?: string;
    compute?: ComputePrecision;
  }) {
    const op = 'LoraLinear';
    if (parts === null || typeof parts !== 'object') {
      throw wrongType(op, 'parts', 'an object', parts);
    }
    const { weight, bias, adapters = {}, active, compute = 'exact' } = readOptions(op, parts);
    if (!Tensor.is(weight) && !QuantizedWeight.is(weight)) {
      throw wrongType(op, 'weight', 'a Tensor or a QuantizedWeight', weight);
    }
    this.weight = checkWeight(op, weight).weight;
    this.bias = bias === undefined ? undefined : checkTensor(op, 'bias', bias);
    this.compute = compute;
    if (adapters === null || typeof adapters !== 'object') {
      throw wrongType(op, 'adapters', 'an object or a Map of adapters by name', adapters);
    }
    this.adapters = new Map(adapters instanceof Map ? adapters : Object.entries(adapters));
    for (const [name, adapter] of this.adapters) {
      checkLoraAdapter(op, `adapters.${String(name)}`, adapter);
    }
    if (active !== undefined && typeof active !== 'string') {
      throw wrongType(op, 'active', 'a string', active);
    }
    this.active = active ?? this.adapters.keys().next().value;
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
