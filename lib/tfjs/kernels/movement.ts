/** Kernels for the cpu backend that move or sum values: Transpose, Sum, GatherV2, Pack, Slice. */

import type { TensorInfo } from '@tensorflow/tfjs';
import { tensorInfoFrom, valuesOf } from '../ops/backend-memory.js';
import { tensorflow } from '../ops/tensorflow.js';
import { type Kernel, sizeOf } from './kernel.js';

/** Copies a run. For a short one, making a view of it takes longer than the loop. */
function copyRun(from: Float32Array, start: number, n: number, to: Float32Array, at: number): void {
  if (n > 24) to.set(from.subarray(start, start + n), at);
  else for (let i = 0; i < n; i++) to[at + i] = from[start + i] as number;
}

/** Writes x with its axes in the order `perm`; runs of the last axis of the result are one loop. */
function transposeInto(
  values: Float32Array,
  shape: readonly number[],
  perm: readonly number[],
  out: Float32Array,
): void {
  if (out.length === 0) return;
  const steps = shape.map((_, axis) => shape.slice(axis + 1).reduce((size, dim) => size * dim, 1));
  const sizes = perm.map((axis) => shape[axis] as number);
  const moves = perm.map((axis) => steps[axis] as number);
  const last = sizes.length - 1;
  const [n, step] = [sizes[last] ?? 1, moves[last] ?? 0];
  const at = new Array<number>(sizes.length).fill(0);
  let from = 0;
  for (let o = 0; ; ) {
    if (step === 1) copyRun(values, from, n, out, o);
    else for (let i = 0, p = from; i < n; i++, p += step) out[o + i] = values[p] as number;
    o += n;
    if (o >= out.length) return;
    for (let axis = last - 1; axis >= 0; axis--) {
      from += moves[axis] as number;
      at[axis] = (at[axis] as number) + 1;
      if ((at[axis] as number) < (sizes[axis] as number)) break;
      at[axis] = 0;
      from -= (moves[axis] as number) * (sizes[axis] as number);
    }
  }
}

const transpose: Kernel = ({ x }, { perm }) => {
  if (x?.dtype !== 'float32' || !Array.isArray(perm) || perm.length !== x.shape.length) {
    return undefined;
  }
  const shape = perm.map((axis) => x.shape[axis] as number);
  return tensorInfoFrom(shape, (out) => transposeInto(valuesOf(x), x.shape, perm, out));
};

/** Sums in double, in the order of the elements, as the backend does. */
const sum: Kernel = ({ x }, { axis, keepDims }) => {
  if (x?.dtype !== 'float32' || sizeOf(x) === 0) return undefined;
  const rank = x.shape.length;
  const axes = tensorflow().util.parseAxisParam(axis as number | number[], x.shape);
  const kept = x.shape.map((_, i) => i).filter((i) => !axes.includes(i));
  const shape = x.shape.flatMap((dim, i) =>
    axes.includes(i) ? (keepDims === true ? [1] : []) : [dim],
  );
  const terms = axes.reduce((size, i) => size * (x.shape[i] as number), 1);
  // With the summed axes in front, the sums run beside each other; elsewhere, they are made the last.
  const leading = axes.every((axisAt, i) => axisAt === i);
  const trailing = axes.every((axisAt, i) => axisAt === rank - axes.length + i);
  return tensorInfoFrom(shape, (out) => {
    let values = valuesOf(x);
    if (leading && !trailing) {
      sumColumns(values, terms, out);
      return;
    }
    if (!trailing) {
      const turned = new Float32Array(values.length);
      transposeInto(values, x.shape, [...kept, ...axes], turned);
      values = turned;
    }
    for (let o = 0, i = 0; o < out.length; o++) {
      let total = 0;
      for (const end = i + terms; i < end; i++) total += values[i] as number;
      out[o] = total;
    }
  });
};

function sumColumns(values: Float32Array, rows: number, out: Float32Array): void {
  const totals = new Float64Array(out.length);
  for (let row = 0, i = 0; row < rows; row++) {
    for (let o = 0; o < totals.length; o++, i++) {
      totals[o] = (totals[o] as number) + (values[i] as number);
    }
  }
  out.set(totals);
}

const gather: Kernel = ({ x, indices }, { axis, batchDims }) => {
  if (x?.dtype !== 'float32' || indices?.dtype !== 'int32' || (batchDims ?? 0) !== 0)
    return undefined;
  const [at] = tensorflow().util.parseAxisParam(axis as number, x.shape);
  const dim = x.shape[at as number] as number;
  const rows = tensorflow().engine().readSync(indices.dataId) as Int32Array;
  // The backend's own kernel has the error for these.
  if (rows.some((row) => row < 0 || row >= dim)) return undefined;
  const outer = x.shape.slice(0, at).reduce((size, each) => size * each, 1);
  const width = x.shape.slice((at as number) + 1).reduce((size, each) => size * each, 1);
  const shape = [...x.shape.slice(0, at), ...indices.shape, ...x.shape.slice((at as number) + 1)];
  return tensorInfoFrom(shape, (out) => {
    const values = valuesOf(x);
    let o = 0;
    for (let i = 0; i < outer; i++) {
      for (const row of rows) {
        copyRun(values, (i * dim + row) * width, width, out, o);
        o += width;
      }
    }
  });
};

const pack: Kernel = (inputs, { axis }) => {
  const parts = Object.values(inputs) as TensorInfo[];
  const [first] = parts;
  if (first === undefined || typeof axis !== 'number') return undefined;
  const { shape } = first;
  const fits = parts.every(
    (part) => part.dtype === 'float32' && part.shape.join() === shape.join(),
  );
  if (!fits || axis < 0 || axis > shape.length) return undefined;
  const outer = shape.slice(0, axis).reduce((size, dim) => size * dim, 1);
  const width = shape.slice(axis).reduce((size, dim) => size * dim, 1);
  return tensorInfoFrom([...shape.slice(0, axis), parts.length, ...shape.slice(axis)], (out) => {
    const values = parts.map(valuesOf);
    let o = 0;
    for (let i = 0; i < outer; i++) {
      for (const part of values) {
        copyRun(part, i * width, width, out, o);
        o += width;
      }
    }
  });
};

/** A block of x: `size` elements of each axis from `begin` on. */
function sliceInto(
  values: Float32Array,
  shape: readonly number[],
  begin: readonly number[],
  size: readonly number[],
  out: Float32Array,
): void {
  if (out.length === 0) return;
  // The last axes that are taken whole are one run.
  let axis = shape.length - 1;
  let run = 1;
  for (; axis >= 0 && size[axis] === shape[axis]; axis--) run *= shape[axis] as number;
  const width = axis < 0 ? run : run * (size[axis] as number);
  const outer = out.length / width;
  for (let i = 0; i < outer; i++) {
    let [rest, from, step] = [i, 0, run];
    if (axis >= 0) {
      from = (begin[axis] as number) * run;
      step = run * (shape[axis] as number);
    }
    for (let each = axis - 1; each >= 0; each--) {
      const dim = size[each] as number;
      from += ((begin[each] as number) + (rest % dim)) * step;
      rest = Math.floor(rest / dim);
      step *= shape[each] as number;
    }
    copyRun(values, from, width, out, i * width);
  }
}

const slice: Kernel = ({ x }, { begin, size }) => {
  if (x?.dtype !== 'float32') return undefined;
  const { slice_util } = tensorflow();
  const [from, sizes] = slice_util.parseSliceParams(
    { shape: [...x.shape] } as never,
    begin as number[],
    size as number[],
  ) as [number[], number[]];
  slice_util.assertParamsValid({ shape: [...x.shape], rank: x.shape.length } as never, from, sizes);
  return tensorInfoFrom(sizes, (out) => sliceInto(valuesOf(x), x.shape, from, sizes, out));
};

export const movementKernels: Readonly<Record<string, Kernel>> = {
  Transpose: transpose,
  Sum: sum,
  GatherV2: gather,
  Pack: pack,
  Slice: slice,
};
