/** Integer codes on a grid whose steps and offsets are tensors: rounding to it, and what a gradient is of it. */

import { checkShape, checkTensor } from '../../core/check-tensor.js';
import { fail, wrongType } from '../../core/errors.js';
import { full } from '../../core/full.js';
import { scope } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import { checkInteger, checkSameDevice, showShape } from '../../core/validate.js';
import { mapTensor, multiplyAdd, sumProduct } from '../elementwise.js';

/** Which elements count as clipped: those whose value is at an end of the codes or beyond, or whose rounded code is beyond. */
export type ClippedBy = 'value' | 'code';

/** Codes of a grid. */
export interface GridCodes {
  /** Bits of a code, 1 to 8. */
  readonly bits: number;
  /** The smallest code; default −2^(bits − 1). 0 for codes that are not negative. */
  readonly first?: number;
}

/** A weight on a grid: `w ≈ scale · code + offset`. */
export interface UniformGrid extends GridCodes {
  /** [N, G] f32, positive: the step of each of the G groups of a row. */
  readonly scale: Tensor;
  /** [N, G] f32, in units of w; default 0. */
  readonly offset?: Tensor;
}

/** Sum with it rounds to the nearest integer, a tie to the even one. */
const kInteger = 1.5 * 2 ** 23;

/** The nearest integers of values within ±2²², a tie the even one, in f32. */
export function nearestIntegers(a: Tensor): Tensor {
  const { device } = a;
  return scope(() => {
    const shifted = multiplyAdd({ a, c: full([1], kInteger, { device }), dtype: 'f32' });
    return multiplyAdd({ a: shifted, c: full([1], -kInteger, { device }) });
  });
}

interface Checked {
  readonly first: number;
  readonly last: number;
  readonly shape: readonly [N: number, K: number];
  /** [N · G, K / G], a group a row. */
  readonly groups: readonly [number, number];
}

/** @throws ERR_TYPE · ERR_VALUE */
export function endsOf(op: string, { bits, first }: GridCodes): { first: number; last: number } {
  checkInteger(op, 'bits', bits, 1, 8);
  const low =
    first === undefined ? -(2 ** (bits - 1)) : checkInteger(op, 'first', first, -255, 255);
  return { first: low, last: low + 2 ** bits - 1 };
}

/** @throws ERR_TYPE · ERR_SHAPE · ERR_DEVICE · ERR_VALUE · ERR_DISPOSED */
export function checkGrid(op: string, w: Tensor, grid: UniformGrid): Checked {
  checkTensor(op, 'w', w);
  if (grid === null || typeof grid !== 'object') throw wrongType(op, 'grid', 'an object', grid);
  const { first, last } = endsOf(op, grid);
  const { scale, offset } = grid;
  checkTensor(op, 'scale', scale);
  checkSameDevice(op, 'scale', scale, w);
  const [N = 0, K = 0] = w.shape;
  if (w.shape.length !== 2) fail('ERR_SHAPE', op, 'w', 'of shape [N, K]', showShape(w.shape));
  const [, G = 0] = scale.shape;
  if (scale.shape.length !== 2 || scale.shape[0] !== N || G < 1 || K % G !== 0) {
    const expected = `of shape [${N}, G] with G a divisor of K (${K})`;
    fail('ERR_SHAPE', op, 'scale', expected, showShape(scale.shape));
  }
  if (offset !== undefined) {
    checkShape(op, 'offset', checkTensor(op, 'offset', offset), [N, G]);
    checkSameDevice(op, 'offset', offset, w);
  }
  return { first, last, shape: [N, K], groups: [N * G, K / G] };
}

/** A column for each group, in f32. */
const column = (a: Tensor): Tensor => a.to({ dtype: 'f32' }).reshape([a.size, 1]);

/** What both passes need: `(w − offset) / scale − first`, from 0 to last − first on the grid. */
function steps(w: Tensor, grid: UniformGrid, { first, groups }: Checked) {
  const { device } = w;
  const inverse = mapTensor(column(grid.scale), 'reciprocal');
  const start = full([1], -first, { device });
  const shift =
    grid.offset === undefined
      ? start
      : multiplyAdd({ a: column(grid.offset), b: inverse, c: start, alpha: -1 });
  return multiplyAdd({ a: w.reshape(groups), b: inverse, c: shift, dtype: 'f32' });
}

/** Codes, as [N · G, K / G] f32: the nearest of the grid. */
function codesOf(u: Tensor, { first, last }: Checked): Tensor {
  const { device } = u;
  const top = last - first;
  const under = multiplyAdd({ a: mapTensor(u, 'relu'), c: full([1], top, { device }), alpha: -1 });
  const below = mapTensor(under, 'relu');
  const rounded = multiplyAdd({ a: below, c: full([1], top + kInteger, { device }), alpha: -1 });
  const steps = multiplyAdd({ a: rounded, c: full([1], -kInteger, { device }) });
  return first === 0 ? steps : multiplyAdd({ a: steps, c: full([1], first, { device }) });
}

/** 1 where a small change of the value moves the rounded one, under the straight-through rule; else 0. */
function insideOf(u: Tensor, { first, last }: Checked, by: ClippedBy): Tensor {
  const { device } = u;
  const slack = by === 'code' ? 0.5 : 0;
  const above = multiplyAdd({ a: u, c: full([1], slack, { device }) });
  const below = multiplyAdd({ a: u, c: full([1], last - first + slack, { device }), alpha: -1 });
  const positive = (a: Tensor) => mapTensor(mapTensor(a, 'relu'), 'sign');
  return multiplyAdd({ a: positive(above), b: positive(below) });
}

/** The values of codes: `scale · code + offset`, [N, K] f32. */
function valuesOf(codes: Tensor, grid: UniformGrid, { shape }: Checked): Tensor {
  const scaled = multiplyAdd({ a: codes, b: column(grid.scale) });
  if (grid.offset === undefined) return scaled.reshape(shape);
  return multiplyAdd({ a: scaled, c: column(grid.offset) }).reshape(shape);
}

/**
 * A weight rounded to a grid: `scale · code + offset`, with `code` the nearest integer from `first` on to
 * `(w − offset) / scale`.
 * @param w [N, K]
 * @returns the values [N, K] f32, and the codes, as integers in f32
 * @throws ERR_TYPE · ERR_SHAPE · ERR_DEVICE · ERR_VALUE · ERR_DISPOSED · ERR_OOM
 */
export function roundToGrid(
  op: string,
  w: Tensor,
  grid: UniformGrid,
): { readonly values: Tensor; readonly codes: Tensor } {
  const checked = checkGrid(op, w, grid);
  return scope(() => {
    const codes = codesOf(steps(w, grid, checked), checked);
    return { values: valuesOf(codes, grid, checked), codes: codes.reshape(checked.shape) };
  });
}

/** How {@link gridBackward} works. */
export interface GridBackward {
  readonly clippedBy: ClippedBy;
  readonly needs: readonly (keyof GridGradients)[];
}

/** Gradients of a rounded weight. */
export interface GridGradients {
  readonly dw?: Tensor;
  readonly dScale?: Tensor;
  readonly dOffset?: Tensor;
}

/**
 * The gradients of `Σ dy ⊙ values` of {@link roundToGrid}, where rounding has the derivative 1 (straight-through). An element
 * on the grid gives dy to w, and `dy · (code − (w − offset) / scale)` to its step. A clipped one gives dy to its offset, and
 * `dy · code` to its step.
 * @param dy [N, K]
 */
export function gridBackward(
  dy: Tensor,
  w: Tensor,
  grid: UniformGrid,
  { clippedBy, needs }: GridBackward,
): GridGradients {
  const checked = checkGrid('gridBackward', w, grid);
  const { first, groups, shape } = checked;
  const { device } = w;
  return scope(() => {
    const u = steps(w, grid, checked);
    const inside = insideOf(u, checked, clippedBy);
    const d = dy.reshape(groups);
    const wants = (name: keyof GridGradients) => needs.includes(name);
    const own = multiplyAdd({ a: d, b: inside, dtype: 'f32' });
    const of = (sums: Tensor): Tensor => sums.reshape(grid.scale.shape);
    const value = multiplyAdd({ a: u, c: full([1], first, { device }) });
    const error = (): Tensor => {
      const moved = multiplyAdd({ a: value, b: inside });
      return multiplyAdd({ a: codesOf(u, checked), c: moved, beta: -1 });
    };
    return {
      ...(wants('dw') ? { dw: own.reshape(shape) } : {}),
      ...(wants('dScale') ? { dScale: of(sumProduct(d, error(), { axis: 1 })) } : {}),
      ...(wants('dOffset')
        ? {
            dOffset: of(
              sumProduct(multiplyAdd({ a: d, c: own, beta: -1, dtype: 'f32' }), undefined, {
                axis: 1,
              }),
            ),
          }
        : {}),
    };
  });
}
