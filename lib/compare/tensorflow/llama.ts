/**
 * The Llama architecture on TensorFlow.js' own ops: the weight is dense, and base and low-rank branch are separate
 * products. It exists to be compared with.
 *
 *   x = embed(ids)
 *   x = x + o_proj(attention(q_proj(n), k_proj(n), v_proj(n))),  n = norm(x)
 *   x = x + down_proj(swiglu(gate_proj(n), up_proj(n))),          n = norm(x)
 *   loss = cross-entropy(head(norm(x)))
 */

import type { Scalar, Tensor } from '@tensorflow/tfjs';
import { tensorFrom, valuesOf } from '../../tfjs/ops/backend-memory.js';
import { tensorflow } from '../../tfjs/ops/tensorflow.js';
import type { StepSnapshot } from '../../train/snapshot.js';
import { attention } from './attention.js';
import { readyTensorflow } from './backend.js';
import { crossEntropy } from './cross-entropy.js';
import { type RotaryTable, rotaryTable } from './heads.js';
import { rmsNorm } from './norm.js';
import { swiglu } from './swiglu.js';

/** The loss of a step, and the gradient of each factor by its name in the snapshot. */
export interface StepGradients {
  readonly loss: number;
  readonly gradients: ReadonlyMap<string, Float32Array>;
}

/** A training step without an update on TensorFlow.js. */
export class TensorflowStep {
  /** Linear weights as [K, N], the order in which the wasm backend multiplies fastest. */
  readonly #weights = new Map<string, Tensor>();
  readonly #factors = new Map<string, Tensor>();
  readonly #table: RotaryTable;
  readonly #step: StepSnapshot;
  /** `wasm`, or `cpu`, which takes ten times as long. */
  readonly backend: string;

  private constructor(step: StepSnapshot, backend: string) {
    this.#step = step;
    this.backend = backend;
    this.#table = rotaryTable(step.config, step.T);
    const tf = tensorflow();
    for (const [name, { shape, values }] of step.tensors) {
      if (/\.lora_[AB]$/.test(name)) {
        this.#factors.set(name, tf.keep(tf.tensor(values, [...shape])));
      } else if (shape.length === 2 && name !== 'model.embed_tokens.weight') {
        const turned = tf.tidy(() => tf.keep(tf.transpose(tf.tensor(values, [...shape]))));
        this.#weights.set(name, turned);
      }
    }
  }

  /** @throws LowrankError `ERR_UNSUPPORTED` if TensorFlow.js is not installed */
  static async start(step: StepSnapshot): Promise<TensorflowStep> {
    const backend = await readyTensorflow();
    return new TensorflowStep(step, backend);
  }

  /** Forward and backward passes over the step's batches. */
  run(): StepGradients {
    const tf = tensorflow();
    const { batches } = this.#step;
    const names = [...this.#factors.keys()];
    const gradients = new Map<string, Float32Array>();
    let total = 0;
    for (const { ids, targets } of batches) {
      tf.tidy(() => {
        const lossOf = (...factors: Tensor[]): Scalar =>
          this.#loss(ids, targets, new Map(names.map((name, i) => [name, factors[i] as Tensor])));
        const { value, grads } = tf.valueAndGrads(lossOf)([...this.#factors.values()]);
        total += (valuesOf(value)[0] as number) / batches.length;
        for (const [i, name] of names.entries()) {
          const own = valuesOf(grads[i] as Tensor);
          const sum = gradients.get(name) ?? new Float32Array(own.length);
          for (let j = 0; j < own.length; j++) {
            sum[j] = (sum[j] as number) + (own[j] as number) / batches.length;
          }
          gradients.set(name, sum);
        }
      });
    }
    return { loss: total, gradients };
  }

  #loss(ids: Int32Array, targets: Int32Array, factors: ReadonlyMap<string, Tensor>): Scalar {
    const tf = tensorflow();
    const { config, scaling, dropout, head, B, T } = this.#step;
    const linear = (x: Tensor, name: string): Tensor => {
      const base = tf.matMul(x, this.#weights.get(`${name}.weight`) as Tensor);
      const [a, b] = [factors.get(`${name}.lora_A`), factors.get(`${name}.lora_B`)];
      if (a === undefined || b === undefined) return base;
      const dropped = dropout > 0 ? tf.dropout(x, dropout) : x;
      const h = tf.matMul(dropped, a, false, true);
      return tf.add(base, tf.mul(tf.matMul(h, b, false, true), scaling));
    };
    const norm = (x: Tensor, name: string) =>
      rmsNorm(x, this.#values(`${name}.weight`), config.rmsNormEps);
    const D = config.hiddenSize;
    let x: Tensor = tensorFrom([B * T, D], (out) => {
      const table = this.#values('model.embed_tokens.weight');
      ids.forEach((id, row) => {
        out.set(table.subarray(id * D, (id + 1) * D), row * D);
      });
    });
    for (let layer = 0; layer < config.numHiddenLayers; layer++) {
      const at = `model.layers.${layer}`;
      const n = norm(x, `${at}.input_layernorm`);
      const [q, k, v] = ['q', 'k', 'v'].map((name) => linear(n, `${at}.self_attn.${name}_proj`));
      const heads = attention(
        q as Tensor,
        k as Tensor,
        v as Tensor,
        { ...config, B, T },
        this.#table,
      );
      x = tf.add(x, linear(heads, `${at}.self_attn.o_proj`));
      const m = norm(x, `${at}.post_attention_layernorm`);
      const [gate, up] = ['gate', 'up'].map((name) => linear(m, `${at}.mlp.${name}_proj`));
      x = tf.add(x, linear(swiglu(gate as Tensor, up as Tensor), `${at}.mlp.down_proj`));
    }
    const logits = tf.matMul(norm(x, 'model.norm'), this.#weights.get(head) as Tensor);
    return crossEntropy(logits, targets);
  }

  #values(name: string): Float32Array {
    return (this.#step.tensors.get(name) as { values: Float32Array }).values;
  }

  /** Frees the tensors of TensorFlow.js. */
  dispose(): void {
    for (const tensor of [...this.#weights.values(), ...this.#factors.values()]) tensor.dispose();
    this.#weights.clear();
    this.#factors.clear();
  }
}
