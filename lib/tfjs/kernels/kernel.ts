/** What the replaced kernels have in common. */

import type { TensorInfo } from '@tensorflow/tfjs';

/** The inputs of a kernel by name; `0`, `1`, ... where they are an array. */
export type KernelInputs = Readonly<Record<string, TensorInfo | undefined>>;
export type KernelAttrs = Readonly<Record<string, unknown>>;

/** The result, or `undefined` if the backend's own kernel should run. */
export type Kernel = (inputs: KernelInputs, attrs: KernelAttrs) => TensorInfo | undefined;

export function sizeOf({ shape }: TensorInfo): number {
  return shape.reduce((product, dim) => product * dim, 1);
}
