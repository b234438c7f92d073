/**
 * The kind of layer that an adapter is on: a linear one, a convolution over its patches
 * ({@link Im2col}), or an embedding over one-hot rows ({@link oneHot}). The formulas are the same;
 * PEFT's files differ.
 */

import type { StoredLayer } from '../definition/peft-form.js';

/** Sizes of a convolution's kernel, one per dimension of the image; empty for a linear layer. */
export interface KernelConfig {
  readonly kernel: readonly number[];
}

export const kLinear: readonly number[] = [];

/** Number of values in a kernel. */
export const tapsOf = ({ kernel }: KernelConfig): number =>
  kernel.reduce((taps, size) => taps * size, 1);

/** Checks a kernel for a layer of K inputs, in the form of a method's check. */
export function checkKernel({ kernel }: KernelConfig, K: number) {
  const sizes = Array.isArray(kernel) && kernel.length <= 3;
  const whole = sizes && kernel.every((size) => Number.isInteger(size) && size > 0);
  return whole && K % tapsOf({ kernel }) === 0
    ? undefined
    : (['kernel', `up to three sizes whose product divides K (${K})`, `[${kernel}]`] as const);
}

/** A 1 for each of a kernel's dimensions. */
export const onesOf = ({ kernel }: KernelConfig): number[] => kernel.map(() => 1);

/** Settings of a method that also supports embeddings. */
export interface EmbeddingConfig extends KernelConfig {
  readonly embedding: boolean;
}

export function checkLayer(config: EmbeddingConfig, K: number) {
  if (config.embedding && config.kernel?.length > 0) {
    return ['kernel', '[] for an embedding', `[${config.kernel}]`] as const;
  }
  return checkKernel(config, K);
}

/** PEFT's names for the factors of an embedding. */
export const embeddingNames = ({ embedding }: EmbeddingConfig) =>
  embedding ? { loraA: 'lora_embedding_A', loraB: 'lora_embedding_B' } : {};

/** The kind of a stored layer. PEFT applies no dropout to an embedding's input, whatever the config says. */
export function readLayer({ stored }: StoredLayer) {
  if (stored('lora_embedding_A') !== undefined) return { embedding: true, dropout: 0 };
  return { kernel: stored('lora_A.weight')?.shape.slice(2) ?? kLinear };
}
