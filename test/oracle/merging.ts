/**
 * Merges of LoRA adapters in float64 on dense updates [N, K], by their definitions: whole sorts in place of thresholds, power
 * iteration in place of factored decompositions.
 */

/** A layer's factors. */
export interface OracleTask {
  readonly a: readonly number[][];
  readonly b: readonly number[][];
  readonly scaling: number;
}

type Matrix = number[][];

const map = (m: Matrix, f: (value: number, i: number, j: number) => number): Matrix =>
  m.map((row, i) => row.map((value, j) => f(value, i, j)));

export const product = (b: Matrix, a: Matrix): Matrix =>
  b.map((row) =>
    (a[0] as number[]).map((_, k) =>
      row.reduce((sum, value, i) => sum + value * (a[i]?.[k] as number), 0),
    ),
  );

/** `scaling · B · A` */
export const updateOf = ({ a, b, scaling }: OracleTask): Matrix =>
  map(product(b as Matrix, a as Matrix), (value) => value * scaling);

const zeros = (n: number, k: number): Matrix =>
  Array.from({ length: n }, () => new Array(k).fill(0));

/** Σ weights · matrices */
export function sum(matrices: readonly Matrix[], weights: readonly number[]): Matrix {
  const [first] = matrices as [Matrix];
  return map(first, (_, i, j) =>
    matrices.reduce((all, m, t) => all + (weights[t] as number) * (m[i]?.[j] as number), 0),
  );
}

/** The k entries of largest magnitude, earlier ones first where they are equal. */
export function largest(m: Matrix, k: number): Matrix {
  const entries = m.flatMap((row, i) => row.map((value, j) => ({ value, i, j })));
  const order = entries
    .map((entry, at) => ({ ...entry, at }))
    .sort((x, y) => Math.abs(y.value) - Math.abs(x.value) || x.at - y.at);
  const out = zeros(m.length, (m[0] as number[]).length);
  for (const { value, i, j } of order.slice(0, k)) (out[i] as number[])[j] = value;
  return out;
}

/** All entries whose magnitude is at least that of the k-th largest. */
export function fromBound(m: Matrix, k: number): Matrix {
  const order = m
    .flat()
    .map(Math.abs)
    .sort((x, y) => y - x);
  const bound = order[k - 1] as number;
  return map(m, (value) => (Math.abs(value) >= bound ? value : 0));
}

/** TIES after pruning. */
export function disjoint(
  tasks: readonly Matrix[],
  weights: readonly number[],
  election: string,
): Matrix {
  return map(tasks[0] as Matrix, (_, i, j) => {
    const values = tasks.map((m) => m[i]?.[j] as number);
    const votes = values.map((value) => (election === 'total' ? value : Math.sign(value)));
    const elected = votes.reduce((a, b) => a + b, 0) >= 0 ? 1 : -1;
    const agree = values.flatMap((value, t) =>
      Math.sign(value) === elected ? [value * (weights[t] as number)] : [],
    );
    return agree.reduce((a, b) => a + b, 0) / Math.max(agree.length, 1);
  });
}

const transpose = (m: Matrix): Matrix =>
  (m[0] as number[]).map((_, j) => m.map((row) => row[j] as number));

/** Triplets of a dense matrix, largest first, by power iteration with deflation. */
export function triplets(m: Matrix, count: number): { u: number[]; s: number; v: number[] }[] {
  let left = m.map((row) => [...row]);
  const found: { u: number[]; s: number; v: number[] }[] = [];
  const times = (x: Matrix, vector: readonly number[]) =>
    x.map((row) => row.reduce((all, value, j) => all + value * (vector[j] as number), 0));
  const length = (x: readonly number[]) => Math.hypot(...x);
  for (let i = 0; i < count; i++) {
    const back = transpose(left);
    let v = (m[0] as number[]).map((_, j) => Math.cos(3 * i + 7 * j + 1));
    for (let step = 0; step < 4000; step++) {
      const next = times(back, times(left, v));
      const norm = length(next);
      if (norm === 0) break;
      v = next.map((value) => value / norm);
    }
    const scaled = times(left, v);
    const s = length(scaled);
    if (!(s > 0)) break;
    const u = scaled.map((value) => value / s);
    found.push({ u, s, v });
    left = map(left, (value, n, k) => value - s * (u[n] as number) * (v[k] as number));
  }
  return found;
}

/** The nearest matrix of a rank. */
export function truncate(m: Matrix, rank: number): Matrix {
  const found = triplets(m, rank);
  return map(m, (_, n, k) =>
    found.reduce((all, { u, s, v }) => all + s * (u[n] as number) * (v[k] as number), 0),
  );
}

/** KnOTS-TIES: of all updates side by side. */
export function knots(
  updates: readonly Matrix[],
  weights: readonly number[],
  density: number,
  scale: number,
): Matrix {
  const [first] = updates as readonly [Matrix];
  const K = (first[0] as number[]).length;
  const wide = first.map((_, n) => updates.flatMap((m) => m[n] as number[]));
  const found = triplets(wide, Math.min(wide.length, (wide[0] as number[]).length)).filter(
    ({ s }) => s > 1e-5,
  );
  const parts = updates.map((_, t) =>
    found.map(({ s, v }) => v.slice(t * K, (t + 1) * K).map((value) => s * value)),
  );
  const kept = parts.map((m) => {
    const n = m.length * K;
    return fromBound(m, Math.min(n, Math.floor(n * density) + 1));
  });
  const sums = sum(
    kept,
    kept.map(() => 1),
  );
  const most = sums.flat().reduce((all, value) => all + Math.sign(value), 0);
  const mean = map(sums, (total, i, j) => {
    const positive = total === 0 ? most > 0 : total > 0;
    const values = kept.flatMap((m, t) => {
      const value = m[i]?.[j] as number;
      return (positive ? value > 0 : value < 0) ? [value * (weights[t] as number)] : [];
    });
    return values.reduce((a, b) => a + b, 0) / Math.max(values.length, 1);
  });
  const u = transpose(found.map((each) => each.u));
  return map(product(u, mean), (value) => value * scale);
}

/** ComPEFT's compression of one adapter: the largest entries of both factors of all layers together. */
export function ternary(
  tensors: readonly Matrix[],
  density: number,
  magnitude: string,
  scale: number,
): Matrix[] {
  const flat = tensors.flat(2);
  const k = Math.min(flat.length, Math.floor(flat.length * density) + 1);
  const kept = fromBound([flat], k)[0] as number[];
  const mean = flat.reduce((a, b) => a + b, 0) / flat.length;
  const std = Math.sqrt(
    flat.reduce((all, value) => all + (value - mean) ** 2, 0) / (flat.length - 1),
  );
  const own = kept.filter((value) => value !== 0);
  const entries = magnitude === 'mean-abs' ? own.map(Math.abs) : own;
  const alpha =
    magnitude === 'std' ? scale * std : entries.reduce((a, b) => a + b, 0) / entries.length;
  let at = 0;
  return tensors.map((m) => map(m, () => alpha * Math.sign(kept[at++] as number)));
}
