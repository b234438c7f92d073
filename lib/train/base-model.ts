/**
 * The frozen base model. Every linear layer is quantised straight from the file, one by one, so
 * that at most one layer is in f32 at any time.
 */

import { createHash } from 'node:crypto';
import { bytesOf, type RawTensor, rawToFloat32 } from '../checkpoint/raw-tensor.js';
import { type Device, defaultDevice, Tensor } from '../index.js';
import { type BaseFormat, storeWeight } from '../model/base-format.js';
import type { HfModel } from '../model/hf-model.js';
import { type LlamaConfig, llamaTensorShapes } from '../model/llama-config.js';
import type { BaseLinear } from './kernels.js';

/** The linear layers of a block, by their names in the checkpoint. */
export const linearNames = [
  'q_proj',
  'k_proj',
  'v_proj',
  'o_proj',
  'gate_proj',
  'up_proj',
  'down_proj',
] as const;
export type LinearName = (typeof linearNames)[number];

/** The half of a block that a layer belongs to. */
const kBlockPart: Readonly<Record<LinearName, 'self_attn' | 'mlp'>> = {
  q_proj: 'self_attn',
  k_proj: 'self_attn',
  v_proj: 'self_attn',
  o_proj: 'self_attn',
  gate_proj: 'mlp',
  up_proj: 'mlp',
  down_proj: 'mlp',
};

/** One block of the model. */
export interface BaseLayer {
  /** [hiddenSize] */
  readonly inputNorm: Float32Array;
  /** [hiddenSize] */
  readonly postAttentionNorm: Float32Array;
  readonly linear: Readonly<Record<LinearName, BaseLinear>>;
}

/** Sizes of the frozen weights in bytes. */
export interface BaseMemory {
  /** The linear layers as stored. */
  readonly linear_bytes: number;
  /** The same layers in f32. */
  readonly linearF32_bytes: number;
  /** Embedding, head and norms, which are not quantised. */
  readonly other_bytes: number;
}

/** A loaded base model; {@link dispose} frees its weights. */
export class BaseModel {
  constructor(
    readonly config: LlamaConfig,
    /** As in the file; rows are converted when they are looked up. */
    private readonly embedding: RawTensor,
    readonly layers: readonly BaseLayer[],
    /** [hiddenSize] */
    readonly norm: Float32Array,
    /** [vocabSize, hiddenSize]; the embedding itself if the head is tied. */
    readonly head: BaseLinear,
    /** Hash of every tensor that was read, with its name. */
    readonly sha256: string,
  ) {}

  get memory(): BaseMemory {
    let linear_bytes = 0;
    let linearF32_bytes = 0;
    for (const layer of this.layers) {
      for (const name of linearNames) {
        const { w, N, K } = layer.linear[name];
        linearF32_bytes += 4 * N * K;
        linear_bytes += w instanceof Tensor ? 4 * N * K : w.byteLength;
      }
    }
    const norms = this.norm.byteLength * (1 + 2 * this.layers.length);
    const other_bytes = this.embedding.data.byteLength + 4 * this.head.N * this.head.K + norms;
    return { linear_bytes, linearF32_bytes, other_bytes };
  }

  /**
   * Looks up token embeddings.
   * @param target [ids.length, hiddenSize]
   */
  embed(ids: Int32Array, target: Float32Array): void {
    const { dtype, data } = this.embedding;
    const D = this.config.hiddenSize;
    ids.forEach((id, row) => {
      const raw: RawTensor = { dtype, shape: [D], data: data.subarray(id * D, (id + 1) * D) };
      target.set(rawToFloat32(raw), row * D);
    });
  }

  dispose(): void {
    this.head.w.dispose();
    for (const layer of this.layers) {
      for (const name of linearNames) layer.linear[name].w.dispose();
    }
  }
}

/**
 * Loads and quantises the base model of a Hugging Face folder.
 *
 * @param onLayer called after each linear layer, with the finished and the total number
 * @throws LowrankError from the readers of the folder and `quantize`; nothing stays allocated
 */
export async function loadBaseModel(
  model: HfModel,
  format: BaseFormat,
  options: {
    readonly device?: Device;
    readonly onLayer?: (done: number, total: number) => void | Promise<void>;
  } = {},
): Promise<BaseModel> {
  const { config } = model;
  const device = options.device ?? defaultDevice();
  const shapes = llamaTensorShapes(config);
  const total = config.numHiddenLayers * linearNames.length;
  const made: { dispose(): void }[] = [];
  const hash = createHash('sha256');
  const read = (name: string): RawTensor => {
    const tensor = model.read(name);
    hash.update(name).update(bytesOf(tensor.data));
    return tensor;
  };
  const readFloat32 = (name: string) => rawToFloat32(read(name));
  const linear = (name: string, stored: BaseFormat): BaseLinear => {
    const [N, K] = shapes.get(`${name}.weight`) as [number, number];
    const w = storeWeight(readFloat32(`${name}.weight`), [N, K], stored, device);
    made.push(w);
    return { name, N, K, w };
  };
  try {
    const layers: BaseLayer[] = [];
    for (let layer = 0; layer < config.numHiddenLayers; layer++) {
      const prefix = `model.layers.${layer}`;
      const entries: [LinearName, BaseLinear][] = [];
      for (const name of linearNames) {
        entries.push([name, linear(`${prefix}.${kBlockPart[name]}.${name}`, format)]);
        await options.onLayer?.(made.length, total);
      }
      layers.push({
        inputNorm: readFloat32(`${prefix}.input_layernorm.weight`),
        postAttentionNorm: readFloat32(`${prefix}.post_attention_layernorm.weight`),
        linear: Object.fromEntries(entries) as Record<LinearName, BaseLinear>,
      });
    }
    const embeddingName = 'model.embed_tokens';
    const head = linear(config.tieWordEmbeddings ? embeddingName : 'lm_head', { format: 'none' });
    const embedding = read(`${embeddingName}.weight`);
    const norm = readFloat32('model.norm.weight');
    return new BaseModel(config, embedding, layers, norm, head, hash.digest('hex'));
  } catch (error) {
    for (const w of made) w.dispose();
    throw error;
  }
}
