/** Causal attention and its gradients in float64, written from the formula with whole rows of weights. */
import { type OracleDType, roundAll } from './dtypes.js';
import { at, type Bounded, type Matrix, matrix } from './linear.js';

export interface AttentionSpec {
  readonly sequences: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly scale: number;
  readonly window?: number;
  readonly softcap?: number;
  /** [P, rot]: cosines, then sines. */
  readonly rope?: Matrix;
  /** Of each row, the row of its sequence at which its document begins. */
  readonly documents?: readonly number[];
  /** Of each head: one more score, without a value. */
  readonly sinks?: readonly number[];
  /** What turned queries and keys are rounded to. */
  readonly dtype?: OracleDType;
}

export interface AttentionResult64 {
  readonly o: Matrix;
  /** [heads, M] */
  readonly lse: Matrix;
  /** Σ p · |v|: how large the terms of o are. */
  readonly terms: Matrix;
  /** [heads, M]: the largest scale · Σ |q · k| that a row sees, which errors of scores grow with. */
  readonly reach: Matrix;
}

/** Columns of one head of one row, turned by an angle of that position; `sign` -1 turns back. */
function turned(spec: AttentionSpec, head: number[], position: number, sign: number): number[] {
  const { rope } = spec;
  if (rope === undefined) return head;
  const half = rope.cols / 2;
  const out = [...head];
  for (let i = 0; i < half; i++) {
    const [a, b] = [head[i] as number, head[i + half] as number];
    const [c, s] = [at(rope, position, i), sign * at(rope, position, half + i)];
    out[i] = a * c - b * s;
    out[i + half] = a * s + b * c;
  }
  return out;
}

const head64 = (m: Matrix, row: number, head: number, dim: number): number[] =>
  Array.from({ length: dim }, (_, d) => at(m, row, head * dim + d));

/** What a row sees, and the weights that it gives: of one head of one sequence. */
interface HeadPass {
  readonly q: number[][];
  readonly k: number[][];
  readonly v: number[][];
  /** [t][i]: capped scores; -Infinity where t does not see i. */
  readonly scores: number[][];
  readonly p: number[][];
  readonly lse: number[];
  /** Of each row: the largest scale · Σ |q · k| that it sees. */
  readonly reach: number[];
}

const dot = (a: readonly number[], b: readonly number[]): number => {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number);
  return sum;
};

const documentOf = (spec: AttentionSpec, m: number): number => spec.documents?.[m] ?? 0;

function headPass(
  spec: AttentionSpec,
  q: Matrix,
  k: Matrix,
  v: Matrix,
  b: number,
  head: number,
): HeadPass {
  const { headDim: D, scale, softcap, window = Infinity, dtype = 'f32' } = spec;
  const T = q.rows / spec.sequences;
  const kvHead = Math.floor((head * spec.kvHeads) / spec.heads);
  const turn = (m: Matrix, h: number): number[][] =>
    Array.from({ length: T }, (_, t) => {
      const raw = head64(m, b * T + t, h, D);
      if (spec.rope === undefined) return raw;
      const row = turned(spec, raw, t - documentOf(spec, b * T + t), 1);
      return dtype === 'f32' ? row : [...roundAll(dtype, Float64Array.from(row))];
    });
  const qs = turn(q, head);
  const ks = turn(k, kvHead);
  const vs = Array.from({ length: T }, (_, t) => head64(v, b * T + t, kvHead, D));
  const scores = qs.map((row, t) =>
    ks.map((key, i) => {
      if (i > t || i <= t - window || i < documentOf(spec, b * T + t)) return -Infinity;
      const score = scale * dot(row, key);
      return softcap === undefined ? score : softcap * Math.tanh(score / softcap);
    }),
  );
  const sink = spec.sinks?.[head];
  const lse = scores.map((seen) => {
    const row = sink === undefined ? seen : [...seen, sink];
    const most = Math.max(...row);
    return most + Math.log(row.reduce((sum, score) => sum + Math.exp(score - most), 0));
  });
  const p = scores.map((row, t) => row.map((score) => Math.exp(score - (lse[t] as number))));
  const sizes = ks.map((key) => key.map(Math.abs));
  const reach = qs.map((row, t) => {
    const size = row.map(Math.abs);
    const seen = sizes.filter((_, i) => scores[t]?.[i] !== -Infinity);
    return Math.abs(scale) * Math.max(...seen.map((key) => dot(size, key)));
  });
  return { q: qs, k: ks, v: vs, scores, p, lse, reach };
}

export function attention64(
  spec: AttentionSpec,
  q: Matrix,
  k: Matrix,
  v: Matrix,
): AttentionResult64 {
  const { headDim: D, heads, sequences } = spec;
  const T = q.rows / sequences;
  const o = matrix(q.rows, heads * D);
  const terms = matrix(q.rows, heads * D);
  const lse = matrix(heads, q.rows);
  const reach = matrix(heads, q.rows);
  for (let b = 0; b < sequences; b++) {
    for (let h = 0; h < heads; h++) {
      const pass = headPass(spec, q, k, v, b, h);
      for (let t = 0; t < T; t++) {
        const m = b * T + t;
        lse.data[h * q.rows + m] = pass.lse[t] as number;
        reach.data[h * q.rows + m] = pass.reach[t] as number;
        for (let i = 0; i <= t; i++) {
          const p = pass.p[t]?.[i] as number;
          for (let d = 0; d < D; d++) {
            const value = p * (pass.v[i]?.[d] as number);
            o.data[m * o.cols + h * D + d] = at(o, m, h * D + d) + value;
            terms.data[m * o.cols + h * D + d] = at(terms, m, h * D + d) + Math.abs(value);
          }
        }
      }
    }
  }
  return { o, lse, terms, reach };
}

/** Gradients, and how large the terms are that they are sums of. */
export interface AttentionGradients64 {
  readonly dq: Bounded;
  readonly dk: Bounded;
  readonly dv: Bounded;
}

export function attentionGradients64(
  spec: AttentionSpec,
  q: Matrix,
  k: Matrix,
  v: Matrix,
  dO: Matrix,
): AttentionGradients64 {
  const { headDim: D, heads, sequences, scale, softcap } = spec;
  const T = q.rows / sequences;
  const zeros = (m: Matrix): Bounded => ({
    value: matrix(m.rows, m.cols),
    p: matrix(m.rows, m.cols),
  });
  const [dq, dk, dv] = [zeros(q), zeros(k), zeros(v)];
  const add = (m: Matrix, row: number, head: number, values: readonly number[]): void => {
    for (const [d, value] of values.entries()) {
      m.data[row * m.cols + head * D + d] = at(m, row, head * D + d) + value;
    }
  };
  /** A pair of dimensions mixes both. */
  const mixed = (row: readonly number[]): number[] => {
    const half = (spec.rope?.cols ?? 0) / 2;
    return row.map((value, d) => {
      if (d >= 2 * half) return value;
      return value + (row[d < half ? d + half : d - half] as number);
    });
  };
  for (let b = 0; b < sequences; b++) {
    const back = (row: number[], t: number): number[] =>
      turned(spec, row, t - documentOf(spec, b * T + t), -1);
    for (let h = 0; h < heads; h++) {
      const kvHead = Math.floor((h * spec.kvHeads) / heads);
      const pass = headPass(spec, q, k, v, b, h);
      for (let t = 0; t < T; t++) {
        const p = pass.p[t] as number[];
        const dy = head64(dO, b * T + t, h, D);
        const dySize = dy.map(Math.abs);
        const seen = (i: number): boolean => p[i] !== 0;
        const dp = pass.v.map((row, i) => (seen(i) ? dot(dy, row) : 0));
        const sizes = pass.v.map((row, i) => (seen(i) ? dot(dySize, row.map(Math.abs)) : 0));
        const [mean, meanSize] = [dot(p, dp), dot(p, sizes)];
        const sum = new Array<number>(D).fill(0);
        const sumSize = new Array<number>(D).fill(0);
        for (let i = 0; i <= t; i++) {
          const pi = p[i] as number;
          if (pi === 0) continue;
          const score = pass.scores[t]?.[i] as number;
          const slope = softcap === undefined ? 1 : 1 - (score / softcap) ** 2;
          const ds = pi * ((dp[i] as number) - mean) * slope * scale;
          const size = pi * ((sizes[i] as number) + meanSize) * Math.abs(scale);
          const [key, query] = [pass.k[i] as number[], pass.q[t] as number[]];
          for (let d = 0; d < D; d++) {
            sum[d] = (sum[d] as number) + ds * (key[d] as number);
            sumSize[d] = (sumSize[d] as number) + size * Math.abs(key[d] as number);
          }
          add(
            dk.value,
            b * T + i,
            kvHead,
            back(
              query.map((value) => ds * value),
              i,
            ),
          );
          add(dk.p, b * T + i, kvHead, mixed(query.map((value) => size * Math.abs(value))));
          add(
            dv.value,
            b * T + i,
            kvHead,
            dy.map((value) => pi * value),
          );
          add(
            dv.p,
            b * T + i,
            kvHead,
            dy.map((value) => pi * Math.abs(value)),
          );
        }
        add(dq.value, b * T + t, h, back(sum, t));
        add(dq.p, b * T + t, h, mixed(sumSize));
      }
    }
  }
  return { dq, dk, dv };
}

/** A table of [positions, rot]: angles p · base^(-2i / rot), as f32 holds them. */
export function ropeTable(positions: number, rot: number, base = 10_000): Matrix {
  const table = matrix(positions, rot);
  for (let p = 0; p < positions; p++) {
    for (let i = 0; i < rot / 2; i++) {
      const angle = p * base ** ((-2 * i) / rot);
      table.data[p * rot + i] = Math.fround(Math.cos(angle));
      table.data[p * rot + rot / 2 + i] = Math.fround(Math.sin(angle));
    }
  }
  return table;
}
