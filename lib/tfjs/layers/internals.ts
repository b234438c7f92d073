/** What the layers of TensorFlow.js have at run time and their types leave out. */

import type { layers, Tensor, Variable } from '@tensorflow/tfjs';
import { tensorflow } from '../ops/tensorflow.js';

/** A layer of TensorFlow.js. */
export type Layer = layers.Layer;

/** A weight of a layer. Its value is a variable, which `read` returns and `write` assigns. */
export interface LayerVariable {
  readonly shape: readonly number[];
  readonly name: string;
  readonly originalName: string;
  readonly dtype: 'float32' | 'int32' | 'bool' | 'complex64' | 'string';
  readonly constraint: unknown;
  trainable: boolean;
  val: Variable | Tensor;
  read(): Tensor;
  write(value: Tensor): this;
  dispose(): void;
}

/** A layer, and the lists of weights behind `trainableWeights` and `nonTrainableWeights`. */
export interface LayerInternals {
  readonly name: string;
  built: boolean;
  trainable: boolean;
  _trainableWeights: LayerVariable[];
  _nonTrainableWeights: LayerVariable[];
  _addedWeightNames: string[];
  getClassName(): string;
  getConfig(): Record<string, unknown>;
  addWeight(
    name: string,
    shape: readonly number[],
    dtype: 'float32',
    initializer: { apply(shape: readonly number[], dtype?: string): Tensor },
    regularizer: undefined,
    trainable: boolean,
  ): LayerVariable;
  disposeWeights(): number;
}

/** A dense layer. */
export interface DenseInternals extends LayerInternals {
  readonly units: number;
  kernel: LayerVariable | null;
  bias: LayerVariable | null;
  readonly activation: { apply(x: Tensor): Tensor; getClassName(): string };
  build(inputShape: unknown): void;
  call(inputs: Tensor | Tensor[], kwargs: CallOptions): Tensor | Tensor[];
}

/** What a model passes to the layers' `call`. */
export type CallOptions = Readonly<Record<string, unknown>>;

/** A class of layers. */
export interface LayerClass<L> {
  new (args: never): L;
  readonly className: string;
  readonly prototype: L;
}

const denseClasses = new WeakMap<object, LayerClass<DenseInternals>>();

/** The class of `tf.layers.dense`, which TensorFlow.js does not export. */
export function denseClass(): LayerClass<DenseInternals> {
  const tf = tensorflow();
  let found = denseClasses.get(tf.layers.Layer);
  if (found === undefined) {
    // With a name of its own, so that the numbers in the names of the program's layers stay the same.
    const layer = tf.layers.dense({ units: 1, name: 'lowrank' });
    found = layer.constructor as unknown as LayerClass<DenseInternals>;
    denseClasses.set(tf.layers.Layer, found);
  }
  return found;
}

/** Is it a dense layer of the TensorFlow.js in use, of exactly that class? */
export function isDense(layer: unknown): layer is DenseInternals {
  return (
    layer !== null &&
    typeof layer === 'object' &&
    Object.getPrototypeOf(layer) === denseClass().prototype
  );
}
