/** Formulas in float64 of the methods that are built of blocks, reflections and rotations. */

import { type Formula, Matrix, type OracleLayer, parts } from './adapter-layer.js';
import { blockOracle } from './adapters-blocks.js';

/** By Gauss and Jordan, with the largest pivot. */
function inverse(a: Matrix): Matrix {
  const n = a.rows;
  const rows = Array.from({ length: n }, (_, i) =>
    Array.from({ length: 2 * n }, (_, j) => (j < n ? a.at(i, j) : j - n === i ? 1 : 0)),
  );
  for (let c = 0; c < n; c++) {
    let best = c;
    for (let i = c; i < n; i++) {
      if (Math.abs(rows[i]?.[c] ?? 0) > Math.abs(rows[best]?.[c] ?? 0)) best = i;
    }
    [rows[c], rows[best]] = [rows[best] as number[], rows[c] as number[]];
    const pivot = rows[c] as number[];
    const lead = pivot[c] as number;
    for (let j = 0; j < 2 * n; j++) pivot[j] = (pivot[j] as number) / lead;
    for (const row of rows) {
      const factor = row === pivot ? 0 : (row[c] as number);
      for (let j = 0; j < 2 * n; j++) row[j] = (row[j] as number) - factor * (pivot[j] as number);
    }
  }
  return Matrix.of(n, n, (i, j) => rows[i]?.[n + j] as number);
}

/** Matrices on the diagonal, zeros elsewhere. */
function blockDiagonal(blocks: readonly Matrix[]): Matrix {
  const rows = blocks.reduce((sum, block) => sum + block.rows, 0);
  const cols = blocks.reduce((sum, block) => sum + block.cols, 0);
  const whole = Matrix.zeros(rows, cols);
  let [top, left] = [0, 0];
  for (const block of blocks) {
    for (let i = 0; i < block.rows; i++) {
      for (let j = 0; j < block.cols; j++) {
        whole.data[(top + i) * cols + left + j] = block.at(i, j);
      }
    }
    top += block.rows;
    left += block.cols;
  }
  return whole;
}

/** Matrix g of a stack whose rows follow each other. */
const slab = (stack: Matrix, g: number, rows: number): Matrix =>
  Matrix.of(rows, stack.cols, (i, j) => stack.at(g * rows + i, j));

/** Π (I - 2 u uᵀ / |u|²) over the columns u, in their order. */
function reflections(u: Matrix): Matrix {
  let product = Matrix.identity(u.rows);
  for (let c = 0; c < u.cols; c++) {
    const column = Matrix.of(u.rows, 1, (i) => u.at(i, c));
    const norm = column.data.reduce((sum, v) => sum + v * v, 0);
    product = product.plus(product.times(column).times(column.transposed()), -2 / norm);
  }
  return product;
}

/** The same with the columns made orthogonal, one after the other. */
function reflectionsOfBasis(u: Matrix): Matrix {
  const basis: Float64Array[] = [];
  const dot = (a: Float64Array, b: Float64Array): number =>
    a.reduce((total, v, i) => total + v * (b[i] as number), 0);
  for (let c = 0; c < u.cols; c++) {
    let column = Float64Array.from({ length: u.rows }, (_, i) => u.at(i, c));
    for (const q of basis) {
      const along = dot(q, column);
      column = column.map((v, i) => v - along * (q[i] as number));
    }
    const norm = Math.sqrt(dot(column, column));
    basis.push(column.map((v) => v / norm));
  }
  return reflections(Matrix.of(u.rows, u.cols, (i, c) => basis[c]?.[i] as number));
}

const hraOf = (layer: OracleLayer): { weight: Matrix } => {
  const [u] = parts(layer, 'hraU');
  return {
    weight: layer.w.times(layer.config.gramSchmidt ? reflectionsOfBasis(u) : reflections(u)),
  };
};

/** The skew-symmetric matrix with these entries above its diagonal, row by row. */
function skewOf(entries: ArrayLike<number>, n: number): Matrix {
  const q = Matrix.zeros(n, n);
  let at = 0;
  for (let i = 0; i < n; i++) {
    for (let j = i + 1; j < n; j++) {
      q.data[i * n + j] = entries[at] as number;
      q.data[j * n + i] = -(entries[at] as number);
      at += 1;
    }
  }
  return q;
}

/** (I - Q)(I + Q)⁻¹ */
const cayleyOf = (q: Matrix): Matrix => {
  const eye = Matrix.identity(q.rows);
  return eye.plus(q, -1).times(inverse(eye.plus(q)));
};

/** PEFT's cut of the series of (I + Q)(I - Q)⁻¹. */
function seriesOf(q: Matrix, terms: number): Matrix {
  const degree = terms <= 2 ? terms - 1 : Math.max(3, terms - 1);
  let sum = Matrix.identity(q.rows);
  let power = sum;
  for (let d = 1; d <= degree; d++) {
    power = power.times(q);
    sum = sum.plus(power, d === degree && degree > 1 ? 1 : 2);
  }
  return sum;
}

/** w times the transpose of the rotation of the input. */
function oftOf({ w, K, config, p }: OracleLayer): { weight: Matrix } {
  const weight = p.weight as Matrix;
  const size = config.blocks > 0 ? K / config.blocks : config.blockSize;
  const blocks = Array.from({ length: K / size }, (_, g) => {
    const row = slab(weight, config.share ? 0 : g, 1).data;
    const limit = config.eps / Math.sqrt(weight.rows);
    const norm = Math.sqrt(2 * row.reduce((sum, v) => sum + v * v, 0));
    const shrink = config.coft && norm > limit ? limit / norm : 1;
    const q = skewOf(row, size).map((v) => v * shrink);
    return config.terms > 0 ? seriesOf(q, config.terms) : cayleyOf(q);
  });
  return { weight: w.times(blockDiagonal(blocks).transposed()) };
}

/** The permutation matrix of a butterfly factor: even halves of blocks first, in runs of 2^i blocks. */
function butterfly(K: number, size: number, factor: number): Matrix {
  const run = size * 2 ** factor;
  const order: number[] = [];
  for (let start = 0; start < K; start += run) {
    for (const odd of [0, 1]) {
      for (let half = odd; half < (2 * run) / size; half += 2) {
        for (let i = 0; i < size / 2; i++) order.push(start + (half * size) / 2 + i);
      }
    }
  }
  return Matrix.of(K, K, (i, j) => (order[i] === j ? 1 : 0));
}

function boftOf(layer: OracleLayer): { weight: Matrix } {
  const { w, K, config } = layer;
  const [boftR, boftS] = parts(layer, 'boftR', 'boftS');
  const size = config.blockSize;
  let rotation = Matrix.identity(K);
  for (let factor = 0; factor < config.factors; factor++) {
    const blocks = Array.from({ length: K / size }, (_, d) => {
      const r = slab(boftR, (factor * K) / size + d, size);
      return cayleyOf(r.plus(r.transposed(), -1).map((v) => v / 2));
    });
    const b = blockDiagonal(blocks);
    const order = config.factors > 1 ? butterfly(K, size, factor) : Matrix.identity(K);
    rotation = order.times(b).times(order.transposed()).times(rotation);
  }
  return { weight: w.times(rotation.transposed()).scaleRows(boftS.data) };
}

function psoftOf(layer: OracleLayer): { weight: Matrix } {
  const [weight, a, b] = parts(layer, 'weight', 'loraA', 'loraB');
  const { vectorA, vectorB } = layer.p;
  const { r, loraAlpha, terms, eps, orthogonal } = layer.config;
  const norm = Math.sqrt(2 * weight.data.reduce((total, v) => total + v * v, 0));
  const shrink = terms > 0 && eps > 0 && norm > eps ? eps / norm : 1;
  const rotation = (): Matrix => {
    const q = skewOf(weight.data, r).map((v) => v * shrink);
    return terms > 0 ? seriesOf(q, terms) : cayleyOf(q).transposed();
  };
  const ones = new Float64Array(r).fill(1);
  const core = (orthogonal ? rotation() : weight)
    .scaleCols(vectorA?.data ?? ones)
    .scaleRows(vectorB?.data ?? ones);
  const update = b.times(core.plus(Matrix.identity(r), -1)).times(a);
  return { weight: layer.w.plus(update, loraAlpha / r) };
}

/** RoAd's matrix on the left of w and of the bias. */
function roadOf(layer: OracleLayer): { weight: Matrix; bias: Float64Array } {
  const [theta, alpha] = parts(layer, 'theta', 'alpha');
  const { variant, groupSize: g } = layer.config;
  const place = (n: number, sine: boolean): number => {
    const [group, within] = [Math.floor(n / g), n % g];
    if (variant === 1) return (group * g) / 2 + (within % (g / 2));
    return variant === 2 ? n : 2 * group * g + (sine ? g : 0) + within;
  };
  const turn = Matrix.of(layer.N, layer.N, (n, m) => {
    const partner = n % g < g / 2 ? n + g / 2 : n - g / 2;
    const at = place(n, m !== n);
    const angle = theta.data[at] as number;
    const scale = alpha.data[at] as number;
    if (m === n) return scale * Math.cos(angle);
    return m === partner ? (m > n ? -1 : 1) * scale * Math.sin(angle) : 0;
  });
  const bias = Matrix.of(layer.N, 1, (n) => layer.bias[n] as number);
  return { weight: turn.times(layer.w), bias: turn.times(bias).data };
}

export const structuredOracle: Readonly<Record<string, Formula>> = {
  boft: boftOf,
  ...blockOracle,
  hra: hraOf,
  oft: oftOf,
  psoft: psoftOf,
  road: roadOf,
};
