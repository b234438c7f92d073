/** Codes of levels that are tensors: rounding to them, and what a gradient is of it. On the host. */

import { checkShape, checkTensor } from '../../core/check-tensor.js';
import { fail, wrongType } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import { checkSameDevice, showShape } from '../../core/validate.js';

/** A weight on levels: `w ≈ scale · level`. */
export interface LevelGrid {
  /** [1, n] f32 for all rows, or [N, n], with n from 2 to 256, in any order. */
  readonly levels: Tensor;
  /** [N, G] f32, positive: the scale of each of the G groups of a row; default 1. */
  readonly scale?: Tensor;
}

/** A checked grid in arrays. */
export interface HostLevels {
  readonly N: number;
  readonly K: number;
  /** Elements of a group. */
  readonly groupSize: number;
  /** [N · K] */
  readonly values: Float32Array;
  /** [N · K / groupSize] */
  readonly scales: Float32Array;
  /** [rows, n] */
  readonly levels: Float32Array;
  readonly n: number;
  /** Do all rows share the levels? */
  readonly shared: boolean;
}

/** @throws ERR_TYPE · ERR_SHAPE · ERR_DEVICE · ERR_DISPOSED */
export function hostLevels(op: string, w: Tensor, grid: LevelGrid): HostLevels {
  checkTensor(op, 'w', w);
  if (grid === null || typeof grid !== 'object') throw wrongType(op, 'grid', 'an object', grid);
  const { levels, scale } = grid;
  checkTensor(op, 'levels', levels);
  checkSameDevice(op, 'levels', levels, w);
  const [N = 0, K = 0] = w.shape;
  if (w.shape.length !== 2) fail('ERR_SHAPE', op, 'w', 'of shape [N, K]', showShape(w.shape));
  const [rows = 0, n = 0] = levels.shape;
  if (levels.shape.length !== 2 || (rows !== 1 && rows !== N) || n < 2 || n > 256) {
    const expected = `of shape [1, n] or [${N}, n] with n from 2 to 256`;
    fail('ERR_SHAPE', op, 'levels', expected, showShape(levels.shape));
  }
  let G = 1;
  if (scale !== undefined) {
    checkTensor(op, 'scale', scale);
    checkSameDevice(op, 'scale', scale, w);
    [, G = 0] = scale.shape;
    if (G < 1 || K % G !== 0) {
      const expected = `of shape [${N}, G] with G a divisor of K (${K})`;
      fail('ERR_SHAPE', op, 'scale', expected, showShape(scale.shape));
    }
    checkShape(op, 'scale', scale, [N, G]);
  }
  const floats = (tensor: Tensor) =>
    (tensor.dtype === 'f32' ? tensor : tensor.to({ dtype: 'f32' })).readSync();
  return {
    N,
    K,
    groupSize: K / G,
    values: floats(w),
    scales: scale === undefined ? new Float32Array(N).fill(1) : floats(scale),
    levels: floats(levels),
    n,
    shared: rows === 1 && N !== 1,
  };
}

/** Calls `visit` with each element: its value over its scale, and the index of its level in the whole table. */
export function eachCode(
  { N, K, groupSize, values, scales, levels, n, shared }: HostLevels,
  visit: (at: number, scaled: number, level: number, inside: boolean, group: number) => void,
): void {
  let order = new Int32Array();
  let bounds = new Float64Array();
  for (let row = 0; row < N; row++) {
    const first = shared ? 0 : row * n;
    if (row === 0 || !shared) {
      order = Int32Array.from({ length: n }, (_, i) => first + i);
      order.sort((i, j) => (levels[i] as number) - (levels[j] as number));
      bounds = Float64Array.from({ length: n - 1 }, (_, i) => {
        const next = levels[order[i + 1] as number] as number;
        return ((levels[order[i] as number] as number) + next) / 2;
      });
    }
    const least = levels[order[0] as number] as number;
    const most = levels[order[n - 1] as number] as number;
    for (let at = row * K; at < (row + 1) * K; at++) {
      const group = Math.floor(at / groupSize);
      const scaled = (values[at] as number) / (scales[group] as number);
      let [low, high] = [0, n - 1];
      while (low < high) {
        const middle = (low + high) >> 1;
        if ((bounds[middle] as number) < scaled) low = middle + 1;
        else high = middle;
      }
      visit(at, scaled, order[low] as number, scaled > least && scaled < most, group);
    }
  }
}

/**
 * A weight rounded to levels: `scale · level`, with the level nearest to `w / scale`, a tie the lower one.
 * @param w [N, K]
 * @returns [N, K] f32
 * @throws ERR_TYPE · ERR_SHAPE · ERR_DEVICE · ERR_DISPOSED · ERR_OOM
 */
export function roundToLevels(op: string, w: Tensor, grid: LevelGrid): Tensor {
  const host = hostLevels(op, w, grid);
  const { levels, scales, N, K } = host;
  const out = new Float32Array(N * K);
  eachCode(host, (at, _, level, __, group) => {
    out[at] = (levels[level] as number) * (scales[group] as number);
  });
  return Tensor.from(out, [N, K], { device: w.device });
}

/** Gradients of a weight on levels. */
export interface LevelGradients {
  readonly dw: Tensor;
  readonly dLevels: Tensor;
  readonly dScale?: Tensor;
}

/**
 * The gradients of `Σ dy ⊙ values` of {@link roundToLevels}, where rounding between the outermost levels has the derivative 1. Sums
 * are in double.
 * @param dy [N, K]
 */
export function levelsBackward(dy: Tensor, w: Tensor, grid: LevelGrid): LevelGradients {
  const host = hostLevels('levelsBackward', w, grid);
  const { levels, scales, N, K } = host;
  const { device } = w;
  const given = dy.readSync();
  const dw = new Float32Array(N * K);
  const [dLevels, dScale] = [new Float64Array(levels.length), new Float64Array(scales.length)];
  eachCode(host, (at, scaled, level, inside, group) => {
    const d = given[at] as number;
    if (inside) dw[at] = d;
    dLevels[level] = (dLevels[level] as number) + d * (scales[group] as number);
    const moved = (levels[level] as number) - (inside ? scaled : 0);
    dScale[group] = (dScale[group] as number) + d * moved;
  });
  return {
    dw: Tensor.from(dw, [N, K], { device }),
    dLevels: Tensor.from(Float32Array.from(dLevels), grid.levels.shape, { device }),
    ...(grid.scale === undefined
      ? {}
      : { dScale: Tensor.from(Float32Array.from(dScale), grid.scale.shape, { device }) }),
  };
}
