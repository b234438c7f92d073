/**
 * The frozen weights of a decoder on a device, read tensor by tensor, so that at no moment more than one stands in f32.
 */

import { planarToFloat32 } from '../checkpoint/planar/decode.js';
import type { RawTensor } from '../checkpoint/raw-tensor.js';
import { rawToFloat32 } from '../checkpoint/raw-tensor.js';
import { checkShape } from '../core/check-tensor.js';
import { type Device, defaultDevice } from '../core/device.js';
import { fail, notConstructed } from '../core/errors.js';
import { track } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { type BaseWeight, checkWeight } from '../ops/base-weight.js';
import { type BaseFormat, storeWeight } from './base-format.js';
import {
  type LayerPlaces,
  type LinearPlace,
  layerLinears,
  moduleOf,
  type TensorPlace,
} from './decoder-tensors.js';
import {
  type ExpertLayerWeights,
  type ExpertsWeights,
  kDense,
  loadExperts,
} from './expert-weights.js';
import type { LinearWeights } from './linear-weights.js';
import type { ModelFiles, OnTensor } from './model-files.js';
import { quantizedWeight } from './quantized-weight.js';

export type { LinearWeights } from './linear-weights.js';

/** The frozen weights of one block; see {@link LayerPlaces}. */
export interface LayerWeights {
  readonly attentionNorm: Tensor;
  readonly qkv: readonly LinearWeights[];
  readonly qNorm?: Tensor;
  readonly kNorm?: Tensor;
  /** [heads] f32 */
  readonly sinks?: Tensor;
  readonly attentionOutput: LinearWeights;
  readonly attentionOutputNorm?: Tensor;
  readonly mlpNorm: Tensor;
  readonly gateUp: readonly LinearWeights[];
  readonly down?: LinearWeights;
  /** In place of gate, up and down. */
  readonly experts?: ExpertLayerWeights;
  readonly mlpOutputNorm?: Tensor;
}

/** The linear layers of a block but those of experts, in the order of the forward pass. */
export function linearsOf({ qkv, attentionOutput, gateUp, down }: LayerWeights) {
  return [...qkv, attentionOutput, ...gateUp, ...(down === undefined ? [] : [down])];
}

/** The layers of all experts of a block. */
export function expertsOf({ experts }: LayerWeights): readonly ExpertsWeights[] {
  return experts === undefined ? [] : [experts.gateUp, experts.down];
}

/** How {@link DecoderWeights.load} stores a model. */
export interface LoadOptions {
  /**
   * Of the linear layers of the blocks that the files hold dense. Default `none`: as they are, in the dtype of the file.
   * Quantised layers stay as they are in any case.
   */
  readonly format?: BaseFormat;
  /** Default {@link defaultDevice}. */
  readonly device?: Device;
  /** Called with each tensor that is read, as it stands in the file. */
  readonly onTensor?: OnTensor;
  /**
   * Stores a linear layer of the blocks that the files hold dense, in place of `format`; undefined leaves it to that.
   * @param values [N, K] in f32, read when called
   * @returns a weight [N, K] on the device, which then belongs to the model
   */
  readonly store?: (place: LinearPlace, values: () => Float32Array) => BaseWeight | undefined;
}

/** What a model takes on its device, in bytes. */
export interface BaseMemory {
  /** The linear layers of the blocks as stored. */
  readonly linear_bytes: number;
  /** The same layers in f32. */
  readonly linearF32_bytes: number;
  /** Embedding, head and norms, which are not quantised. */
  readonly other_bytes: number;
}

/** The frozen weights of a model. */
export class DecoderWeights implements Disposable {
  readonly #made: Disposable[];

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
    this.#made = [...made];
    track(this);
  }

  /** Sizes of the weights. A tied head counts once. */
  get memory(): BaseMemory {
    const linears = this.layers.flatMap(linearsOf);
    const experts = this.layers.flatMap(expertsOf);
    const own = new Set([...linears, ...experts].map(({ w }) => w));
    const sizes = [
      ...linears.map(({ place: { N, K } }) => N * K),
      ...experts.map(({ place: { E, N, K } }) => E * N * K),
    ];
    const bytes = (list: Iterable<unknown>) =>
      [...list].reduce<number>((sum, each) => sum + (each as Tensor).byteLength, 0);
    return {
      linear_bytes: bytes(own),
      linearF32_bytes: sizes.reduce((sum, size) => sum + 4 * size, 0),
      other_bytes: bytes(this.#made) - bytes(own),
    };
  }

  /** Number of values of all tensors. */
  get parameterCount(): number {
    return this.#made.reduce((sum, each) => {
      const { shape } = each as unknown as Tensor;
      return sum + shape.reduce((a, b) => a * b, 1);
    }, 0);
  }

  /**
   * Reads and stores all weights of a model.
   * @throws what the reader of its files and `quantize` throw; nothing stays allocated
   */
  static load(model: ModelFiles, options: LoadOptions = {}): DecoderWeights {
    const steps = DecoderWeights.loading(model, options);
    for (;;) {
      const { done, value } = steps.next();
      if (done === true) return value;
    }
  }

  /**
   * {@link DecoderWeights.load} layer by layer, so that a caller may show progress or stop: then what was read is freed.
   * Yields how many of how many linear layers are there.
   */
  static *loading(
    model: ModelFiles,
    options: LoadOptions = {},
  ): Generator<{ readonly done: number; readonly total: number }, DecoderWeights> {
    const { format = { format: 'none' }, device = defaultDevice(), onTensor } = options;
    const made: Disposable[] = [];
    const keep = <T extends Disposable>(value: T): T => {
      made.push(value);
      return value;
    };
    const read = (name: string): RawTensor => {
      const raw = model.read(name);
      onTensor?.(name, raw);
      return raw;
    };
    const dense = ({ name, shape }: TensorPlace): Tensor => {
      const raw = read(name);
      const dtype = kDense[raw.dtype];
      const place = { device, ...(dtype === undefined ? {} : { dtype }) };
      const data = dtype === undefined ? rawToFloat32(raw) : (raw.data as Uint16Array);
      return keep(Tensor.from(data, shape, place));
    };
    const floats = ({ name, shape }: TensorPlace): Tensor =>
      Tensor.from(rawToFloat32(read(name)), shape, { device });
    const decoded = (place: TensorPlace): Tensor => {
      const module = moduleOf(place.name);
      if (model.layoutOf(module) === undefined) return dense(place);
      const { weight } = model.readQuantized(module, onTensor);
      return keep(Tensor.from(planarToFloat32(weight), place.shape, { device }));
    };
    const linear = (place: LinearPlace, kept = format.format === 'none'): LinearWeights => {
      const { weight, bias, N, K } = place;
      const values = () => rawToFloat32(read(weight.name));
      const stored =
        model.layoutOf(place.module) !== undefined
          ? quantizedWeight(model, place.module, device, onTensor)
          : options.store?.(place, values);
      const w =
        stored !== undefined
          ? keep(stored)
          : kept
            ? dense(weight)
            : keep(storeWeight(values(), [N, K], format, device));
      return { place, w, ...(bias === undefined ? {} : { bias: dense(bias) }) };
    };
    let whole = false;
    try {
      const { places } = model;
      const embedding = decoded(places.embedding);
      const total = places.layers.reduce(
        (sum, layer) => sum + layerLinears(layer).length + (layer.experts === undefined ? 0 : 2),
        0,
      );
      const source = { model, device, format, read, onTensor };
      const layers: LayerWeights[] = [];
      let done = 0;
      for (const layer of places.layers) {
        const linears: LinearWeights[] = [];
        for (const place of layerLinears(layer)) {
          linears.push(linear(place));
          yield { done: ++done, total };
        }
        const sinks = layer.sinks && keep(floats(layer.sinks));
        let experts: ExpertLayerWeights | undefined;
        if (layer.experts !== undefined) {
          const alone = (place: LinearPlace) => linear(place, true);
          const steps = loadExperts(layer.experts, source, keep, alone, dense);
          let step = steps.next();
          for (; step.done !== true; step = steps.next()) yield { done: ++done, total };
          experts = step.value;
        }
        layers.push({
          ...layerWeights(layer, dense, linears),
          ...(sinks === undefined ? {} : { sinks }),
          ...(experts === undefined ? {} : { experts }),
        });
      }
      const norm = dense(places.norm);
      const tied = places.head.weight === places.embedding;
      const w = tied
        ? embedding
        : model.layoutOf(places.head.module) === undefined
          ? dense(places.head.weight)
          : keep(quantizedWeight(model, places.head.module, device, onTensor));
      const head = { place: places.head, w };
      whole = true;
      return new DecoderWeights(embedding, layers, norm, head, device, made);
    } finally {
      if (!whole) for (const each of made) each[Symbol.dispose]();
    }
  }

  /**
   * Puts another weight in the place of a linear layer's, which is freed. The weight then belongs to the model.
   * @param w [N, K] on the device of the model
   * @throws ERR_VALUE if the blocks have no such linear layer · ERR_SHAPE · ERR_DEVICE
   */
  replace(module: string, w: BaseWeight): void {
    const op = 'DecoderWeights.replace';
    const layer = this.layers.flatMap(linearsOf).find(({ place }) => place.module === module);
    if (layer === undefined) {
      fail('ERR_VALUE', op, 'module', 'a linear layer of the blocks', JSON.stringify(module));
    }
    const { N, K } = layer.place;
    checkShape(op, 'w', checkWeight(op, w).weight as Tensor, [N, K]);
    if (w.device !== this.device) fail('ERR_DEVICE', op, 'w', `on ${this.device}`, w.device);
    const before = layer.w;
    (layer as { w: BaseWeight }).w = w;
    this.#made[this.#made.indexOf(before)] = w;
    before.dispose();
  }

  /** Frees all weights. Twice is a no-op. */
  dispose(): void {
    for (const each of this.#made) each[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** @param linears of {@link layerLinears} */
function layerWeights(
  places: LayerPlaces,
  dense: (place: TensorPlace) => Tensor,
  linears: readonly LinearWeights[],
): LayerWeights {
  const { qkv, qNorm, kNorm, attentionOutputNorm, gateUp, mlpOutputNorm } = places;
  const rest = linears.slice(qkv.length);
  return {
    attentionNorm: dense(places.attentionNorm),
    qkv: linears.slice(0, qkv.length),
    ...(qNorm === undefined ? {} : { qNorm: dense(qNorm) }),
    ...(kNorm === undefined ? {} : { kNorm: dense(kNorm) }),
    attentionOutput: rest[0] as LinearWeights,
    ...(attentionOutputNorm === undefined
      ? {}
      : { attentionOutputNorm: dense(attentionOutputNorm) }),
    mlpNorm: dense(places.mlpNorm),
    gateUp: rest.slice(1, 1 + gateUp.length),
    ...(places.down === undefined ? {} : { down: rest[1 + gateUp.length] as LinearWeights }),
    ...(mlpOutputNorm === undefined ? {} : { mlpOutputNorm: dense(mlpOutputNorm) }),
  };
}
