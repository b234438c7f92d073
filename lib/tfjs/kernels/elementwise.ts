/**
 * Elementwise kernels for the cpu backend: one loop over typed arrays each. The backend's own compute a position from a
 * list of indices for every element that is broadcast, and call a function for every element.
 *
 * The arithmetic is the backend's: in double, rounded to f32. So every result has its bits.
 */

import type { TensorInfo } from '@tensorflow/tfjs';
import { tensorInfoFrom, valuesOf } from '../ops/backend-memory.js';
import { type Kernel, sizeOf } from './kernel.js';

type Values = Float32Array;

/** out[o + i] = a[ai + i · sa] ∘ b[bi + i · sb] for i < n. Each operation has loops of its own, so that they are inlined. */
type Row = (
  a: Values,
  ai: number,
  sa: number,
  b: Values,
  bi: number,
  sb: number,
  out: Values,
  o: number,
  n: number,
) => void;

const multiplyRow: Row = (a, ai, sa, b, bi, sb, out, o, n) => {
  for (let i = 0; i < n; i++, ai += sa, bi += sb)
    out[o + i] = (a[ai] as number) * (b[bi] as number);
};
const addRow: Row = (a, ai, sa, b, bi, sb, out, o, n) => {
  for (let i = 0; i < n; i++, ai += sa, bi += sb)
    out[o + i] = (a[ai] as number) + (b[bi] as number);
};
const subtractRow: Row = (a, ai, sa, b, bi, sb, out, o, n) => {
  for (let i = 0; i < n; i++, ai += sa, bi += sb)
    out[o + i] = (a[ai] as number) - (b[bi] as number);
};
const divideRow: Row = (a, ai, sa, b, bi, sb, out, o, n) => {
  for (let i = 0; i < n; i++, ai += sa, bi += sb)
    out[o + i] = (a[ai] as number) / (b[bi] as number);
};

const powerRow: Row = (a, ai, sa, b, bi, sb, out, o, n) => {
  for (let i = 0; i < n; i++, ai += sa, bi += sb)
    out[o + i] = (a[ai] as number) ** (b[bi] as number);
};

/** The dimensions of a result and the steps of both operands, with neighbours joined where both are one run. */
interface Broadcast {
  readonly shape: number[];
  readonly sizes: number[];
  readonly aSteps: number[];
  readonly bSteps: number[];
}

function broadcastOf(a: readonly number[], b: readonly number[]): Broadcast | undefined {
  const rank = Math.max(a.length, b.length);
  const shape: number[] = [];
  const [sizes, aSteps, bSteps]: [number[], number[], number[]] = [[], [], []];
  let [aStep, bStep] = [1, 1];
  for (let axis = 1; axis <= rank; axis++) {
    const aDim = a[a.length - axis] ?? 1;
    const bDim = b[b.length - axis] ?? 1;
    if (aDim !== bDim && aDim !== 1 && bDim !== 1) return undefined;
    const dim = aDim === 1 ? bDim : aDim;
    shape.unshift(dim);
    const own: [number, number] = [aDim === 1 ? 0 : aStep, bDim === 1 ? 0 : bStep];
    aStep *= aDim;
    bStep *= bDim;
    if (dim === 1) continue;
    const last = sizes.length - 1;
    const size = sizes[last] as number;
    const joined =
      last >= 0 &&
      own[0] === (aSteps[last] as number) * size &&
      own[1] === (bSteps[last] as number) * size;
    if (joined) {
      sizes[last] = size * dim;
    } else {
      sizes.push(dim);
      aSteps.push(own[0]);
      bSteps.push(own[1]);
    }
  }
  return { shape, sizes, aSteps, bSteps };
}

function binary(row: Row): Kernel {
  return ({ a, b }) => {
    if (a?.dtype !== 'float32' || b?.dtype !== 'float32') return undefined;
    const plan = broadcastOf(a.shape, b.shape);
    if (plan === undefined) return undefined;
    return tensorInfoFrom(plan.shape, (out) => runBinary(row, plan, valuesOf(a), valuesOf(b), out));
  };
}

function runBinary(
  row: Row,
  { sizes, aSteps, bSteps }: Broadcast,
  a: Values,
  b: Values,
  out: Values,
) {
  if (out.length === 0) return;
  const n = sizes[0] ?? 1;
  const [sa, sb] = [aSteps[0] ?? 0, bSteps[0] ?? 0];
  const at = new Array<number>(sizes.length).fill(0);
  let [ai, bi] = [0, 0];
  for (let o = 0; ; ) {
    row(a, ai, sa, b, bi, sb, out, o, n);
    o += n;
    if (o >= out.length) return;
    for (let axis = 1; axis < sizes.length; axis++) {
      ai += aSteps[axis] as number;
      bi += bSteps[axis] as number;
      at[axis] = (at[axis] as number) + 1;
      if ((at[axis] as number) < (sizes[axis] as number)) break;
      at[axis] = 0;
      ai -= (aSteps[axis] as number) * (sizes[axis] as number);
      bi -= (bSteps[axis] as number) * (sizes[axis] as number);
    }
  }
}

const tanh: Kernel = ({ x }) =>
  unary(x, (values, out) => {
    for (let i = 0; i < out.length; i++) out[i] = Math.tanh(values[i] as number);
  });

/** y = f(x), by a loop over both. */
function unary(
  x: TensorInfo | undefined,
  run: (values: Values, out: Values) => void,
): TensorInfo | undefined {
  if (x?.dtype !== 'float32') return undefined;
  return tensorInfoFrom(x.shape, (out) => run(valuesOf(x), out));
}

/** Over the last axis: exp(x - max) / sum, with each step rounded to f32 as in the backend's kernels. */
const softmax: Kernel = ({ logits }, { dim }) => {
  if (logits?.dtype !== 'float32' || dim !== logits.shape.length - 1 || sizeOf(logits) === 0) {
    return undefined;
  }
  const n = logits.shape[dim] as number;
  return unary(logits, (values, out) => {
    for (let start = 0; start < out.length; start += n) softmaxRow(values, out, start, n);
  });
};

function softmaxRow(values: Values, out: Values, start: number, n: number): void {
  let max = values[start] as number;
  for (let i = start; i < start + n; i++) {
    const value = values[i] as number;
    if (Number.isNaN(value) || value > max) max = value;
  }
  let sum = 0;
  for (let i = start; i < start + n; i++) {
    const power = Math.fround(Math.exp(Math.fround((values[i] as number) - max)));
    out[i] = power;
    sum += power;
  }
  const total = Math.fround(sum);
  for (let i = start; i < start + n; i++) out[i] = (out[i] as number) / total;
}

export const elementwiseKernels: Readonly<Record<string, Kernel>> = {
  Multiply: binary(multiplyRow),
  Add: binary(addRow),
  Sub: binary(subtractRow),
  RealDiv: binary(divideRow),
  Pow: binary(powerRow),
  Neg: ({ x }) =>
    unary(x, (values, out) => {
      for (let i = 0; i < out.length; i++) out[i] = -(values[i] as number);
    }),
  Square: ({ x }) =>
    unary(x, (values, out) => {
      for (let i = 0; i < out.length; i++) out[i] = (values[i] as number) * (values[i] as number);
    }),
  Tanh: tanh,
  Softmax: softmax,
};
