import type { Value } from '../../autograd/gradient-tape.js';
import type { Device } from '../../core/device.js';
import type { DType } from '../../core/dtype.js';
import { fail } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import type { BaseWeight } from '../../ops/base-weight.js';

/** The operands of an adapter's forward formula. */
export interface AdapterCall<C, Name extends string, S> {
  /** [..., K] */
  readonly x: Value;
  /** [N, K], frozen */
  readonly w: BaseWeight;
  /** [N], if the layer has one */
  readonly bias: Value | undefined;
  /** The adapter's tensors by name: trained ones with a gradient, frozen ones without. */
  readonly p: Readonly<Record<Name, Value>>;
  readonly config: Readonly<C>;
  /** The result of {@link AdapterDefinition.prepare}. */
  readonly state: S;
  /** Tensors that a call gives besides x, by name: gates, a second input; with gradients. */
  readonly inputs: Readonly<Record<string, Value>>;
  readonly N: number;
  readonly K: number;
  /** Training turns dropout and samplers on. */
  readonly training: boolean;
  /** The seed of the call, if it has one: for values that are sampled on the host. */
  readonly seed: number | undefined;
}

/** The size and settings that an adapter is made for. */
export interface AdapterSize<C> {
  readonly N: number;
  readonly K: number;
  readonly config: Readonly<C>;
}

/**
 * Makes the tensors of a new adapter: shapes by name, one stream of seeds.
 * @example
 * init: (make) => ({ loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
 */
export class AdapterMaker<C, Name extends string = string> implements AdapterSize<C> {
  readonly N: number;
  readonly K: number;
  readonly config: Readonly<C>;
  readonly device: Device;
  readonly dtype: DType;
  /** The base weight, if it was given: some methods start from it. */
  readonly w: BaseWeight | undefined;
  readonly shapes: Readonly<Record<Name, readonly number[]>>;
  #seed: number;

  constructor(fields: {
    N: number;
    K: number;
    config: Readonly<C>;
    device: Device;
    dtype: DType;
    w: BaseWeight | undefined;
    shapes: Readonly<Record<Name, readonly number[]>>;
    seed: number;
  }) {
    this.N = fields.N;
    this.K = fields.K;
    this.config = fields.config;
    this.device = fields.device;
    this.dtype = fields.dtype;
    this.w = fields.w;
    this.shapes = fields.shapes;
    this.#seed = fields.seed;
  }

  /** The next seed. Each tensor takes one. */
  seed(): number {
    return this.#seed++;
  }

  #place(): { dtype: DType; device: Device } {
    return { dtype: this.dtype, device: this.device };
  }

  /** The base weight, for a method that needs it to start. @throws ERR_VALUE */
  weight(op: string): BaseWeight {
    if (this.w === undefined) fail('ERR_VALUE', op, 'weight', 'given (the base weight)', 'none');
    return this.w;
  }

  /** @throws ERR_VALUE if the method's `shapes` has no such tensor */
  #shape(name: Name): readonly number[] {
    const shape = this.shapes[name];
    if (shape === undefined) {
      const known = Object.keys(this.shapes).join(', ') || 'none';
      fail('ERR_VALUE', 'init', 'name', `one that shapes returns (${known})`, `"${name}"`);
    }
    return shape;
  }

  zeros(name: Name): Tensor {
    return Tensor.zeros(this.#shape(name), this.#place());
  }

  full(name: Name, value: number): Tensor {
    return this.values(name, () => value);
  }

  /** Fills a row-major tensor with a function of the index i. */
  values(name: Name, value: (i: number) => number): Tensor {
    const shape = this.#shape(name);
    const size = shape.reduce((product, dim) => product * dim, 1);
    return Tensor.from(
      Float32Array.from({ length: size }, (_, i) => value(i)),
      shape,
      this.#place(),
    );
  }

  /** Uniformly distributed in ±bound. */
  uniform(name: Name, bound: number): Tensor {
    const drawn = { ...this.#place(), seed: this.seed(), low: -bound, high: bound };
    return Tensor.uniform(this.#shape(name), drawn);
  }

  normal(name: Name, std: number): Tensor {
    return Tensor.randn(this.#shape(name), { ...this.#place(), seed: this.seed(), std });
  }

  /** Drawn as PEFT draws lora_A: uniform in ±1/sqrt(fanIn), by default of the last dimension. */
  kaiming(name: Name, fanIn = this.#shape(name).at(-1) ?? 1): Tensor {
    return this.uniform(name, 1 / Math.sqrt(fanIn));
  }
}

/** Result of {@link AdapterDefinition.penalty}. */
export interface LayerPenalty {
  /** [1] */
  readonly loss: Tensor;
  readonly gradients: Readonly<Record<string, Tensor>>;
}

/** The size of a layer, or the largest size in a folder, for which seeded projections are drawn. */
export interface LayerSize {
  readonly inFeatures: number;
  readonly outFeatures: number;
}
