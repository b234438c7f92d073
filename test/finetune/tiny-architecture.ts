/** Random tiny checkpoints of any architecture, with the tokenizer of bytes. */

import fs from 'node:fs';
import path from 'node:path';
import type { RawTensor } from '../../lib/checkpoint/raw-tensor.js';
import { writeSafetensors } from '../../lib/index.js';
import { decoderPlaces, tensorShapes } from '../../lib/model/decoder-tensors.js';
import { parseDecoderConfig } from '../../lib/model/read-config.js';
import { noise, type TinyCheckpointOptions, writeTinyCheckpoint } from './tiny-checkpoint.js';

/** What config.json says of an architecture beside the sizes. */
export const kFields = {
  llama: { architectures: ['LlamaForCausalLM'], model_type: 'llama' },
  mistral: { architectures: ['MistralForCausalLM'], model_type: 'mistral', sliding_window: 48 },
  qwen2: { architectures: ['Qwen2ForCausalLM'], model_type: 'qwen2' },
  qwen3: { architectures: ['Qwen3ForCausalLM'], model_type: 'qwen3' },
  phi3: { architectures: ['Phi3ForCausalLM'], model_type: 'phi3' },
  gemma2: {
    ...{ architectures: ['Gemma2ForCausalLM'], model_type: 'gemma2', sliding_window: 48 },
    ...{ query_pre_attn_scalar: 8, hidden_activation: 'gelu_pytorch_tanh' },
  },
  gemma3: {
    ...{ architectures: ['Gemma3ForCausalLM'], model_type: 'gemma3_text', sliding_window: 48 },
    ...{ query_pre_attn_scalar: 8, hidden_activation: 'gelu_pytorch_tanh' },
  },
  mixtral: {
    ...{ architectures: ['MixtralForCausalLM'], model_type: 'mixtral' },
    ...{ num_local_experts: 4, num_experts_per_tok: 2 },
  },
  qwen3_moe: {
    ...{ architectures: ['Qwen3MoeForCausalLM'], model_type: 'qwen3_moe' },
    ...{ num_experts: 4, num_experts_per_tok: 2, moe_intermediate_size: 32 },
  },
  gpt_oss: {
    ...{ architectures: ['GptOssForCausalLM'], model_type: 'gpt_oss' },
    ...{ num_local_experts: 4, num_experts_per_tok: 2, sliding_window: 48 },
  },
} as const;

export type ArchitectureName = keyof typeof kFields;

/** Writes a model of an architecture with random weights, and the tokenizer of bytes. */
export function writeTinyArchitecture(
  model: string,
  name: ArchitectureName,
  options: TinyCheckpointOptions = {},
): void {
  writeTinyCheckpoint(model, {
    ...{ hiddenSize: 32, headDim: 8, intermediateSize: 32 },
    ...options,
    config: { ...kFields[name], ...options.config },
  });
  const file = path.join(model, 'config.json');
  const config = JSON.parse(fs.readFileSync(file, 'utf8'));
  const random = noise(3);
  const tensors = new Map<string, RawTensor>();
  const places = decoderPlaces(parseDecoderConfig('test', file, config));
  const offset = name.startsWith('gemma') ? 0 : 1;
  for (const [tensor, shape] of tensorShapes(places)) {
    const isNorm = shape.length === 1 && tensor.endsWith('norm.weight');
    const center = isNorm ? offset : 0;
    const bound = shape.length === 1 ? 0.2 : Math.sqrt(3 / (shape.at(-1) as number));
    const size = shape.reduce((a, b) => a * b, 1);
    const data = Float32Array.from({ length: size }, () => center + bound * random());
    tensors.set(tensor, { dtype: 'F32', shape, data });
  }
  writeSafetensors(path.join(model, 'model.safetensors'), tensors, { format: 'pt' });
}
