/**
 * The state of bitsandbytes' LLM.int8 layers (Linear8bitLt), keys relative to the layer:
 *
 *   weight         I8 [N, K]
 *   SCB            F32 [N], the largest magnitude of each row: w = weight · SCB / 127
 *   weight_format  U8 [], 0: rows as they are; may be left out
 */
import { fail } from '../../core/errors.js';
import { bytesOf, checkRawTensor, type RawDType, type RawTensor } from '../raw-tensor.js';

/** A weight [N, K] as bitsandbytes' LLM.int8 stores it. */
export interface RowInt8 {
  /** [N, K], each within ±127 */
  readonly codes: Int8Array;
  /** [N]: the largest magnitude of each row, bitsandbytes' `SCB`. */
  readonly absmax: Float32Array;
}

type State = Readonly<Record<string, RawTensor>>;

/** The keys of a layer's state. */
export const kRowInt8Keys: readonly string[] = ['weight', 'SCB', 'weight_format'];

/** Is this the state of a Linear8bitLt? */
export function isRowInt8(state: State): boolean {
  return Object.hasOwn(state, 'SCB');
}

/**
 * Checks the state of a layer and splits it into its parts. The arrays are copies.
 * @throws LowrankError `ERR_FORMAT`, which names the key
 */
export function parseRowInt8(state: State): { rows: RowInt8; shape: readonly number[] } {
  const op = 'parseRowInt8';
  const part = (key: string, dtype: RawDType): RawTensor => {
    const found = Object.hasOwn(state, key) ? state[key] : undefined;
    if (found === undefined) return fail('ERR_FORMAT', op, key, `a ${dtype} tensor`, 'none');
    try {
      checkRawTensor(op, key, found);
    } catch (error) {
      fail('ERR_FORMAT', op, key, 'a tensor whose bytes fit its dtype and shape', String(error));
    }
    if (found.dtype !== dtype) fail('ERR_FORMAT', op, key, `of dtype ${dtype}`, found.dtype);
    return found;
  };
  const weight = part('weight', 'I8');
  const scales = part('SCB', 'F32');
  const [N = 0] = weight.shape;
  if (weight.shape.length !== 2) {
    fail('ERR_FORMAT', op, 'weight', 'of shape [N, K]', `[${weight.shape}]`);
  }
  if (scales.shape.length !== 1 || scales.shape[0] !== N) {
    fail('ERR_FORMAT', op, 'SCB', `of shape [${N}]`, `[${scales.shape}]`);
  }
  if (Object.hasOwn(state, 'weight_format')) {
    const layout = bytesOf(part('weight_format', 'U8').data);
    // The other formats are tiled layouts for old GPUs.
    if (layout.length !== 1 || layout[0] !== 0) {
      fail('ERR_FORMAT', op, 'weight_format', '0 (rows)', `[${layout}]`);
    }
  }
  const absmax = new Float32Array(bytesOf(scales.data).slice().buffer);
  const bad = absmax.findIndex((value) => !(value >= 0 && Number.isFinite(value)));
  if (bad >= 0)
    fail('ERR_FORMAT', op, 'SCB', 'finite and not negative', `${absmax[bad]} at ${bad}`);
  const codes = new Int8Array(bytesOf(weight.data).slice().buffer);
  return { rows: { codes, absmax }, shape: Object.freeze([...weight.shape]) };
}

/** The inverse of {@link parseRowInt8}. */
export function formatRowInt8({ codes, absmax }: RowInt8, shape: readonly number[]): State {
  return {
    weight: { dtype: 'I8', shape: [...shape], data: codes },
    SCB: { dtype: 'F32', shape: [absmax.length], data: absmax },
    weight_format: { dtype: 'U8', shape: [], data: new Uint8Array([0]) },
  };
}
