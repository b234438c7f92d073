/**
 * OFT of a convolution in float64, loop by loop: the rotations of its blocks, the weight that they are merged into, and
 * PEFT's own forward pass, which rotates the image's patches and sums them into an image again.
 */

/** One image and its kernel. */
export interface PatchSizes {
  readonly C: number;
  readonly height: number;
  readonly width: number;
  readonly kernel: readonly [number, number];
}

type Square = number[][];

const square = (n: number, f: (i: number, j: number) => number): Square =>
  Array.from({ length: n }, (_, i) => Array.from({ length: n }, (_, j) => f(i, j)));

function times(a: Square, b: Square): Square {
  return square(a.length, (i, j) => {
    let sum = 0;
    for (let k = 0; k < a.length; k++) sum += (a[i]?.[k] as number) * (b[k]?.[j] as number);
    return sum;
  });
}

/** `(I - Q) · (I + Q)⁻¹`, by Gauss and Jordan on columns; I + Q has no small pivots where Q is skew-symmetric. */
function cayley(q: Square): Square {
  const n = q.length;
  const left = square(n, (i, j) => (i === j ? 1 : 0) + (q[i]?.[j] as number));
  const right = square(n, (i, j) => (i === j ? 1 : 0) - (q[i]?.[j] as number));
  for (let k = 0; k < n; k++) {
    const pivot = left[k]?.[k] as number;
    for (const m of [left, right]) for (const row of m) row[k] = (row[k] as number) / pivot;
    for (let j = 0; j < n; j++) {
      if (j === k) continue;
      const factor = left[k]?.[j] as number;
      for (const m of [left, right])
        for (const row of m) row[j] = (row[j] as number) - factor * (row[k] as number);
    }
  }
  return right;
}

/** Blocks [size, size] from the entries above the diagonal of each Q; `terms` 0 is the transform itself. */
export function rotationsOf(
  entries: ArrayLike<number>,
  blocks: number,
  size: number,
  terms: number,
): Square[] {
  const each = (size * (size - 1)) / 2;
  return Array.from({ length: blocks }, (_, g) => {
    const q = square(size, () => 0);
    let at = g * each;
    for (let i = 0; i < size; i++)
      for (let j = i + 1; j < size; j++) {
        const v = entries[at++] as number;
        (q[i] as number[])[j] = v;
        (q[j] as number[])[i] = -v;
      }
    if (terms === 0) return cayley(q);
    // As PEFT cuts it: 1, 2, 2, ..., 2, 1, of three terms up to the third power.
    const last = Math.max(terms - 1, 3);
    const sum = square(size, (i, j) => (i === j ? 1 : 0));
    let power = square(size, (i, j) => (i === j ? 1 : 0));
    for (let k = 1; k <= last && terms > 2; k++) {
      power = times(power, q);
      const factor = k === last ? 1 : 2;
      power.forEach((row, i) => {
        row.forEach((v, j) => {
          (sum[i] as number[])[j] = (sum[i]?.[j] as number) + factor * v;
        });
      });
    }
    return sum;
  });
}

/** Vectors [count, K], each turned block by block: `v · R`; one block alone is for all. */
export function turned(
  v: ArrayLike<number>,
  K: number,
  rotations: readonly Square[],
): Float64Array {
  const size = rotations[0]?.length as number;
  return Float64Array.from({ length: v.length }, (_, at) => {
    const [first, k] = [at - (at % K), at % K];
    const block = Math.floor(k / size);
    const r = rotations[rotations.length === 1 ? 0 : block] as Square;
    let sum = 0;
    for (let i = 0; i < size; i++)
      sum += (v[first + block * size + i] as number) * (r[i]?.[k % size] as number);
    return sum;
  });
}

/** The weight [N, K] whose plain convolution has turned patches: `w · Rᵀ`. */
export function turnedWeight(w: ArrayLike<number>, K: number, rotations: readonly Square[]) {
  const back = rotations.map((r) => square(r.length, (i, j) => r[j]?.[i] as number));
  return turned(w, K, back);
}

/** Images [B, C, height, width]: their patches at every place inside, turned, and summed where they lie over each other. */
export function turnedImages(
  { C, height, width, kernel: [kh, kw] }: PatchSizes,
  x: ArrayLike<number>,
  rotations: readonly Square[],
): Float64Array {
  const K = C * kh * kw;
  const [pixels, out] = [C * height * width, new Float64Array(x.length)];
  const placeOf = (k: number, i: number, j: number): number => {
    const [c, p, q] = [Math.floor(k / (kh * kw)), Math.floor(k / kw) % kh, k % kw];
    return (c * height + i + p) * width + j + q;
  };
  for (let first = 0; first < x.length; first += pixels)
    for (let i = 0; i + kh <= height; i++)
      for (let j = 0; j + kw <= width; j++) {
        const patch = Float64Array.from(
          { length: K },
          (_, k) => x[first + placeOf(k, i, j)] as number,
        );
        turned(patch, K, rotations).forEach((v, k) => {
          const at = first + placeOf(k, i, j);
          out[at] = (out[at] as number) + v;
        });
      }
  return out;
}
