import { checkShape, checkTensor } from '../../core/check-tensor.js';
import { fail, wrongType } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { readOptions } from '../../core/validate.js';
import { QuantizedWeight } from '../../quant/quantized-weight.js';
import { type BaseWeight, checkWeight } from '../base-weight.js';
import type { ComputePrecision } from '../compute.js';
import { checkTraining } from '../dropout.js';
import { WantedGradients } from '../gradients.js';
import { matmul, matmulInputGrad } from '../matmul.js';
import { checkLoraAdapter, type LoraAdapter } from './lora-adapter.js';
import {
  checkAdapter,
  type LoraBackwardOptions,
  type LoraForwardOptions,
  type LoraGradients,
  loraBackward,
  loraForward,
} from './lora-linear.js';
import { loraExpandBackward, loraShrinkBackward } from './lora-parts.js';
import { LoraSaved } from './lora-saved.js';

/**
 * One linear layer for hand-written trainers: a frozen base weight, an optional bias, and several
 * adapters, of which one is active at a time.
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
  /** Precision of the base product if {@link LoraLinear.forward} is not given one. */
  readonly compute: ComputePrecision;
  /** Name of the active adapter, initially the first; undefined for the base layer alone. */
  active: string | undefined;
  /** State of the last training forward pass; without an adapter, the shape and dtype of its y. */
  #saved: LoraSaved | Pick<Tensor, 'shape' | 'dtype'> | undefined;

  /** @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED; ERR_VALUE if `active` is not the name of an adapter */
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
    const {
      weight,
      bias,
      adapters = {},
      active,
      compute = 'exact',
    } = readOptions(op, parts, {
      weight: true,
      bias: true,
      adapters: true,
      active: true,
      compute: true,
    });
    if (!Tensor.is(weight) && !QuantizedWeight.is(weight)) {
      throw wrongType(op, 'weight', 'a Tensor or a QuantizedWeight', weight);
    }
    const { N, K } = checkWeight(op, weight);
    this.weight = weight;
    this.bias = bias === undefined ? undefined : checkTensor(op, 'bias', bias);
    this.compute = compute;
    if (adapters === null || typeof adapters !== 'object') {
      throw wrongType(op, 'adapters', 'an object or a Map of adapters by name', adapters);
    }
    this.adapters = new Map(adapters instanceof Map ? adapters : Object.entries(adapters));
    for (const [name, adapter] of this.adapters) {
      const owner = `adapters.${String(name)}`;
      checkLoraAdapter(op, owner, adapter);
      // Dtypes are checked against x, in the forward pass.
      checkAdapter(op, adapter, N, K, { device: weight.device }, `${owner}.`);
    }
    if (active !== undefined && typeof active !== 'string') {
      throw wrongType(op, 'active', 'a string', active);
    }
    this.active = active ?? this.adapters.keys().next().value;
    this.#adapter(op);
  }

  #adapter(op: string): LoraAdapter | undefined {
    if (this.active === undefined) return undefined;
    const adapter = this.adapters.get(this.active);
    if (adapter === undefined) {
      const known = [...this.adapters.keys()].map((name) => `"${name}"`).join(', ') || 'none';
      fail('ERR_VALUE', op, 'active', `one of the adapters (${known})`, `"${this.active}"`);
    }
    return adapter;
  }

  #forget(): void {
    if (LoraSaved.is(this.#saved)) this.#saved.dispose();
    this.#saved = undefined;
  }

  /**
   * y [..., N]. The saved state stays here until {@link LoraLinear.backward}.
   * @throws as {@link loraForward}
   */
  forward(x: Tensor, options?: Omit<LoraForwardOptions, 'bias'>): Tensor {
    const op = 'LoraLinear.forward';
    const adapter = this.#adapter(op);
    const given = readOptions(op, options, {
      seed: true,
      dropoutMask: true,
      training: true,
      compute: true,
    });
    const base = {
      ...(this.bias === undefined ? {} : { bias: this.bias }),
      compute: given.compute ?? this.compute,
    };
    this.#forget();
    if (adapter === undefined) {
      const training = checkTraining(op, given.training);
      const y = matmul(x, this.weight, base);
      if (training) this.#saved = { shape: y.shape, dtype: y.dtype };
      return y;
    }
    const { y, saved } = loraForward(x, this.weight, adapter, { ...given, ...base });
    if (given.training === false) saved.dispose();
    else this.#saved = saved;
    return y;
  }

  /**
   * Gradients of the last {@link LoraLinear.forward}, whichever adapter is active now; see {@link loraBackward}. A
   * pass without an adapter gives `dx`, and `dBias` if there is a bias; these need no earlier forward pass.
   * @throws as {@link loraBackward}; ERR_VALUE if an adapter is active and there was no training forward pass
   */
  backward(dy: Tensor, options?: LoraBackwardOptions): LoraGradients {
    const op = 'LoraLinear.backward';
    const given = readOptions(op, options, { needs: true, accumulateInto: true, keep: true });
    const base = () => (this.#adapter(op) === undefined ? checkTensor(op, 'dy', dy) : undefined);
    const saved = this.#saved ?? base();
    if (saved === undefined) {
      fail('ERR_VALUE', op, 'state', 'the state of a training forward pass', 'none');
    }
    const gradients = LoraSaved.is(saved)
      ? loraBackward(dy, saved, given)
      : this.#baseGradients(op, dy, saved, given);
    if (given.keep !== true) this.#saved = undefined;
    return gradients;
  }

  #baseGradients(
    op: string,
    dy: Tensor,
    y: Pick<Tensor, 'shape' | 'dtype'>,
    { needs, accumulateInto }: LoraBackwardOptions,
  ): LoraGradients {
    checkShape(op, 'dy', checkTensor(op, 'dy', dy), y.shape);
    if (dy.dtype !== y.dtype) fail('ERR_DTYPE', op, 'dy', `${y.dtype}, as x was`, dy.dtype);
    const { weight } = this;
    const { N, K } = checkWeight(op, weight);
    const { dtype, device } = dy;
    const leading = dy.shape.slice(0, -1);
    const { dx, dBias } = readOptions(op, accumulateInto, {
      dLoraA: true,
      dLoraB: true,
      dLoraBias: true,
      dx: true,
      dBias: true,
    });
    const into = { ...(dx === undefined ? {} : { dx }), ...(dBias === undefined ? {} : { dBias }) };
    const shapes = {
      dx: { shape: [...leading, K], dtype, anyDType: true },
      dBias: { shape: [N], dtype, anyDType: true },
    };
    const wanted = new WantedGradients(
      op,
      shapes,
      this.bias === undefined ? ['dx'] : ['dx', 'dBias'],
      { needs: needs as ('dx' | 'dBias')[] | undefined, accumulateInto: into },
      dy,
    );
    // The parts of a LoRA layer can accumulate, so they are used here, with zero factors.
    const zeros = (...shape: number[]) => Tensor.zeros(shape, { device });
    return scope(() => ({
      ...(wanted.has('dx') && dx === undefined ? { dx: matmulInputGrad(dy, weight) } : {}),
      ...(wanted.has('dx') && dx !== undefined
        ? loraShrinkBackward(dy, weight, zeros(...leading, 1), zeros(1, K), {
            needs: ['dx'],
            accumulateInto: { dx },
          })
        : {}),
      ...(wanted.has('dBias')
        ? loraExpandBackward(dy, undefined, zeros(N, 1), {
            needs: ['dBias'],
            accumulateInto: dBias === undefined ? {} : { dBias },
          })
        : {}),
    }));
  }

  /** Frees the saved state, the adapters, the weight and the bias. */
  dispose(): void {
    this.#forget();
    for (const adapter of this.adapters.values()) adapter.dispose();
    this.weight.dispose();
    this.bias?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
