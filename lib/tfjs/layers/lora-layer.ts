/** A dense layer with an adapter: its frozen weight, its trained tensors, and what its `call` computes. */

import type { Tensor as TfTensor } from '@tensorflow/tfjs';
import { fail } from '../../core/errors.js';
import { type Adapter, type QuantizedWeight, Tensor } from '../../index.js';
import { adapterLinear } from '../ops/adapter-linear.js';
import { tensorFrom, valuesOf } from '../ops/backend-memory.js';
import { frozenLinear } from '../ops/frozen-linear.js';
import { loraLinear } from '../ops/lora-linear.js';
import { tensorflow } from '../ops/tensorflow.js';
import { denseValues, freezeKernel, thawKernel, turned } from './frozen-kernel.js';
import type { CallOptions, DenseInternals, LayerVariable } from './internals.js';
import { type LayerConfig, storeWeight } from './lora-config.js';

/** Settings of LoRA that loraLinear takes. With any other, the method's own formula runs. */
const kPlainSettings = ['r', 'loraAlpha', 'rslora', 'dropout'];

/** A frozen weight and its adapter, made before anything in the layer changes. */
export interface LayerParts {
  readonly base: QuantizedWeight | Tensor;
  readonly adapter: Adapter;
}

/**
 * Makes a layer's parts.
 * @param values the kernel [K, N]
 * @throws LowrankError as the method's `create` and `quantize`; `ERR_NON_FINITE`
 */
export function makeParts(
  op: string,
  values: Float32Array,
  [K, N]: readonly [number, number],
  config: LayerConfig,
): LayerParts {
  if (config.store.format !== undefined && !values.every(Number.isFinite)) {
    fail(
      'ERR_NON_FINITE',
      op,
      'the kernel',
      `finite, to be stored as ${config.store.format}`,
      'NaN or infinity',
    );
  }
  const base = storeWeight(turned(values, K, N), [N, K], config);
  try {
    return { base, adapter: createAdapter(config, base) };
  } catch (error) {
    base.dispose();
    throw error;
  }
}

function createAdapter(config: LayerConfig, base: QuantizedWeight | Tensor): Adapter {
  const [N, K] = base.shape as [number, number];
  const { method, settings, seed, device } = config;
  return method.create({ ...settings, inFeatures: K, outFeatures: N, seed, device, weight: base });
}

/** `loraA` as the name of a weight: `lora_a`. */
export function weightName(parameter: string): string {
  return parameter.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** Are the settings that loraLinear does not take the method's defaults? */
function isPlain({ config, definition }: Adapter): boolean {
  const defaults = definition.defaults as Record<string, unknown>;
  return Object.entries(config).every(
    ([name, value]) =>
      kPlainSettings.includes(name) || JSON.stringify(value) === JSON.stringify(defaults[name]),
  );
}

/** The state of one layer. */
export class LoraLayer {
  base: QuantizedWeight | Tensor;
  adapter: Adapter;
  config: LayerConfig;
  readonly layer: DenseInternals;
  /** The trained tensors as weights of the layer, by the method's names. */
  readonly variables: Readonly<Record<string, LayerVariable>>;
  /** Is the adapter's update in the weight? */
  merged = false;
  /** The weight and the bias from before a merge. */
  #before: { base: QuantizedWeight | Tensor; bias: Float32Array | undefined } | undefined;
  readonly #trainable: readonly [kernel: boolean, bias: boolean];
  #passes = 0;

  /**
   * Changes the layer: its kernel becomes `parts.base`, and only the adapter is trained.
   * @param prefix of the names of the new weights; empty where the layer's scope of names is open
   */
  constructor(layer: DenseInternals, config: LayerConfig, parts: LayerParts, prefix: string) {
    const kernel = layer.kernel as LayerVariable;
    this.layer = layer;
    this.config = config;
    this.base = parts.base;
    this.adapter = parts.adapter;
    this.#trainable = [kernel.trainable, layer.bias?.trainable ?? true];
    freezeKernel(kernel, this);
    if (layer.bias !== null && layer.bias !== undefined) layer.bias.trainable = false;
    const variables: Record<string, LayerVariable> = {};
    for (const [name, tensor] of Object.entries(parts.adapter.parameters)) {
      const initializer = {
        apply: (shape: readonly number[]) => tensorFrom(shape, (target) => tensor.readInto(target)),
      };
      const ownName = `${prefix}${weightName(name)}`;
      variables[name] = layer.addWeight(
        ownName,
        tensor.shape,
        'float32',
        initializer,
        undefined,
        true,
      );
    }
    this.variables = variables;
    layer._trainableWeights = Object.values(variables);
    layer._nonTrainableWeights = [kernel, ...(layer.bias ? [layer.bias] : [])];
  }

  get bytes(): { base: number; dense: number; adapter: number } {
    const [N, K] = this.base.shape as [number, number];
    const dense = 4 * N * K;
    const adapter = 4 * this.adapter.parameterCount;
    return { base: this.base.byteLength, dense, adapter };
  }

  call(inputs: TfTensor | TfTensor[], kwargs: CallOptions | undefined): TfTensor {
    const { layer } = this;
    return tensorflow().tidy(() => {
      const x = Array.isArray(inputs) ? inputs[0] : inputs;
      if (x === undefined || (Array.isArray(inputs) && inputs.length !== 1)) {
        const count = Array.isArray(inputs) ? inputs.length : 0;
        fail('ERR_SHAPE', layer.name, 'inputs', 'one tensor', String(count));
      }
      return layer.activation.apply(this.#product(x, kwargs?.training === true));
    });
  }

  #product(x: TfTensor, training: boolean): TfTensor {
    const { layer, base, adapter, config } = this;
    const bias = layer.bias?.read();
    if (this.merged) {
      if (training) {
        const expected = 'unmerged for training (LoraModel.unmerge)';
        fail('ERR_VALUE', layer.name, 'the adapter', expected, 'a merged one');
      }
      const y = frozenLinear(x, base);
      return bias === undefined ? y : tensorflow().add(y, bias);
    }
    // Different for every pass and, with different seeds, for every layer.
    const seed = (config.seed % 2 ** 20) * 2 ** 32 + (this.#passes++ % 2 ** 32);
    const { loraA, loraB } = this.variables;
    const settings = adapter.config as { loraAlpha: number; rslora: boolean; dropout: number };
    if (
      adapter.method === 'lora' &&
      isPlain(adapter) &&
      loraA !== undefined &&
      loraB !== undefined
    ) {
      return loraLinear(x, base, loraA.read(), loraB.read(), {
        loraAlpha: settings.loraAlpha,
        rslora: settings.rslora,
        dropout: settings.dropout,
        seed,
        training,
        ...(bias === undefined ? {} : { bias, freeze: ['bias'] }),
      });
    }
    const parameters = Object.fromEntries(
      Object.entries(this.variables).map(([name, variable]) => [name, variable.read()]),
    );
    const y = adapterLinear(x, base, adapter, parameters, { seed, training });
    return bias === undefined ? y : tensorflow().add(y, bias);
  }

  /** The adapter with the values that the layer has now. */
  current(): Adapter {
    for (const [name, variable] of Object.entries(this.variables)) {
      const values = Float32Array.from(valuesOf(variable.read()));
      this.adapter.parameters[name]?.write(values);
    }
    return this.adapter;
  }

  /** Takes another adapter of the same method and the same shapes, with its values. */
  replaceAdapter(adapter: Adapter): void {
    this.adapter.dispose();
    this.adapter = adapter;
    this.config = { ...this.config, settings: { ...adapter.config } };
    for (const [name, variable] of Object.entries(this.variables)) {
      const tensor = adapter.parameters[name] as Tensor;
      tensorflow().tidy(() => {
        variable.write(tensorFrom(tensor.shape, (target) => tensor.readInto(target)));
      });
    }
  }

  /** A new weight [N, K]: that of a file, or of `setWeights`. */
  replaceBase(values: Float32Array): void {
    const base = storeWeight(values, this.base.shape as [number, number], this.config);
    this.#forgetMerge();
    this.base.dispose();
    this.base = base;
  }

  merge(): void {
    if (this.merged) return;
    const bias = this.layer.bias?.read();
    const biasValues = bias === undefined ? undefined : Float32Array.from(valuesOf(bias));
    const { device } = this.config;
    const biasTensor = biasValues && Tensor.from(biasValues, [biasValues.length], { device });
    try {
      const merged = this.current().merge(
        this.base,
        biasTensor === undefined ? {} : { bias: biasTensor },
      );
      this.#before = { base: this.base, bias: biasValues };
      this.base = merged.weight as QuantizedWeight | Tensor;
      this.merged = true;
      if (merged.bias !== undefined && this.layer.bias) {
        this.#writeBias(merged.bias.readSync());
      }
      merged.bias?.dispose();
    } finally {
      biasTensor?.dispose();
    }
  }

  unmerge(): void {
    if (!this.merged) return;
    if (this.#before === undefined) {
      // Loaded in this state: the weight from before is not in the file.
      const { weight } = this.current().unmerge(this.base);
      this.base.dispose();
      this.base = weight as QuantizedWeight | Tensor;
    } else {
      this.base.dispose();
      this.base = this.#before.base;
      if (this.#before.bias !== undefined) this.#writeBias(this.#before.bias);
      this.#before = undefined;
    }
    this.merged = false;
  }

  #writeBias(values: Float32Array): void {
    tensorflow().tidy(() => {
      this.layer.bias?.write(tensorFrom([values.length], (target) => target.set(values)));
    });
  }

  #forgetMerge(): void {
    this.#before?.base.dispose();
    this.#before = undefined;
  }

  /** Gives the layer back, an ordinary dense layer with the unmerged weight; the adapter is gone. */
  remove(): void {
    const { layer } = this;
    this.unmerge();
    const kernel = layer.kernel as LayerVariable;
    thawKernel(kernel, denseValues(this.base), this.#trainable[0]);
    if (layer.bias) layer.bias.trainable = this.#trainable[1];
    const gone = Object.values(this.variables);
    for (const variable of gone) variable.dispose();
    const names = Object.keys(this.variables).map(weightName);
    layer._addedWeightNames = layer._addedWeightNames.filter(
      (name) => !names.includes(name.slice(name.lastIndexOf('/') + 1)),
    );
    layer._trainableWeights = [kernel, ...(layer.bias ? [layer.bias] : [])];
    layer._nonTrainableWeights = [];
    this.dispose();
  }

  /** Frees what this library has of the layer. The layer's own weights are freed with the layer. */
  dispose(): void {
    this.#forgetMerge();
    this.base.dispose();
    this.adapter.dispose();
  }
}
