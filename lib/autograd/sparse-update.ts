import { checkShape, lastDim } from '../core/check-tensor.js';
import { type Device, resolveDevice } from '../core/device.js';
import { fail, wrongType } from '../core/errors.js';
import { scope, track } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { checkInteger, newArray, readOptions } from '../core/validate.js';
import { withLast } from '../ops/base-weight.js';
import { denseRows, putRows } from '../ops/dense-rows.js';
import { multiplyAdd, sumProduct } from '../ops/elementwise.js';
import { FeatureMap, mapFeatures } from '../ops/feature-map.js';
import { checkStep, type Value } from './gradient-tape.js';
import type { Tape } from './tape.js';

/** Entries that are processed at a time. Memory holds M times as many values. */
const PART = 4096;

/** Maximum rows and columns of a pattern: far more than a layer has, and as many as there is memory for maps. */
const MAX_FEATURES = 2 ** 24;

/** Some of the entries: which inputs they read and which outputs they are added to. */
interface Part {
  readonly begin: number;
  readonly end: number;
  /** Maps K inputs to the entries, in their order. */
  readonly read: FeatureMap;
  /** Maps the entries to N outputs, as sums. */
  readonly add: FeatureMap;
}

/** A checked copy of the positions of the entries. @throws ERR_TYPE, ERR_VALUE */
function placesOf(op: string, operand: string, value: unknown, count: number): Int32Array {
  if (!(ArrayBuffer.isView(value) && value instanceof Int32Array)) {
    throw wrongType(op, operand, 'an Int32Array', value);
  }
  const places = Int32Array.from(value);
  places.forEach((place, i) => {
    if (place >= 0 && place < count) return;
    fail('ERR_VALUE', op, `${operand}[${i}]`, `from 0 to ${count - 1}`, String(place));
  });
  return places;
}

/** Entries sorted by row: those of row n are index[begin[n]] to index[begin[n + 1] - 1]. */
function sumsOf(op: string, rows: Int32Array, N: number) {
  const begin = newArray(op, Int32Array, N + 1);
  for (const row of rows) begin[row + 1] = (begin[row + 1] as number) + 1;
  for (let n = 0; n < N; n++) begin[n + 1] = (begin[n + 1] as number) + (begin[n] as number);
  const next = begin.slice(0, N);
  const index = new Int32Array(rows.length);
  rows.forEach((row, i) => {
    const at = next[row] as number;
    index[at] = i;
    next[row] = at + 1;
  });
  return { begin, index };
}

/**
 * The positions of the entries of a sparse matrix [N, K], made once for {@link sparseUpdate}. Owns
 * native memory until it is disposed.
 * @example
 * using pattern = new SparsePattern({ rows, columns, N, K });
 */
export class SparsePattern implements Disposable {
  readonly N: number;
  readonly K: number;
  /** Number of entries. */
  readonly size: number;
  /** @internal */
  readonly parts: readonly Part[];

  /**
   * @param spec rows and columns of the entries, in any order; entries at the same position add up. N and K are at
   * most 2^24. The maps take 4 · N bytes per 4,096 entries
   * @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DEVICE, ERR_OOM
   */
  constructor(spec: {
    rows: Int32Array;
    columns: Int32Array;
    N: number;
    K: number;
    device?: Device;
  }) {
    const op = 'SparsePattern';
    if (spec === null || typeof spec !== 'object') throw wrongType(op, 'spec', 'an object', spec);
    const given = readOptions(op, spec, {
      rows: true,
      columns: true,
      N: true,
      K: true,
      device: true,
    });
    const N = checkInteger(op, 'N', given.N, 0, MAX_FEATURES);
    const K = checkInteger(op, 'K', given.K, 0, MAX_FEATURES);
    const rows = placesOf(op, 'rows', given.rows, N);
    const columns = placesOf(op, 'columns', given.columns, K);
    if (rows.length !== columns.length) {
      fail('ERR_SHAPE', op, 'columns', `of length ${rows.length}`, String(columns.length));
    }
    this.N = N;
    this.K = K;
    this.size = rows.length;
    const device = resolveDevice(op, given.device);
    const place = { device };
    const parts: Part[] = [];
    for (let begin = 0; begin < rows.length; begin += PART) {
      const end = Math.min(rows.length, begin + PART);
      const sums = sumsOf(op, rows.subarray(begin, end), N);
      parts.push({
        begin,
        end,
        read: FeatureMap.gather(columns.slice(begin, end), K, place),
        add: FeatureMap.ofSums({ inFeatures: end - begin, outFeatures: N, ...sums, device }),
      });
    }
    this.parts = parts;
    track(this);
  }

  /** Frees the maps. A second call does nothing. */
  dispose(): void {
    for (const { read, add } of this.parts) {
      read.dispose();
      add.dispose();
    }
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The values of a part, as a row. */
function valuesOf(values: Tensor, { begin, end }: Part): Tensor {
  return denseRows(values.reshape([values.size, 1]), begin, end).reshape([end - begin]);
}

/**
 * `x · Sᵀ` for a sparse matrix S [N, K], as a step on the tape. The step reads the entries from x,
 * scales and sums them, a few thousand at a time, and never stores S as a matrix. It saves only x.
 * @param x [..., K]
 * @param values one per entry of the pattern
 * @returns [..., N] f32
 * @throws ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const y = t.add(t.linear(x, w), sparseUpdate(t, x, p.values, pattern));
 */
export function sparseUpdate(t: Tape, x: Value, values: Value, pattern: SparsePattern): Value {
  const op = 'sparseUpdate';
  checkStep(op, t, { x, values });
  if (!(pattern instanceof SparsePattern)) {
    throw wrongType(op, 'pattern', 'a SparsePattern', pattern);
  }
  checkShape(op, 'values', values.tensor, [pattern.size]);
  const { device } = x.tensor;
  let y = Tensor.zeros(withLast(x.tensor, pattern.N), { device });
  for (const part of pattern.parts) {
    y = scope(() => {
      const read = mapFeatures(x.tensor, part.read, { dtype: 'f32' });
      const scaled = multiplyAdd({ a: read, b: valuesOf(values.tensor, part) });
      const next = mapFeatures(scaled, part.add, { c: y });
      y.dispose();
      return next;
    });
  }
  return t.record(y, [x, values], [x.tensor, values.tensor], (dy, pass) => {
    const [wantsX, wantsValues] = [pass.wants(x), pass.wants(values)];
    const dValues = Tensor.zeros([pattern.size, 1], { device });
    let dx = Tensor.zeros(withLast(x.tensor, lastDim(x.tensor)), { device });
    for (const part of pattern.parts) {
      dx = scope(() => {
        const given = mapFeatures(dy, part.add.adjoint, { dtype: 'f32' });
        if (wantsValues) {
          const sums = sumProduct(given, mapFeatures(x.tensor, part.read), { axis: 0 });
          putRows(dValues, sums.reshape([sums.size, 1]), part.begin);
        }
        if (!wantsX) return dx;
        const scaled = multiplyAdd({ a: given, b: valuesOf(values.tensor, part) });
        const next = mapFeatures(scaled, part.read.adjoint, { c: dx });
        dx.dispose();
        return next;
      });
    }
    if (wantsX) pass.give(x, dx);
    if (wantsValues) pass.give(values, dValues.reshape([pattern.size]));
  });
}
