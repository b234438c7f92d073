/**
 * The two ways of running the model's matrix products: in this library's fused kernels, and in stock
 * TensorFlow.js ops over dense weights. Everything else of a training step is the same code, so that
 * the difference in time is the kernels'.
 */

import type { Tensor as TfTensor } from '@tensorflow/tfjs';
import { dequantize, type QuantizedWeight, Tensor } from '../index.js';
import { matMul } from '../tfjs/batch-matmul.js';
import { frozenLinear } from '../tfjs/frozen-linear.js';
import { loraLinear } from '../tfjs/lora-linear.js';
import { tensorflow } from '../tfjs/tensorflow.js';

/** A frozen linear layer of the base model. */
export interface BaseLinear {
  /** As in the checkpoint, without `.weight`: `model.layers.0.self_attn.q_proj`. */
  readonly name: string;
  readonly N: number;
  readonly K: number;
  /** [N, K] */
  readonly w: QuantizedWeight | Tensor;
}

/** An adapter's factors during one step. */
export interface AdapterFactors {
  /** [r, K] */
  readonly loraA: TfTensor;
  /** [N, r] */
  readonly loraB: TfTensor;
  readonly scaling: number;
  readonly dropout: number;
  /** Names the dropout mask of this layer at this step. */
  readonly seed: number;
}

/** How the model multiplies matrices. */
export interface ModelKernels {
  readonly name: 'fused' | 'unfused';
  /**
   * y = x · wᵀ, plus the low-rank branch where there is an adapter.
   *
   * @param x [M, K]
   * @param inputGrad whether anything before x is trained
   * @returns [M, N]
   */
  linear(x: TfTensor, layer: BaseLinear, adapter?: AdapterFactors, inputGrad?: boolean): TfTensor;
  /** Batched product, as tf.matMul. */
  matMul(a: TfTensor, b: TfTensor, transposeA: boolean, transposeB: boolean): TfTensor;
  dispose(): void;
}

/** This library's kernels: fused LoRA over the packed weight. */
export class FusedKernels implements ModelKernels {
  readonly name = 'fused';

  linear(x: TfTensor, layer: BaseLinear, adapter?: AdapterFactors, inputGrad = true): TfTensor {
    if (adapter === undefined) return frozenLinear(x, layer.w);
    const { loraA, loraB, scaling, dropout, seed } = adapter;
    return loraLinear(x, layer.w, loraA, loraB, {
      scaling,
      dropout,
      seed,
      ...(inputGrad ? {} : { freeze: ['x'] }),
    });
  }

  matMul(a: TfTensor, b: TfTensor, transposeA: boolean, transposeB: boolean): TfTensor {
    return matMul(a, b, transposeA, transposeB);
  }

  dispose(): void {}
}

/**
 * Stock ops: the weight dequantised once and kept dense, base and low-rank branch as separate
 * products. Weights are kept as [K, N], the order in which the wasm backend multiplies fastest.
 */
export class UnfusedKernels implements ModelKernels {
  readonly name = 'unfused';
  private readonly dense = new Map<string, TfTensor>();

  linear(x: TfTensor, layer: BaseLinear, adapter?: AdapterFactors): TfTensor {
    const tf = tensorflow();
    const base = tf.matMul(x, this.denseWeight(layer));
    if (adapter === undefined) return base;
    const { loraA, loraB, scaling, dropout, seed } = adapter;
    const dropped = dropout > 0 ? tf.dropout(x, dropout, undefined, seed) : x;
    const h = tf.matMul(dropped, loraA, false, true);
    return tf.add(base, tf.mul(tf.matMul(h, loraB, false, true), scaling));
  }

  matMul(a: TfTensor, b: TfTensor, transposeA: boolean, transposeB: boolean): TfTensor {
    return tensorflow().matMul(a, b, transposeA, transposeB);
  }

  /** Dequantises a layer on first use. */
  private denseWeight(layer: BaseLinear): TfTensor {
    let dense = this.dense.get(layer.name);
    if (dense === undefined) {
      const tf = tensorflow();
      const full = layer.w instanceof Tensor ? layer.w : dequantize(layer.w);
      dense = tf.tidy(() =>
        tf.keep(tf.transpose(tf.tensor2d(full.readSync(), [layer.N, layer.K]))),
      );
      if (full !== layer.w) full.dispose();
      this.dense.set(layer.name, dense);
    }
    return dense;
  }

  dispose(): void {
    for (const dense of this.dense.values()) dense.dispose();
    this.dense.clear();
  }
}
