/**
 * The view of a Llama model that the trainer on TensorFlow.js works with. It computes a part of what a
 * {@link DecoderConfig} can say.
 */

import type { JsonObject } from '../checkpoint/files/json-file.js';
import { LowrankError } from '../core/errors.js';
import { llama } from './architectures/llama.js';
import { buildDecoder, type CommonConfig } from './config/common.js';
import type { DecoderConfig, RotaryScaling } from './config/decoder-config.js';
import { decoderPlaces, tensorShapes } from './decoder-tensors.js';
import { parseDecoderConfig } from './read-config.js';

/** How rotary position embeddings are stretched; `default` is not at all. */
export type RopeScaling = Extract<RotaryScaling, { type: 'default' | 'linear' | 'llama3' }>;

/** A checked Llama configuration: the fields of `config.json`, in camel case, with defaults filled in. */
export interface LlamaConfig extends CommonConfig {
  readonly ropeTheta: number;
  readonly ropeScaling: RopeScaling;
}

/**
 * A decoder as a Llama configuration.
 *
 * Supported: RMSNorm, rotary embeddings (default, `linear` and `llama3` scaling), grouped-query attention, SwiGLU with SiLU,
 * tied or untied head. Refused: other architectures, attention and MLP biases, other activations and rope types.
 *
 * @throws LowrankError `ERR_UNSUPPORTED`
 */
export function llamaConfigOf(op: string, what: string, decoder: DecoderConfig): LlamaConfig {
  const unsupported = (text: string): never => {
    throw new LowrankError('ERR_UNSUPPORTED', `${op}: ${what}: ${text}`, { op });
  };
  if (decoder.architecture !== llama.name) {
    const expected = `of the architecture ${llama.className} (model_type "${llama.modelType}")`;
    unsupported(`the model must be ${expected}, got ${decoder.architecture}`);
  }
  const [layer] = decoder.layers;
  if (layer === undefined) return unsupported('num_hidden_layers must be at least 1, got 0');
  const { attention, mlp } = layer;
  if (attention.qkvBias) unsupported('attention_bias must be false, got true');
  if (mlp.bias) unsupported('mlp_bias must be false, got true');
  if (mlp.gate !== 'silu') unsupported(`hidden_act must be "silu", got ${mlp.gate}`);
  const { theta, scaling } = attention.rotary;
  if (scaling.type === 'yarn' || scaling.type === 'longrope') {
    const expected = 'of type "default", "linear" or "llama3"';
    return unsupported(`rope_scaling must be ${expected}, got ${scaling.type}`);
  }
  const { bosTokenId } = decoder;
  return {
    hiddenSize: decoder.hiddenSize,
    intermediateSize: mlp.intermediateSize,
    numHiddenLayers: decoder.layers.length,
    numAttentionHeads: attention.heads,
    numKeyValueHeads: attention.kvHeads,
    headDim: attention.headDim,
    rmsNormEps: decoder.norm.eps,
    ropeTheta: theta,
    ropeScaling: scaling,
    vocabSize: decoder.vocabSize,
    tieWordEmbeddings: decoder.tieWordEmbeddings,
    maxPositionEmbeddings: decoder.maxPositionEmbeddings,
    ...(bosTokenId === undefined ? {} : { bosTokenId }),
    eosTokenIds: decoder.eosTokenIds,
  };
}

/** Checks a parsed `config.json` of a Llama model; see {@link llamaConfigOf}. */
export function parseLlamaConfig(op: string, what: string, object: JsonObject): LlamaConfig {
  return llamaConfigOf(op, what, parseDecoderConfig(op, what, object));
}

/** Every tensor of a Llama checkpoint with its shape; see {@link tensorShapes}. */
export function llamaTensorShapes(config: LlamaConfig): Map<string, readonly number[]> {
  const rotary = { theta: config.ropeTheta, dims: config.headDim, scaling: config.ropeScaling };
  const decoder = buildDecoder(config, { architecture: llama.name, layer: () => ({ rotary }) });
  return tensorShapes(decoderPlaces(decoder));
}
