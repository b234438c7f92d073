/**
 * `LoraDense`: the class of dense layers with an adapter. It extends the dense layer of the TensorFlow.js in use and is
 * registered there, so that `model.save` and `tf.loadLayersModel` know it.
 */

import type { Tensor as TfTensor } from '@tensorflow/tfjs';
import { fail, wrongType } from '../../core/errors.js';
import { valuesOf } from '../ops/backend-memory.js';
import { onTensorflow, type Tensorflow, tensorflow } from '../ops/tensorflow.js';
import {
  type CallOptions,
  type DenseInternals,
  denseClass,
  isDense,
  type Layer,
  type LayerClass,
  type LayerVariable,
} from './internals.js';
import { type LayerConfig, type LoraConfig, readConfig, savedConfig } from './lora-config.js';
import { type LayerParts, LoraLayer, makeParts } from './lora-layer.js';

/** The settings of `tf.layers.dense`. */
export type DenseConfig = Parameters<Tensorflow['layers']['dense']>[0];

const classes = new WeakMap<object, LayerClass<DenseInternals>>();
/** Settings of layers that have no weights yet. */
const configs = new WeakMap<object, { readonly config: LayerConfig; readonly merged: boolean }>();
const states = new WeakMap<object, LoraLayer>();

/** Makes the class for a TensorFlow.js and registers it there. */
function loraDenseClass(): LayerClass<DenseInternals> {
  const Dense = denseClass();
  const known = classes.get(Dense);
  if (known !== undefined) return known;
  class LoraDenseLayer extends (Dense as unknown as new (args: object) => DenseInternals) {
    static readonly className = 'LoraDense';

    constructor(args: object) {
      super(args);
      const { merged } = args as { merged?: unknown };
      configs.set(this, { config: readConfig('loraDense', args), merged: merged === true });
    }

    override build(inputShape: unknown): void {
      super.build(inputShape);
      const given = configs.get(this);
      if (given === undefined) return;
      startLayer(this, given.config, '', given.merged);
    }

    override call(inputs: TfTensor | TfTensor[], kwargs: CallOptions): TfTensor {
      const hooked = this as unknown as { invokeCallHook?(...args: unknown[]): void };
      hooked.invokeCallHook?.(inputs, kwargs);
      return stateOf(this.name, this).call(inputs, kwargs);
    }

    override getConfig(): Record<string, unknown> {
      const own = states.get(this);
      const config = own?.config ?? configs.get(this)?.config;
      return {
        ...super.getConfig(),
        ...(config === undefined ? {} : savedConfig(config)),
        ...(own?.merged === true ? { merged: true } : {}),
      };
    }

    override disposeWeights(): number {
      const count = super.disposeWeights();
      states.get(this)?.dispose();
      return count;
    }
  }
  const made = LoraDenseLayer as unknown as LayerClass<DenseInternals>;
  classes.set(Dense, made);
  const { serialization } = tensorflow();
  serialization.registerClass(made as unknown as Parameters<typeof serialization.registerClass>[0]);
  return made;
}

onTensorflow((tf) => {
  if (typeof tf.layers?.dense === 'function') loraDenseClass();
});

/** The state of a layer. @throws LowrankError `ERR_VALUE` for a layer without an adapter */
export function stateOf(op: string, layer: object): LoraLayer {
  const state = states.get(layer);
  if (state !== undefined) return state;
  return fail('ERR_VALUE', op, 'the layer', 'built and with an adapter', 'another one');
}

/** Is it a layer with an adapter and weights? */
export function isLoraLayer(layer: object): boolean {
  return states.has(layer);
}

function kernelShape(layer: DenseInternals): [K: number, N: number] {
  return (layer.kernel as LayerVariable).shape as [number, number];
}

/** The parts of a built dense layer's adapter; the layer stays as it is. @throws as `makeParts` */
export function prepareLayer(op: string, layer: DenseInternals, config: LayerConfig): LayerParts {
  const kernel = layer.kernel as LayerVariable;
  return makeParts(op, Float32Array.from(valuesOf(kernel.read())), kernelShape(layer), config);
}

function startLayer(
  layer: DenseInternals,
  config: LayerConfig,
  prefix: string,
  merged: boolean,
): LoraLayer {
  const parts = prepareLayer('loraDense', layer, config);
  const state = new LoraLayer(layer, config, parts, prefix);
  state.merged = merged;
  states.set(layer, state);
  return state;
}

/** Turns a built dense layer into one with an adapter. Nothing here fails. */
export function convertLayer(
  layer: DenseInternals,
  config: LayerConfig,
  parts: LayerParts,
): LoraLayer {
  const { originalName } = layer.kernel as LayerVariable;
  const prefix = originalName.slice(0, originalName.lastIndexOf('/') + 1) || `${layer.name}/`;
  Object.setPrototypeOf(layer, loraDenseClass().prototype);
  const state = new LoraLayer(layer, config, parts, prefix);
  states.set(layer, state);
  return state;
}

/** Turns it back into a dense layer. */
export function restoreLayer(state: LoraLayer): void {
  state.remove();
  states.delete(state.layer);
  configs.delete(state.layer);
  Object.setPrototypeOf(state.layer, denseClass().prototype);
}

function requireConfig(op: string, config: unknown): asserts config is object {
  if (config === null || typeof config !== 'object') {
    throw wrongType(op, 'config', 'an object', config);
  }
}

/**
 * A dense layer with a frozen kernel and a trained adapter, for `tf.sequential` and `apply`.
 *
 *   y = activation(x · dequant(kernel) + scaling · (x · loraAᵀ) · loraBᵀ + bias)
 *
 * The layer has the class name `LoraDense`. `model.save` writes its settings, and its weights `NAME/lora_a`,
 * `NAME/lora_b`, `NAME/kernel` (in f32, [K, N]) and `NAME/bias`; `tf.loadLayersModel` loads them once this module is
 * imported. Kernel and bias are not trained.
 *
 * @param config the settings of `tf.layers.dense`, and those of the adapter
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_VALUE`, `ERR_FORMAT`, `ERR_UNSUPPORTED`
 * @example
 * const layer = loraDense({ units: 512, inputShape: [512], activation: 'relu', r: 8, loraAlpha: 16, format: 'nf4' });
 */
export function loraDense(config: DenseConfig & LoraConfig): Layer {
  requireConfig('loraDense', config);
  const made = new (loraDenseClass() as unknown as new (args: object) => Layer)(config);
  return made;
}

/** Conversions to and from layers of class `LoraDense`. */
export const LoraDense = Object.freeze({
  /**
   * Gives a dense layer an adapter, in place. Compile its model again afterwards.
   *
   * @param layer of `tf.layers.dense`, built
   * @returns the same layer
   * @throws TypeError `ERR_TYPE` · LowrankError `ERR_VALUE`, `ERR_FORMAT`, `ERR_UNSUPPORTED`, `ERR_NON_FINITE`; the
   *   layer is then as before
   * @example
   * LoraDense.fromDense(model.layers[1], { r: 8, loraAlpha: 16, format: 'nf4' });
   */
  fromDense(layer: Layer, config: LoraConfig): Layer {
    const op = 'LoraDense.fromDense';
    const dense: unknown = layer;
    if (!isDense(dense)) throw wrongType(op, 'layer', 'a layer of tf.layers.dense', layer);
    requireConfig(op, config);
    const checked = readConfig(op, config);
    if (!dense.built || dense.kernel === null) {
      fail('ERR_VALUE', op, 'layer', 'built (with weights)', 'one without an input shape');
    }
    convertLayer(dense, checked, prepareLayer(op, dense, checked));
    return layer;
  },
  /** Is it a layer with an adapter? */
  is(layer: unknown): layer is Layer {
    return layer !== null && typeof layer === 'object' && isLoraLayer(layer);
  },
});
