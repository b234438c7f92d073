/**
 * The Llama architecture: pre-norm blocks of causal attention with rotary embeddings and of a gated
 * MLP, over a residual stream.
 *
 *   x = embed(ids)
 *   x = x + o_proj(attention(q_proj(n), k_proj(n), v_proj(n))),  n = norm(x)
 *   x = x + down_proj(swiglu(gate_proj(n), up_proj(n))),          n = norm(x)
 *   logits = head(norm(x))
 */

import type { Tensor } from '@tensorflow/tfjs';
import type { LlamaConfig } from '../model/llama-config.js';
import { tensorFrom } from '../tfjs/backend-memory.js';
import { tensorflow } from '../tfjs/tensorflow.js';
import { attention } from './attention.js';
import type { BaseModel, LinearName } from './base-model.js';
import { type RotaryTable, rotaryTable } from './heads.js';
import type { LayerAdapter, ModelKernels } from './kernels.js';
import { rmsNorm } from './norm.js';
import { swiglu } from './swiglu.js';

/** Token ids of a batch, [B, T] row-major. */
export interface TokenBatch {
  readonly ids: Int32Array;
  readonly B: number;
  readonly T: number;
}

/** The adapter of a layer in this pass, or `undefined` if it has none. */
export type AdapterLookup = (layerName: string) => LayerAdapter | undefined;

const tables = new WeakMap<LlamaConfig, { T: number; table: RotaryTable }>();

/** Rotary angles for at least T positions; a longer table starts with a shorter one. */
function tableFor(config: LlamaConfig, T: number): RotaryTable {
  let known = tables.get(config);
  if (known === undefined || known.T < T) {
    const length = Math.max(T, Math.min(2 * T, config.maxPositionEmbeddings));
    known = { T: length, table: rotaryTable(config, length) };
    tables.set(config, known);
  }
  return known.table;
}

/**
 * The features of every position before the head, normalised.
 *
 * @param adapters the adapters to apply; without them, the base model
 * @returns [B·T, hiddenSize]
 */
export function llamaFeatures(
  base: BaseModel,
  { ids, B, T }: TokenBatch,
  kernels: ModelKernels,
  adapters: AdapterLookup = () => undefined,
): Tensor {
  const tf = tensorflow();
  const { config } = base;
  const table = tableFor(config, T);
  let x: Tensor = tensorFrom([B * T, config.hiddenSize], (out) => base.embed(ids, out));
  // Nothing before the first adapter is trained, so nothing there needs a gradient.
  let trainedBefore = false;
  for (const layer of base.layers) {
    const linear = (input: Tensor, name: LinearName, inputGrad: boolean) =>
      kernels.linear(input, layer.linear[name], adapters(layer.linear[name].name), inputGrad);
    const adapted = (...names: LinearName[]) =>
      names.some((name) => adapters(layer.linear[name].name) !== undefined);

    const attentionInput = rmsNorm(x, layer.inputNorm, config.rmsNormEps);
    const q = linear(attentionInput, 'q_proj', trainedBefore);
    const k = linear(attentionInput, 'k_proj', trainedBefore);
    const v = linear(attentionInput, 'v_proj', trainedBefore);
    trainedBefore ||= adapted('q_proj', 'k_proj', 'v_proj');
    const heads = attention(q, k, v, { ...config, B, T }, table, kernels);
    x = tf.add(x, linear(heads, 'o_proj', trainedBefore));
    trainedBefore ||= adapted('o_proj');

    const mlpInput = rmsNorm(x, layer.postAttentionNorm, config.rmsNormEps);
    const gate = linear(mlpInput, 'gate_proj', trainedBefore);
    const up = linear(mlpInput, 'up_proj', trainedBefore);
    trainedBefore ||= adapted('gate_proj', 'up_proj');
    x = tf.add(x, linear(swiglu(gate, up), 'down_proj', trainedBefore));
    trainedBefore ||= adapted('down_proj');
  }
  return rmsNorm(x, base.norm, config.rmsNormEps);
}

/** Logits of every position, [B·T, vocabSize]. */
export function llamaLogits(base: BaseModel, features: Tensor, kernels: ModelKernels): Tensor {
  return kernels.linear(features, base.head);
}
