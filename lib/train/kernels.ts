/**
 * The two implementations of the model's matrix products: this library's fused kernels, and stock
 * TensorFlow.js ops over dense weights. Everything else of a training step is the same code, so that
 * the difference in time is that of the kernels.
 */

import type { Tensor as TfTensor } from '@tensorflow/tfjs';
import { type AlphaConfig, scalingOf } from '../adapters/parts/scaling.js';
import { fail } from '../core/errors.js';
import { type Adapter, dequantize, type QuantizedWeight, Tensor } from '../index.js';
import { adapterLinear } from '../tfjs/adapter-linear.js';
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

/** A layer's adapter during one step. */
export interface LayerAdapter {
  readonly adapter: Adapter;
  /** Its trained tensors by name. */
  readonly parameters: Readonly<Record<string, TfTensor>>;
  /** Is dropout on? */
  readonly training: boolean;
  /** Seed of the dropout mask of this layer at this step. */
  readonly seed: number;
}

/** Is it LoRA with two factors and nothing else? Stock ops and loraLinear do not support a loraBias. */
function isPlainLora(method: string, parameters: Readonly<Record<string, unknown>>): boolean {
  return method === 'lora' && parameters.loraBias === undefined;
}

/** The parts of plain LoRA; `undefined` for another method. */
function loraOf({ adapter, parameters, training }: LayerAdapter) {
  if (!isPlainLora(adapter.method, parameters)) return undefined;
  const { loraA, loraB } = parameters as Record<'loraA' | 'loraB', TfTensor>;
  const config = adapter.config as AlphaConfig;
  const dropout = training ? config.dropout : 0;
  return { loraA, loraB, scaling: scalingOf(config), dropout };
}

/** How the model multiplies matrices. */
export interface ModelKernels {
  readonly name: 'fused' | 'unfused';
  /**
   * y = x · wᵀ, with the adapter if there is one.
   *
   * @param x [M, K]
   * @param inputGrad is anything before x trained?
   * @returns [M, N]
   */
  linear(x: TfTensor, layer: BaseLinear, adapter?: LayerAdapter, inputGrad?: boolean): TfTensor;
  /** Batched product, like tf.matMul. */
  matMul(a: TfTensor, b: TfTensor, transposeA: boolean, transposeB: boolean): TfTensor;
  dispose(): void;
}

/** This library's kernels: fused LoRA over the packed weight. */
export class FusedKernels implements ModelKernels {
  readonly name = 'fused';

  linear(x: TfTensor, layer: BaseLinear, adapter?: LayerAdapter, inputGrad = true): TfTensor {
    if (adapter === undefined) return frozenLinear(x, layer.w);
    const lora = loraOf(adapter);
    const { seed, training, parameters } = adapter;
    if (lora === undefined) {
      return adapterLinear(x, layer.w, adapter.adapter, parameters, { seed, training, inputGrad });
    }
    const { loraA, loraB, scaling, dropout } = lora;
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
 * Stock ops: the weight is dequantised once and kept dense; base and low-rank branch are separate
 * products. Weights are stored as [K, N], the order in which the wasm backend multiplies fastest.
 */
export class UnfusedKernels implements ModelKernels {
  readonly name = 'unfused';
  private readonly dense = new Map<string, TfTensor>();

  linear(x: TfTensor, layer: BaseLinear, adapter?: LayerAdapter): TfTensor {
    const tf = tensorflow();
    const base = tf.matMul(x, this.denseWeight(layer));
    if (adapter === undefined) return base;
    const lora = loraOf(adapter);
    if (lora === undefined) {
      return fail(
        'ERR_UNSUPPORTED',
        'unfused',
        'the method',
        'lora without loraBias',
        adapter.adapter.method,
      );
    }
    const { seed } = adapter;
    const { loraA, loraB, scaling, dropout } = lora;
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
