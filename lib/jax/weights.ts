/** Frozen operands of a layer: the caller's tensors, or copies of arrays of jax-js. */

import { fail, wrongType } from '../core/errors.js';
import { checkBlocksize, checkFormat } from '../core/formats.js';
import { outsideScopes } from '../core/scope.js';
import {
  type BaseWeight,
  type Device,
  defaultDevice,
  type QuantFormat,
  QuantizedWeight,
  quantize,
  Tensor,
} from '../index.js';
import type { JaxArray } from './jax.js';
import { isJaxArray } from './tree.js';

/** How a layer stores its frozen weight. */
export interface WeightOptions {
  /** [N, K]: an array of jax-js (consumed), or a weight of this library, which must outlive the segment. */
  readonly w: JaxArray | BaseWeight;
  /** Quantise w to this format. Default: w as it is. */
  readonly format?: QuantFormat;
  /** Elements that share a scale; default that of the format. */
  readonly blocksize?: number;
  /** Quantise the scales as well; default false. */
  readonly doubleQuant?: boolean;
  /** Where to compute if w is an array of jax-js. Default: the default device. */
  readonly device?: Device;
}

/** A frozen operand, and whether its user frees it. */
export interface Frozen<T> {
  readonly value: T;
  readonly owned: boolean;
}

/**
 * The weight of a layer. Consumes an array of jax-js once everything is checked.
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`, `ERR_FORMAT`, `ERR_DISPOSED`,
 *   `ERR_OOM`
 */
export function frozenWeight(op: string, options: WeightOptions): Frozen<BaseWeight> {
  const { w, format, blocksize, doubleQuant, device = defaultDevice() } = options;
  const storage = {
    ...(blocksize === undefined ? {} : { blocksize }),
    ...(doubleQuant === undefined ? {} : { doubleQuant }),
  };
  if (format !== undefined) {
    const row = checkFormat(op, format);
    checkBlocksize(op, row, blocksize ?? row.defaultBlocksize);
  }
  if (format === undefined && Object.keys(storage).length > 0) {
    fail('ERR_VALUE', op, 'format', `given with ${Object.keys(storage).join(', ')}`, 'none');
  }
  if (QuantizedWeight.is(w) && format !== undefined) {
    fail('ERR_VALUE', op, 'format', 'absent for a quantised w', format);
  }
  const quantised = (tensor: Tensor) =>
    outsideScopes(() => quantize(tensor, { format: format as QuantFormat, ...storage }));
  if (Tensor.is(w) || QuantizedWeight.is(w)) {
    requireMatrix(op, 'w', w.shape);
    if (w.disposed) fail('ERR_DISPOSED', op, 'w', 'alive', 'a disposed weight');
    if (QuantizedWeight.is(w) || format === undefined) return { value: w, owned: false };
    return { value: quantised(w), owned: true };
  }
  requireFloat(op, 'w', w, 'an array of jax-js, a Tensor or a QuantizedWeight');
  requireMatrix(op, 'w', w.shape);
  const dense = copyOf(w, device);
  if (format === undefined) return { value: dense, owned: true };
  try {
    return { value: quantised(dense), owned: true };
  } finally {
    dense.dispose();
  }
}

/**
 * A frozen bias [N] as a tensor on `device`. Consumes an array of jax-js.
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DISPOSED`, `ERR_DEVICE`
 */
export function frozenBias(
  op: string,
  bias: JaxArray | Tensor,
  N: number,
  device: Device,
): Frozen<Tensor> {
  checkBias(op, bias, N);
  if (!Tensor.is(bias)) return { value: copyOf(bias, device), owned: true };
  if (bias.device !== device) fail('ERR_DEVICE', op, 'bias', `on ${device}, as w`, bias.device);
  return { value: bias, owned: false };
}

/** @throws TypeError `ERR_TYPE` · LowrankError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DISPOSED` */
export function checkBias(op: string, bias: unknown, N: number): void {
  if (Tensor.is(bias)) {
    if (bias.disposed) fail('ERR_DISPOSED', op, 'bias', 'alive', 'a disposed tensor');
  } else {
    requireFloat(op, 'bias', bias, 'an array of jax-js, a Tensor or a path in params');
  }
  const { shape } = bias as Tensor | JaxArray;
  if (shape.length !== 1 || shape[0] !== N) {
    fail('ERR_SHAPE', op, 'bias', `of shape [${N}]`, `[${shape.join(', ')}]`);
  }
}

/** The dimensions of a weight before it is read. @throws as {@link frozenWeight} */
export function weightShape(op: string, w: unknown): { N: number; K: number } {
  if (!Tensor.is(w) && !QuantizedWeight.is(w)) {
    requireFloat(op, 'w', w, 'an array of jax-js, a Tensor or a QuantizedWeight');
  }
  const { shape } = w as JaxArray | BaseWeight;
  requireMatrix(op, 'w', shape);
  return { N: shape[0] ?? 0, K: shape[1] ?? 0 };
}

function requireMatrix(op: string, operand: string, shape: readonly number[]): void {
  if (shape.length !== 2) {
    fail('ERR_SHAPE', op, operand, 'of shape [N, K]', `[${shape.join(', ')}]`);
  }
}

function requireFloat(
  op: string,
  operand: string,
  value: unknown,
  expected: string,
): asserts value is JaxArray {
  if (!isJaxArray(value)) throw wrongType(op, operand, expected, value);
  if (value.dtype !== 'float32') fail('ERR_DTYPE', op, operand, 'float32', value.dtype);
  if (!(value.refCount >= 1)) {
    const expectedAlive = 'a live array (pass x.ref to keep x)';
    fail('ERR_DISPOSED', op, operand, expectedAlive, `one with ${value.refCount ?? 0} references`);
  }
}

/** Consumes the array. */
function copyOf(array: JaxArray, device: Device): Tensor {
  const { shape } = array;
  const values = array.dataSync() as Float32Array;
  return outsideScopes(() => Tensor.from(values, shape, { device }));
}
