import type { Device } from '../core/device.js';
import { anyOf, fail, wrongType } from '../core/errors.js';
import { formatOf, namesOfBits } from '../core/formats.js';
import { Tensor } from '../core/tensor.js';
import { QuantizedWeight } from '../quant/quantized-weight.js';
import type { BaseWeight } from './base-weight.js';

/**
 * How a forward product with a base weight is computed.
 *
 * `exact`, the default: the weight is decoded to the dtype of `x`, and products are summed in f32.
 *
 * `int8`: both operands are rounded to int8 codes. Products are summed in int32 as long as both scales stay the
 * same, and those sums in f32, in ascending order. Available for weights in nf4, fp4 and int4 on the devices
 * `cpu` and `reference`, and for rowwise int8 on CUDA devices too. Except on `reference`, the bits are the same
 * on every instruction set and device, for any number of threads, and for a row alone or in a batch. On `cpu`,
 * with VNNI and blocks of 64 or more, it is about 1.5 to 1.7 times as fast as `exact` for 16 and more tokens in
 * bf16, and 3 times in f32; for one or two tokens in bf16 it takes as long. For a rowwise weight it is faster
 * than `exact` for any number of tokens.
 *
 * - A block of 64 elements of a row of `x` (with a rowwise weight the whole row) has the scale
 *   `sx = max|x| / 127`, and an element has the code `round(x / sx)`, ties to even. If an element is
 *   NaN or infinite, all outputs of its row are NaN.
 * - Zero-points of a weight are added exactly, in f32.
 * - A block of `w` has the scale `sw = absmax · (c / 127)`, and an element has the code `round(127 · codebook[i] / c)`, where `c` is
 *   the largest magnitude of the codebook. A row of a rowwise weight has the scale `sw = absmax / 127` and its own codes, so only `x`
 *   is rounded; K is a multiple of 32 and at most 131,072. That is LLM.int8() (Dettmers et al., 2022, arXiv:2208.07339) without its
 *   treatment of outliers: a feature of `x` that is far larger than the others leaves fewer levels for them.
 *
 * With `x̂ = sx · code`, compared with the exact product with the decoded weight `ŵ`, summed over
 * `k`:
 *
 * `|y − Σ x·ŵ| ≤ (0.5 + 2^-15) · Σ (sx·|ŵ| + sw·|x̂|) + 16 · 2^-24 · Σ |x̂·sw·code| + rounding of y`
 *
 * as long as scales and their products are normal numbers (the largest element of a block is at least about
 * 1.5e-36). With a rowwise weight, `sw` in that bound is 0. The bound is a worst case: for normally
 * distributed activations and weights the root mean square of the error is 0.84 % of that of `y`, while NF4
 * itself costs about 9 %; with a rowwise weight of K = 4,096 it is about 0.9 %.
 */
export type ComputePrecision = 'exact' | 'int8';

/** Where `int8` of 4-bit weights runs. The native list is the feature `int8Compute`; a test compares the two. */
export const INT8_DEVICES: readonly string[] = ['cpu', 'reference'];

/** Where `int8` of rowwise weights runs; `cuda` stands for all GPUs: the feature `rowInt8Compute`. */
export const INT8_ROW_DEVICES: readonly string[] = [...INT8_DEVICES, 'cuda', 'cuda-emulated'];

/** Does a device support `int8`, for a rowwise or for a 4-bit weight? */
export function hasInt8(device: Device, rowwise: boolean): boolean {
  const kind = device.split(':')[0] ?? ''; // cuda of cuda:1
  return (rowwise ? INT8_ROW_DEVICES : INT8_DEVICES).includes(kind);
}

/** Maximum row length of a rowwise weight: its sums of codes are guaranteed to fit 32 bits. */
const MOST_ROW_DEPTH = 2 ** 17;

/** The int8 kernels take a row in groups of this many elements. */
const ROW_UNIT = 32;

/** @throws ERR_TYPE, ERR_VALUE, ERR_UNSUPPORTED */
export function checkCompute(
  op: string,
  compute: unknown,
  x: Tensor,
  weight: BaseWeight,
): ComputePrecision {
  if (compute === undefined) return 'exact';
  if (typeof compute !== 'string') throw wrongType(op, 'compute', 'exact or int8', compute);
  if (compute !== 'exact' && compute !== 'int8') {
    fail('ERR_VALUE', op, 'compute', 'exact or int8', `"${compute}"`);
  }
  if (compute === 'exact') return compute;
  const format = weight instanceof Tensor ? `dense ${weight.dtype}` : weight.format;
  const K = weight.shape.at(-1) ?? 1;
  const rowwise = weight instanceof QuantizedWeight && weight.rowwise;
  if (rowwise) {
    if (K % ROW_UNIT !== 0) {
      const expected = `of a K that is a multiple of ${ROW_UNIT} (for compute int8)`;
      fail('ERR_UNSUPPORTED', op, 'w', expected, `K = ${K}`);
    }
    if (K > MOST_ROW_DEPTH) {
      fail('ERR_UNSUPPORTED', op, 'w', `of K <= ${MOST_ROW_DEPTH} (for compute int8)`, `K = ${K}`);
    }
  } else if (
    weight instanceof Tensor ||
    weight.format === 'planar' ||
    formatOf(weight.format).bits !== 4
  ) {
    const list = anyOf([...namesOfBits(4), 'rowwise int8']);
    fail('ERR_UNSUPPORTED', op, 'w', `${list} (for compute int8)`, format);
  }
  if (!hasInt8(x.device, rowwise)) {
    const names = INT8_DEVICES.join(' and ');
    const actual = `int8, which this device has for rowwise int8 only (${names} have both)`;
    fail('ERR_UNSUPPORTED', op, 'compute', `exact for ${format} on device ${x.device}`, actual);
  }
  return compute;
}
