/** Causal attention of one layer in float64, with its gradient written by hand. */
import type { AttentionConfig } from '../../../lib/index.js';
import { type Matrix, matrix, type Step } from './matrix.js';
import { type Angles, anglesOf } from './rotary.js';

/** B rows of T tokens; a row may hold several documents. */
export interface Rows {
  readonly B: number;
  readonly T: number;
  /** [B · T], from 0 in each document. */
  readonly positions: ArrayLike<number>;
  /** [B · T]: which document of the row a token belongs to. */
  readonly segments: ArrayLike<number>;
}

/** Turns every head of every row by its position; backwards for gradients, with the same magnitude. */
function rotated(x: Matrix, rows: Rows, headDim: number, angles: Angles, sign: 1 | -1): Matrix {
  const y = matrix(x.rows, x.cols, x.values.slice());
  const half = angles.dims / 2;
  for (let m = 0; m < x.rows; m++) {
    for (let head = 0; head < x.cols; head += headDim) {
      for (let i = 0; i < half; i++) {
        const [cos, sin] = angles.of(rows.positions[m] as number, i);
        const at = m * x.cols + head + i;
        const [low, high] = [x.values[at] as number, x.values[at + half] as number];
        y.values[at] = low * cos - sign * high * sin;
        y.values[at + half] = high * cos + sign * low * sin;
      }
    }
  }
  return y;
}

/**
 * o = softmax(mask(cap(scale · q · kᵀ))) · v for every head.
 * @param q [B·T, heads · headDim]
 * @param k [B·T, kvHeads · headDim], as v
 * @param angles in place of those of the config, by position
 * @param sinks of each head one more score, without a value
 */
export function attention(
  q: Matrix,
  k: Matrix,
  v: Matrix,
  config: AttentionConfig,
  rows: Rows,
  angles: Angles = anglesOf(config.rotary, Math.max(...Array.from(rows.positions))),
  sinks?: ArrayLike<number>,
): Step<readonly [Matrix, Matrix, Matrix]> {
  const { heads, kvHeads, headDim: d, scale, softcap, window = Number.POSITIVE_INFINITY } = config;
  const { B, T, segments } = rows;
  const [qr, kr] = [rotated(q, rows, d, angles, 1), rotated(k, rows, d, angles, 1)];
  const sees = (at: number, other: number) =>
    other <= at && other > at - window && segments[at] === segments[other];
  const o = matrix(q.rows, q.cols);
  /** Of (head, query): what it gives to each key, and the derivative of the soft cap. */
  const weights: { readonly m: number; readonly n: number; p: number; slope: number }[][] = [];
  const dot = (a: Matrix, m: number, ha: number, b: Matrix, n: number, hb: number) => {
    let sum = 0;
    for (let i = 0; i < d; i++) {
      sum +=
        (a.values[m * a.cols + ha * d + i] as number) *
        (b.values[n * b.cols + hb * d + i] as number);
    }
    return sum;
  };
  const addRow = (
    a: Matrix,
    m: number,
    ha: number,
    f: number,
    b: Matrix,
    n: number,
    hb: number,
  ) => {
    for (let i = 0; i < d; i++) {
      const at = m * a.cols + ha * d + i;
      a.values[at] = (a.values[at] as number) + f * (b.values[n * b.cols + hb * d + i] as number);
    }
  };
  const keyHead = (head: number) => Math.floor(head / (heads / kvHeads));
  for (let head = 0; head < heads; head++) {
    for (let m = 0; m < B * T; m++) {
      const begin = m - (m % T);
      const list = [];
      for (let n = begin; n <= m; n++) {
        if (!sees(m, n)) continue;
        const score = scale * dot(qr, m, head, kr, n, keyHead(head));
        const t = softcap === undefined ? 0 : Math.tanh(score / softcap);
        const capped = softcap === undefined ? score : softcap * t;
        list.push({ m, n, p: capped, slope: 1 - t * t });
      }
      const sink = sinks?.[head] ?? Number.NEGATIVE_INFINITY;
      const max = Math.max(sink, ...list.map(({ p }) => p));
      const total = list.reduce((sum, { p }) => sum + Math.exp(p - max), Math.exp(sink - max));
      for (const each of list) {
        each.p = Math.exp(each.p - max) / total;
        addRow(o, m, head, each.p, v, each.n, keyHead(head));
      }
      weights.push(list);
    }
  }
  const back = (dO: Matrix) => {
    const [dqr, dkr] = [matrix(q.rows, q.cols), matrix(k.rows, k.cols)];
    const dv = matrix(v.rows, v.cols);
    weights.forEach((list, index) => {
      const head = Math.floor(index / (B * T));
      const kv = keyHead(head);
      const dp = list.map(({ m, n }) => dot(dO, m, head, v, n, kv));
      const mean = list.reduce((sum, { p }, i) => sum + p * (dp[i] as number), 0);
      list.forEach(({ m, n, p, slope }, i) => {
        const ds = p * ((dp[i] as number) - mean) * slope * scale;
        addRow(dqr, m, head, ds, kr, n, kv);
        addRow(dkr, n, kv, ds, qr, m, head);
        addRow(dv, n, kv, p, dO, m, head);
      });
    });
    return [rotated(dqr, rows, d, angles, -1), rotated(dkr, rows, d, angles, -1), dv] as const;
  };
  return { y: o, back };
}
