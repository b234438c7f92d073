/**
 * Products of int8 codes (`compute: 'int8'`), from their definition: both operands as a code times a
 * scale, which doubles hold exactly. Scales, quotients and codes are made in f32, as they are defined.
 */

import { C_MAX, U32 } from './compare.js';
import { roundHalfEven, roundTo } from './dtypes.js';
import {
  abs,
  type Bounded,
  type Matrix,
  map,
  matmul64,
  matrix,
  timesTransposed,
} from './linear.js';
import { codebookOf, type Quantised } from './quantise.js';

/** Elements of a row of x that share a scale. */
export const INT8_BLOCK = 64;

/** An operand as the product sees it, and the scale of every element. */
export interface Int8Operand {
  readonly value: Matrix;
  readonly scale: Matrix;
}

/** @param size elements that share a scale; of a rowwise weight's x a whole row */
export function int8Rows(x: Matrix, size = INT8_BLOCK): Int8Operand {
  const value = matrix(x.rows, x.cols);
  const scale = matrix(x.rows, x.cols);
  for (let row = 0; row < x.rows; row++) {
    for (let begin = 0; begin < x.cols; begin += size) {
      const from = row * x.cols + begin;
      const to = row * x.cols + Math.min(begin + size, x.cols);
      const block = x.data.subarray(from, to);
      const largest = block.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
      const finite = block.every(Number.isFinite);
      const s = finite ? Math.fround(largest / 127) : Number.NaN;
      scale.data.fill(s, from, to);
      for (let i = from; i < to; i++) {
        const quotient = Math.fround((x.data[i] as number) / s);
        const code = s > 0 ? roundHalfEven(Math.max(-127, Math.min(127, quotient))) : 0;
        value.data[i] = code * s;
      }
    }
  }
  return { value, scale };
}

export function int8Weight(w: Quantised, N: number, K: number): Int8Operand {
  const codebook = codebookOf(w.format);
  const most = codebook.reduce((largest, v) => Math.max(largest, Math.abs(v)), 0);
  const codes = Array.from(codebook, (v) =>
    roundHalfEven(Math.fround(Math.fround(127 * v) / most)),
  );
  const unit = Math.fround(most / 127);
  const scales = Float64Array.from(w.codes, (_, i) =>
    Math.fround((w.absmax[Math.floor(i / w.blocksize)] as number) * unit),
  );
  const values = scales.map((scale, i) => scale * (codes[w.codes[i] as number] as number));
  return { value: matrix(N, K, values), scale: matrix(N, K, scales) };
}

/**
 * A weight as LLM.int8 quantises it by rows, from values in f32: its codes are those of the product, so that nothing
 * is rounded there (a scale of 0 in {@link int8Error}).
 */
export function int8RowWeight(w: Matrix): { codes: Int8Operand; decoded: Matrix } {
  const value = matrix(w.rows, w.cols);
  const decoded = matrix(w.rows, w.cols);
  for (let row = 0; row < w.rows; row++) {
    const [from, to] = [row * w.cols, (row + 1) * w.cols];
    const half = Array.from(w.data.subarray(from, to), (v) => roundTo('f16', v));
    const absmax = half.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
    const factor = Math.fround(127 / absmax);
    half.forEach((v, i) => {
      const code = absmax === 0 ? 0 : roundHalfEven(Math.fround(v * factor));
      value.data[from + i] = code * Math.fround(absmax / 127);
      decoded.data[from + i] = Math.fround(Math.fround(code / 127) * absmax);
    });
  }
  return { codes: { value, scale: matrix(w.rows, w.cols) }, decoded };
}

/** y = x · wᵀ + bias of the rounded operands. */
export function matmulInt8(x: Int8Operand, w: Int8Operand, bias?: Matrix): Bounded {
  return matmul64(x.value, w.value, bias);
}

/** How far that may be from the product of `decoded`, the weight in f32 (documented at `compute`). */
export function int8Error(x: Int8Operand, w: Int8Operand, decoded: Matrix): Matrix {
  const half = 0.5 + 2 ** -15;
  const ofX = timesTransposed(abs(x.scale), abs(decoded));
  const ofW = timesTransposed(abs(x.value), abs(w.scale));
  const sums = timesTransposed(abs(x.value), abs(w.value));
  return map(
    ofX,
    (value, i) => half * (value + (ofW.data[i] as number)) + C_MAX * U32 * (sums.data[i] as number),
  );
}
