/** A training step in plain arrays, for trainers that do not have this library's tensors. */

import { type AlphaConfig, scalingOf } from '../adapters/parts/scaling.js';
import type { Tensor } from '../core/tensor.js';
import type { LinearWeights } from '../model/decoder-weights.js';
import { linearsOf } from '../model/decoder-weights.js';
import { type LlamaConfig, llamaConfigOf } from '../model/llama-config.js';
import { dequantize } from '../ops/quantize.js';
import { QuantizedWeight } from '../quant/quantized-weight.js';
import type { Batch } from '../text/sequences.js';
import type { ModelTrainer } from './model-trainer.js';

/** A tensor in f32. */
export interface HostTensor {
  readonly shape: readonly number[];
  readonly values: Float32Array;
}

/** The next step of a trainer of plain LoRA on a Llama model. */
export interface StepSnapshot {
  readonly config: LlamaConfig;
  readonly B: number;
  readonly T: number;
  readonly batches: readonly Batch[];
  readonly scaling: number;
  readonly dropout: number;
  /** Name of the head's weight: `lm_head.weight`, also where it is the embedding. */
  readonly head: string;
  /** Weights by their names in the file, dequantised; factors as `MODULE.lora_A` [r, K] and `MODULE.lora_B` [N, r]. */
  readonly tensors: ReadonlyMap<string, HostTensor>;
}

/**
 * Copies the next step of a trainer.
 * @throws LowrankError `ERR_UNSUPPORTED` if the model is not a Llama
 */
export function stepSnapshot(trainer: ModelTrainer): StepSnapshot {
  const { decoder, adapters, data, options } = trainer;
  const { weights } = decoder;
  const config = llamaConfigOf('finetune', 'the comparison', decoder.config);
  const tensors = new Map<string, HostTensor>();
  const add = (name: string, tensor: Tensor) =>
    tensors.set(name, { shape: tensor.shape, values: tensor.readSync() });
  const addLinear = ({ place, w }: LinearWeights) => {
    const name = `${place.module}.weight`;
    if (!QuantizedWeight.is(w)) {
      add(name, w);
      return;
    }
    const dense = dequantize(w);
    add(name, dense);
    dense.dispose();
  };
  for (const [at, layer] of weights.layers.entries()) {
    add(`model.layers.${at}.input_layernorm.weight`, layer.attentionNorm);
    add(`model.layers.${at}.post_attention_layernorm.weight`, layer.mlpNorm);
    for (const linear of linearsOf(layer)) addLinear(linear);
  }
  add('model.norm.weight', weights.norm);
  add('model.embed_tokens.weight', weights.embedding);
  addLinear(weights.head);
  for (const { place, adapter } of adapters.layers) {
    add(`${place.module}.lora_A`, adapter.parameters.loraA as Tensor);
    add(`${place.module}.lora_B`, adapter.parameters.loraB as Tensor);
  }
  const alpha = adapters.layers[0]?.adapter.config as AlphaConfig;
  return {
    config,
    B: options.batch,
    T: data.train.T,
    batches: trainer.nextBatches(),
    scaling: scalingOf(alpha),
    dropout: alpha.dropout,
    head: `${weights.head.place.module}.weight`,
    tensors,
  };
}
