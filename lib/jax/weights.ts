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

/** Where a layer over this weight computes. */
export function deviceOf({ w, device = defaultDevice() }: WeightOptions): Device {
  return Tensor.is(w) || QuantizedWeight.is(w) ? w.device : device;
}

/** A frozen operand, and whether its user frees it. */
export interface Frozen<T> {
  readonly value: T;
  readonly owned: boolean;
}

/**
 * The weight of a layer and its bias, unless a path in `params` names that one. Consumes arrays of jax-js once everything
 * is checked.
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`, `ERR_FORMAT`, `ERR_DISPOSED`,
 *   `ERR_DEVICE`, `ERR_OOM`
 */
export function frozenOperands(
  op: string,
  options: WeightOptions,
  bias: string | JaxArray | Tensor | undefined,
): { readonly w: Frozen<BaseWeight>; readonly bias: Frozen<Tensor> | undefined } {
  const { N } = weightShape(op, options.w);
  const device = deviceOf(options);
  const frozen = typeof bias === 'string' ? undefined : bias;
  if (frozen !== undefined) checkBias(op, frozen, N, device);
  const w = frozenWeight(op, options, device);
  return { w, bias: frozen === undefined ? undefined : frozenBias(frozen, device) };
}

function frozenWeight(op: string, options: WeightOptions, device: Device): Frozen<BaseWeight> {
  const { w, format, blocksize, doubleQuant } = options;
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

function frozenBias(bias: JaxArray | Tensor, device: Device): Frozen<Tensor> {
  if (Tensor.is(bias)) return { value: bias, owned: false };
  return { value: copyOf(bias, device), owned: true };
}

function checkBias(op: string, bias: unknown, N: number, device: Device): void {
  if (Tensor.is(bias)) {
    if (bias.disposed) fail('ERR_DISPOSED', op, 'bias', 'alive', 'a disposed tensor');
    if (bias.device !== device) fail('ERR_DEVICE', op, 'bias', `on ${device}, as w`, bias.device);
  } else {
    requireFloat(op, 'bias', bias, 'an array of jax-js, a Tensor or a path in params');
  }
  const { shape } = bias as Tensor | JaxArray;
  if (shape.length !== 1 || shape[0] !== N) {
    fail('ERR_SHAPE', op, 'bias', `of shape [${N}]`, `[${shape.join(', ')}]`);
  }
}

/** The dimensions of a weight before it is read. @throws as {@link frozenOperands} */
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
