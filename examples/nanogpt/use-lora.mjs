/**
 * LoRA of `@genai-fi/nanogpt` in the fused kernels. The package adds scale · A · B to the weight, [K, N], at every read.
 * Here its layers call `loraLinear` instead, with the frozen weight as it is stored.
 */

import * as tf from '@tensorflow/tfjs';
import { quantize } from 'lowrank';
import { fromTfjs, loraLinear } from 'lowrank/tfjs';

/**
 * @param block a block of the model, with `attn` and `mlp`
 * @param adapter its `name`, `alpha`, and the `format` of the frozen weights (default: f32)
 */
function useLoraInBlock(block, { name, alpha, format }, weights) {
  const { attn, mlp, weightStore } = { ...block, weightStore: block.weightStore };
  /** x · W + scale · x · A · B, or undefined if that weight has no adapter. */
  const linear = (x, variable) => {
    const [a, b] = [`${variable}_${name}_loraA`, `${variable}_${name}_loraB`];
    if (!weightStore.hasVariable(a)) return undefined;
    const [loraA, loraB] = [weightStore.getRawVariable(a), weightStore.getRawVariable(b)];
    let w = weights.get(variable);
    if (w === undefined) {
      w = tf.tidy(() => fromTfjs(tf.transpose(weightStore.getRawVariable(variable))));
      if (format !== undefined) w = quantize(w, { format });
      weights.set(variable, w);
    }
    const scaling = alpha / loraB.shape[0];
    return loraLinear(x, w, tf.transpose(loraA), tf.transpose(loraB), { scaling });
  };
  const own = { forward: mlp.forward, getQKV: attn.getQKV, project: attn.getOutputProjection };
  mlp.forward = (attrs, x) =>
    tf.tidy(() => {
      const h = linear(x, mlp.MLPHIDDEN);
      if (h === undefined || attrs.dropout > 0) return own.forward.call(mlp, attrs, x);
      const active = tf.engine().runKernel('Gelu', { x: h });
      return linear(active, mlp.MLPOUT);
    });
  attn.getQKV = (x) => {
    const all = linear(x, attn.ATTN);
    if (all === undefined) return own.getQKV.call(attn, x);
    const [batch, length, width] = x.shape;
    const { nHead } = attn.config;
    return tf
      .split(all, 3, -1)
      .map((part) =>
        tf.transpose(tf.reshape(part, [batch, length, nHead, width / nHead]), [0, 2, 1, 3]),
      );
  };
  attn.getOutputProjection = (heads) => {
    const [batch, nHead, length, size] = heads.shape;
    const x = tf.reshape(tf.transpose(heads, [0, 2, 1, 3]), [batch, length, nHead * size]);
    return linear(x, attn.PROJ) ?? own.project.call(attn, heads);
  };
}

/**
 * Makes the layers of a model compute LoRA in the fused kernels. The adapter is the package's own: its variables are
 * trained, saved and merged as before.
 *
 * @returns a function that frees the copies of the frozen weights
 */
export function useLora(model, adapter) {
  const weights = new Map();
  for (const block of model.blocks) useLoraInBlock(block, adapter, weights);
  return () => {
    for (const w of weights.values()) w.dispose();
    weights.clear();
  };
}
