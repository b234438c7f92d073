import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import type { Device } from '../../../core/device.js';
import { full } from '../../../core/full.js';
import { Tensor } from '../../../core/tensor.js';
import { mapTensor, multiplyAdd, sumProduct } from '../../../ops/elementwise.js';
import { FeatureMap } from '../../../ops/feature-map.js';

/** Newton steps of {@link cayley}: exact to f32 for skew matrices with a norm of up to 60. */
const NEWTON_STEPS = 15;

/** Maps that place the entries of `blocks` skew-symmetric matrices [size, size]. */
export interface SkewMaps {
  /** Places entries above the diagonal, in [size, blocks, size]. */
  readonly upper: FeatureMap;
  /** The same below the diagonal, to be subtracted. */
  readonly lower: FeatureMap;
  /** [size, blocks, size] to [blocks, size, size] */
  readonly stack: FeatureMap;
  /** The identity in every block, [size, blocks, size]. */
  readonly eye: Tensor;
  readonly size: number;
  readonly blocks: number;
}

/** An index by the rows of matrices side by side: f(block, row, column), −1 for none. */
function rowsIndex(
  blocks: number,
  size: number,
  f: (g: number, i: number, j: number) => number,
): Int32Array {
  const index = new Int32Array(blocks * size * size);
  for (let i = 0; i < size; i++) {
    for (let g = 0; g < blocks; g++) {
      for (let j = 0; j < size; j++) index[(i * blocks + g) * size + j] = f(g, i, j);
    }
  }
  return index;
}

/** The identity of every block, [size, blocks, size]. */
function eyes(blocks: number, size: number, device: Device): Tensor {
  const values = rowsIndex(blocks, size, (_, i, j) => (i === j ? 1 : 0));
  return Tensor.from(Float32Array.from(values), [size, blocks, size], { device });
}

function stackMap(blocks: number, size: number, device: Device): FeatureMap {
  const index = new Int32Array(blocks * size * size);
  const from = rowsIndex(blocks, size, (g, i, j) => (g * size + i) * size + j);
  from.forEach((to, at) => {
    index[to] = at;
  });
  return FeatureMap.permute(index, { device });
}

/** Maps for entries above the diagonal, row by row: [blocks, size · (size - 1) / 2]. */
export function triangleMaps(blocks: number, size: number, device: Device): SkewMaps {
  const entries = (size * (size - 1)) / 2;
  const place = (g: number, i: number, j: number): number =>
    g * entries + i * size - (i * (i + 1)) / 2 + j - i - 1;
  const all = blocks * entries;
  const upper = rowsIndex(blocks, size, (g, i, j) => (i < j ? place(g, i, j) : -1));
  const lower = rowsIndex(blocks, size, (g, i, j) => (i > j ? place(g, j, i) : -1));
  return {
    upper: FeatureMap.gather(upper, all, { device }),
    lower: FeatureMap.gather(lower, all, { device }),
    stack: stackMap(blocks, size, device),
    eye: eyes(blocks, size, device),
    size,
    blocks,
  };
}

/** Maps for whole matrices [blocks, size, size], of which the skew-symmetric part is used. */
export function matrixMaps(blocks: number, size: number, device: Device): SkewMaps {
  const upper = rowsIndex(blocks, size, (g, i, j) => (g * size + i) * size + j);
  const lower = rowsIndex(blocks, size, (g, i, j) => (g * size + j) * size + i);
  return {
    upper: FeatureMap.permute(upper, { device }),
    lower: FeatureMap.permute(lower, { device }),
    stack: stackMap(blocks, size, device),
    eye: eyes(blocks, size, device),
    size,
    blocks,
  };
}

/** `scale · (upper - lower)`: the skew-symmetric matrices Q, row by row, [size, blocks, size]. */
export function skew(t: Tape, entries: Value, maps: SkewMaps, scale = 1): Value {
  const { size, blocks } = maps;
  const flat = t.reshape(entries, [entries.tensor.size]);
  const below = t.features(flat, maps.lower, { alpha: scale, dtype: 'f32' });
  const q = t.features(flat, maps.upper, { alpha: scale, plus: below, beta: -1, dtype: 'f32' });
  return t.reshape(q, [size, blocks, size]);
}

/** Matrices row by row as a stack [blocks, size, size]. */
export function stacked(t: Tape, rows: Value, { stack, size, blocks }: SkewMaps): Value {
  return t.reshape(t.features(t.reshape(rows, [rows.tensor.size]), stack), [blocks, size, size]);
}

/**
 * The Cayley transform `(I - Q)·(I + Q)⁻¹ = 2 (I + Q)⁻¹ - I` of skew-symmetric Q [size, blocks,
 * size]: a rotation of every block. I + Q has the singular values `sqrt(1 + θ²)`, with θ those of
 * Q, so the inverse always exists, and its Newton iteration ({@link Tape.blockInverse}) starts from
 * `(I + Q)ᵀ / (1 + |Q|² / 2)`; the Frobenius norm counts each θ twice.
 */
export function cayley(t: Tape, q: Value, maps: SkewMaps): Value {
  const { size, blocks } = maps;
  const eye = t.constant(maps.eye);
  const transposed = t.add(eye, q, 1, -1);
  const flat = q.tensor.reshape([size * blocks, size]);
  const sums = sumProduct(flat, flat, { axis: 1 }).reshape([size, blocks]);
  const one = full([1], 1, { device: q.tensor.device });
  const bound = multiplyAdd({
    a: sumProduct(sums, undefined, { axis: 0 }),
    c: one,
    alpha: 0.5,
  });
  const scale = multiplyAdd({
    a: Tensor.zeros([size, blocks], { device: q.tensor.device }),
    c: mapTensor(bound, 'reciprocal'),
  });
  const start = multiplyAdd({
    a: transposed.tensor.reshape([size * blocks, size]),
    b: scale.reshape([size * blocks, 1]),
  }).reshape([size, blocks, size]);
  return t.add(t.affine(t.blockInverse(transposed, start, NEWTON_STEPS), 2), eye, 1, -1);
}

/**
 * The Neumann series of `(I + Q)·(I - Q)⁻¹`: `I + 2Q + 2Q² + … + Qᵈ`, truncated as PEFT does: d is
 * `terms - 1`, with three terms 3, with one 0.
 */
export function cayleySeries(t: Tape, q: Value, maps: SkewMaps, terms: number): Value {
  const eye = t.constant(maps.eye);
  if (terms <= 1) return eye;
  if (terms === 2) return t.add(eye, q, 1, 2);
  const degree = Math.max(3, terms - 1);
  const right = stacked(t, q, maps);
  // Horner's scheme, from the highest power down; every power commutes with Q.
  let sum = t.add(q, eye, 1, 2);
  for (let power = degree - 2; power >= 1; power--) {
    sum = t.add(t.blockProduct(sum, right), eye, 1, 2);
  }
  return t.add(t.blockProduct(sum, right), eye);
}
