/** Calls of attention in the forms that tests run: operands as the oracle and as the library takes them. */
import {
  type AttentionInput,
  type AttentionShape,
  type Device,
  type DType,
  Indices,
  Tensor,
} from '../../lib/index.js';
import { normalMatrix } from '../oracle/inputs.js';
import { type AttentionSpec, type Matrix, matrix, ropeTable, roundAll } from '../oracle.js';
import { tensorOf } from './operands.js';

export interface Form {
  readonly name: string;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly sequences?: number;
  readonly rot?: number;
  readonly window?: number;
  readonly softcap?: number;
  /** Rows of each document in turn, again and again. */
  readonly documents?: readonly number[];
  readonly fused?: boolean;
  readonly scale?: number;
  /** Of each head. */
  readonly sinks?: readonly number[];
}

/** The begin of the document of each of T rows. */
function beginsOf(lengths: readonly number[], T: number): number[] {
  const begins: number[] = [];
  for (let begin = 0, i = 0; begins.length < T; i++) {
    const length = lengths[i % lengths.length] as number;
    for (let j = 0; j < length && begins.length < T; j++) begins.push(begin);
    begin += length;
  }
  return begins;
}

export type Fill = (rows: number, cols: number, seed: number) => Matrix;
const normal: Fill = (rows, cols, seed) => normalMatrix(rows, cols, seed);

export interface Case {
  readonly spec: AttentionSpec;
  readonly q: Matrix;
  readonly k: Matrix;
  readonly v: Matrix;
  readonly dO: Matrix;
  readonly input: AttentionInput;
  readonly shape: AttentionShape;
  /** What the forward pass alone takes. */
  readonly sinks: { readonly sinks?: Tensor };
  readonly dOTensor: Tensor;
}

/** Columns of matrices side by side. */
function beside(parts: readonly Matrix[]): Matrix {
  const { rows } = parts[0] as Matrix;
  const cols = parts.reduce((sum, part) => sum + part.cols, 0);
  const out = matrix(rows, cols);
  let first = 0;
  for (const part of parts) {
    for (let m = 0; m < rows; m++) {
      out.data.set(part.data.subarray(m * part.cols, (m + 1) * part.cols), m * cols + first);
    }
    first += part.cols;
  }
  return out;
}

export function caseOf(
  form: Form,
  T: number,
  dtype: DType,
  device: Device,
  fill: Fill = normal,
): Case {
  const { heads, kvHeads, headDim, sequences = 1, rot, window, softcap, documents, fused } = form;
  const M = sequences * T;
  const draw = (cols: number, seed: number): Matrix => {
    const drawn = fill(M, cols, seed);
    return matrix(M, cols, roundAll(dtype, drawn.data));
  };
  const [q, k, v, dO] = [
    draw(heads * headDim, 1),
    draw(kvHeads * headDim, 2),
    draw(kvHeads * headDim, 3),
    draw(heads * headDim, 4),
  ];
  const rope = rot === undefined ? undefined : ropeTable(T + 2, rot);
  const begins = documents === undefined ? undefined : beginsOf(documents, T);
  const all = begins && Array.from({ length: sequences }, () => begins).flat();
  const scale = form.scale ?? headDim ** -0.5;
  const spec: AttentionSpec = {
    sequences,
    heads,
    kvHeads,
    headDim,
    scale: Math.fround(scale),
    dtype,
    ...(window === undefined ? {} : { window }),
    ...(softcap === undefined ? {} : { softcap }),
    ...(rope === undefined ? {} : { rope }),
    ...(all === undefined ? {} : { documents: all }),
    ...(form.sinks === undefined ? {} : { sinks: form.sinks.map(Math.fround) }),
  };
  const on = (m: Matrix): Tensor =>
    tensorOf(m, { dtype, device, shape: sequences === 1 ? [T, m.cols] : [sequences, T, m.cols] });
  return {
    spec,
    q,
    k,
    v,
    dO,
    input: fused ? { qkv: on(beside([q, k, v])) } : { q: on(q), k: on(k), v: on(v) },
    dOTensor: on(dO),
    sinks:
      form.sinks === undefined ? {} : { sinks: Tensor.from([...form.sinks], [heads], { device }) },
    shape: {
      heads,
      ...(kvHeads === heads ? {} : { kvHeads }),
      ...(form.scale === undefined ? {} : { scale }),
      ...(window === undefined ? {} : { window }),
      ...(softcap === undefined ? {} : { softcap }),
      ...(rope === undefined ? {} : { rope: tensorOf(rope, { device }) }),
      ...(all === undefined ? {} : { documents: Indices.from(all, { limit: T, device }) }),
    },
  };
}

/** All parts of the op at once, with heads of an uneven width. */
export const EVERYTHING: Form = {
  name: 'everything',
  heads: 3,
  kvHeads: 3,
  headDim: 34,
  sequences: 3,
  rot: 10,
  window: 33,
  softcap: 3,
  documents: [30, 64, 2],
  fused: true,
};
