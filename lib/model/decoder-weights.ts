/**
 * The frozen weights of a decoder on a device, read tensor by tensor, so that at no moment more than one stands in f32.
 */

import type { RawTensor } from '../checkpoint/raw-tensor.js';
import { rawToFloat32 } from '../checkpoint/raw-tensor.js';
import { type Device, defaultDevice } from '../core/device.js';
import type { DType } from '../core/dtype.js';
import { notConstructed } from '../core/errors.js';
import { track } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import type { BaseWeight } from '../ops/base-weight.js';
import { type BaseFormat, storeWeight } from './base-format.js';
import type { LayerPlaces, LinearPlace, TensorPlace } from './decoder-tensors.js';
import type { HfModel } from './hf-model.js';

/** A frozen linear layer. */
export interface LinearWeights {
  readonly place: LinearPlace;
  /** [N, K] */
  readonly w: BaseWeight;
  /** [N] */
  readonly bias?: Tensor;
}

/** The frozen weights of one block; see {@link LayerPlaces}. */
export interface LayerWeights {
  readonly attentionNorm: Tensor;
  readonly qkv: readonly LinearWeights[];
  readonly qNorm?: Tensor;
  readonly kNorm?: Tensor;
  readonly attentionOutput: LinearWeights;
  readonly attentionOutputNorm?: Tensor;
  readonly mlpNorm: Tensor;
  readonly gateUp: readonly LinearWeights[];
  readonly down: LinearWeights;
  readonly mlpOutputNorm?: Tensor;
}

/** How {@link DecoderWeights.load} stores a model. */
export interface LoadOptions {
  /** Of the linear layers of the blocks. Default `none`: dense, in the dtype of the file. */
  readonly format?: BaseFormat;
  /** Default {@link defaultDevice}. */
  readonly device?: Device;
  /** Called after each block, with how many of how many are there. */
  readonly onLayer?: (done: number, total: number) => void;
}

const kDense: Partial<Record<RawTensor['dtype'], DType>> = { BF16: 'bf16', F16: 'f16' };

/** The frozen weights of a model. */
export class DecoderWeights implements Disposable {
  readonly #made: readonly Disposable[];

  /** @internal use {@link DecoderWeights.load} */
  constructor(
    /** [vocabSize, hiddenSize] */
    readonly embedding: Tensor,
    readonly layers: readonly LayerWeights[],
    readonly norm: Tensor,
    /** Its weight is the embedding where the head is tied. */
    readonly head: LinearWeights,
    readonly device: Device,
    made: readonly Disposable[],
  ) {
    if (!Array.isArray(made)) throw notConstructed('DecoderWeights', 'DecoderWeights.load');
    this.#made = made;
    track(this);
  }

  /**
   * Reads and stores all weights of a model folder.
   * @throws what the reader of the folder and `quantize` throw; nothing stays allocated
   */
  static load(model: HfModel, options: LoadOptions = {}): DecoderWeights {
    const { format = { format: 'none' }, device = defaultDevice(), onLayer } = options;
    const made: Disposable[] = [];
    const keep = <T extends Disposable>(value: T): T => {
      made.push(value);
      return value;
    };
    const dense = ({ name, shape }: TensorPlace): Tensor => {
      const raw = model.read(name);
      const dtype = kDense[raw.dtype];
      const place = { device, ...(dtype === undefined ? {} : { dtype }) };
      const data = dtype === undefined ? rawToFloat32(raw) : (raw.data as Uint16Array);
      return keep(Tensor.from(data, shape, place));
    };
    const linear = (place: LinearPlace): LinearWeights => {
      const { weight, bias, N, K } = place;
      const w =
        format.format === 'none'
          ? dense(weight)
          : keep(storeWeight(model.readFloat32(weight.name), [N, K], format, device));
      return { place, w, ...(bias === undefined ? {} : { bias: dense(bias) }) };
    };
    try {
      const { places } = model;
      const embedding = dense(places.embedding);
      const layers = places.layers.map((layer, index) => {
        const weights = layerWeights(layer, dense, linear);
        onLayer?.(index + 1, places.layers.length);
        return weights;
      });
      const norm = dense(places.norm);
      const tied = places.head.weight === places.embedding;
      const head = { place: places.head, w: tied ? embedding : dense(places.head.weight) };
      return new DecoderWeights(embedding, layers, norm, head, device, made);
    } catch (error) {
      for (const each of made) each[Symbol.dispose]();
      throw error;
    }
  }

  /** Frees all weights. Twice is a no-op. */
  dispose(): void {
    for (const each of this.#made) each[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function layerWeights(
  places: LayerPlaces,
  dense: (place: TensorPlace) => Tensor,
  linear: (place: LinearPlace) => LinearWeights,
): LayerWeights {
  const { qNorm, kNorm, attentionOutputNorm, mlpOutputNorm } = places;
  return {
    attentionNorm: dense(places.attentionNorm),
    qkv: places.qkv.map(linear),
    ...(qNorm === undefined ? {} : { qNorm: dense(qNorm) }),
    ...(kNorm === undefined ? {} : { kNorm: dense(kNorm) }),
    attentionOutput: linear(places.attentionOutput),
    ...(attentionOutputNorm === undefined
      ? {}
      : { attentionOutputNorm: dense(attentionOutputNorm) }),
    mlpNorm: dense(places.mlpNorm),
    gateUp: places.gateUp.map(linear),
    down: linear(places.down),
    ...(mlpOutputNorm === undefined ? {} : { mlpOutputNorm: dense(mlpOutputNorm) }),
  };
}
