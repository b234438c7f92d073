/**
 * The state of bitsandbytes' 8-bit linear layers (LLM.int8), keys relative to the layer:
 *
 *   weight        I8 [N, K], row-major
 *   SCB           F32 [N], absmax of each row; value = weight · SCB / 127
 *   weight_format U8 [], 0 = row-major; older releases wrote layouts of single GPUs as 1 to 3
 */

import { fail, LowrankError } from '../core/errors.js';
import type { BitsandbytesState } from './bitsandbytes.js';
import { bytesOf, checkRawTensor, type RawTensor } from './raw-tensor.js';

/** A checked 8-bit weight; value = codes · rowAbsmax / 127. */
export interface ParsedInt8 {
  readonly shape: readonly [N: number, K: number];
  readonly codes: Int8Array; // [N, K]
  readonly rowAbsmax: Float32Array; // [N]
}

/**
 * Checks one layer's 8-bit state. The arrays are copies.
 *
 * @throws LowrankError `ERR_FORMAT` malformed · `ERR_UNSUPPORTED` a layout other than row-major
 */
export function parseInt8Layer(state: BitsandbytesState): ParsedInt8 {
  const op = 'parseInt8Layer';
  const tensor = (key: string, dtype: string, shape: string): RawTensor => {
    const found = Object.hasOwn(state, key) ? state[key] : undefined;
    if (found === undefined) return fail('ERR_FORMAT', op, key, `${dtype} ${shape}`, 'none');
    try {
      checkRawTensor(op, key, found);
    } catch (error) {
      fail('ERR_FORMAT', op, key, 'a tensor whose bytes fit its dtype and shape', String(error));
    }
    if (found.dtype !== dtype) fail('ERR_FORMAT', op, key, `of dtype ${dtype}`, found.dtype);
    return found;
  };
  const weight = tensor('weight', 'I8', '[N, K]');
  const [N, K] = weight.shape;
  if (weight.shape.length !== 2 || N === undefined || K === undefined) {
    return fail('ERR_FORMAT', op, 'weight', '[N, K]', `[${weight.shape.join(', ')}]`);
  }
  const scb = tensor('SCB', 'F32', '[N]');
  const rowAbsmax = new Float32Array(bytesOf(scb.data).slice().buffer);
  if (rowAbsmax.length !== N) fail('ERR_FORMAT', op, 'SCB', `${N} values`, `${rowAbsmax.length}`);
  const bad = rowAbsmax.findIndex((value) => !(value >= 0 && Number.isFinite(value)));
  if (bad >= 0) {
    fail('ERR_FORMAT', op, 'SCB', 'finite and not negative', `${rowAbsmax[bad]} at ${bad}`);
  }
  if (Object.hasOwn(state, 'weight_format')) {
    const layout = bytesOf(tensor('weight_format', 'U8', '[]').data);
    if (layout.length !== 1) {
      fail('ERR_FORMAT', op, 'weight_format', 'one byte', `${layout.length}`);
    }
    if (layout[0] !== 0) {
      const text = `${op}: weight_format must be 0 (row-major), got the layout ${layout[0]}`;
      throw new LowrankError('ERR_UNSUPPORTED', text, { op });
    }
  }
  const codes = new Int8Array(bytesOf(weight.data).slice().buffer);
  return { shape: [N, K], codes, rowAbsmax };
}

/** One layer's 8-bit state as bitsandbytes writes it; the inverse of {@link parseInt8Layer}. */
export function formatInt8Layer(parsed: ParsedInt8): BitsandbytesState {
  const { shape, codes, rowAbsmax } = parsed;
  const state: BitsandbytesState = {
    weight: { dtype: 'I8', shape, data: codes.slice() },
    SCB: { dtype: 'F32', shape: [rowAbsmax.length], data: rowAbsmax.slice() },
    weight_format: { dtype: 'U8', shape: [], data: new Uint8Array(1) },
  };
  parseInt8Layer(state);
  return state;
}
