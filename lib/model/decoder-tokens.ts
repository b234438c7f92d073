/** The tokens of a decoder's call, and their checks. */

import type { Device } from '../core/device.js';
import type { DType } from '../core/dtype.js';
import { fail } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { Indices } from '../ops/model/indices.js';
import type { DecoderTape } from './decoder-tape.js';
import type { KvCache } from './kv-cache.js';

/** Tokens of a call: B rows of T, row-major. */
export interface DecoderTokens {
  readonly B: number;
  readonly T: number;
  /** [B · T]. Indices stay the caller's: a captured step reads what they hold when it runs. */
  readonly ids: Int32Array | Indices;
  /**
   * [B · T]: which document of its row a token belongs to; default one document a row. Documents do not
   * see each other, and positions count from 0 in each.
   */
  readonly segments?: Int32Array;
  /**
   * [B · T], instead of `segments`: the row of its sequence at which each row's document begins. The caller's, as `ids`
   * can be; `documentBegins` computes them from segments.
   */
  readonly documents?: Indices;
}

/**
 * The row of its sequence at which each row's document begins, from rows of T segments: what the `documents` of
 * a decoder's tokens and of attention holds.
 * @example
 * documents.write(documentBegins(segments, T)); // before a replay
 */
export function documentBegins(segments: Int32Array, T: number): Int32Array {
  const begins = new Int32Array(segments.length);
  for (let m = 0; m < segments.length; m++) {
    const same = m % T !== 0 && segments[m] === segments[m - 1];
    begins[m] = same ? (begins[m - 1] as number) : m % T;
  }
  return begins;
}

/** Sequences of T tokens as arrays of the host, for one call: packed ones with the rows at which their documents begin. */
export function tokensOf(
  { ids, documents }: { readonly ids: Int32Array; readonly documents?: Int32Array },
  T: number,
  device: Device,
): DecoderTokens {
  const begins = documents && { documents: Indices.from(documents, { limit: T, device }) };
  return { ids, B: ids.length / T, T, ...begins };
}

/** @throws ERR_SHAPE · ERR_VALUE */
export function checkTokens({ B, T, ids, segments, documents }: DecoderTokens): void {
  const op = 'decoder.forward';
  if (segments !== undefined && documents !== undefined) {
    fail('ERR_VALUE', op, 'documents', 'given without segments', 'both');
  }
  for (const [name, list] of Object.entries({ ids, segments, documents })) {
    if (list === undefined || list.length === B * T) continue;
    fail('ERR_SHAPE', op, name, `[B · T = ${B * T}]`, `[${list.length}]`);
  }
}

/** @throws ERR_VALUE · ERR_DTYPE */
export function checkCache(
  cache: KvCache,
  tape: DecoderTape,
  { B, T, segments, documents }: DecoderTokens,
  dtype: DType,
): void {
  const op = 'decoder.forward';
  if (tape.recording) {
    fail('ERR_VALUE', op, 'cache', 'absent on a tape that records', 'present');
  }
  for (const [name, given] of Object.entries({ segments, documents })) {
    if (given !== undefined) fail('ERR_VALUE', op, name, 'absent with a cache', 'present');
  }
  if (cache.dtype !== dtype) fail('ERR_DTYPE', op, 'cache', dtype, cache.dtype);
  cache.requireRoom(op, B, T);
}

/** A number as a dtype holds it. */
export function roundTo(dtype: DType, value: number): number {
  if (dtype === 'f32' || value === 1) return Math.fround(value);
  const rounded = Tensor.from([value], [1], { dtype, device: 'cpu' });
  try {
    return rounded.readSync()[0] as number;
  } finally {
    rounded.dispose();
  }
}
