/** The layer as whole matrices, row by row: nothing shared with the harness. */

interface Parts {
  readonly w: ArrayLike<number>;
  /** Absent: no adapter. */
  readonly loraA: ArrayLike<number> | undefined;
  readonly loraB: ArrayLike<number>;
}

/** [rows, inner] · [inner, columns] */
function product(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  [rows, inner, columns]: readonly [number, number, number],
): Float64Array {
  const result = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let k = 0; k < inner; k++) {
      for (let j = 0; j < columns; j++) {
        const at = i * columns + j;
        result[at] =
          (result[at] as number) + (a[i * inner + k] as number) * (b[k * columns + j] as number);
      }
    }
  }
  return result;
}

function transposed(a: ArrayLike<number>, rows: number, columns: number): Float64Array {
  return Float64Array.from({ length: rows * columns }, (_, i) =>
    Number(a[(i % rows) * columns + Math.floor(i / rows)]),
  );
}

/** x · (w + 2 · loraB · loraA)ᵀ */
export function linearForward(
  x: ArrayLike<number>,
  parts: Parts,
  M: number,
  K: number,
  N: number,
  r: number,
): Float64Array {
  return product(x, transposed(merged(parts, K, N, r), N, K), [M, K, N]);
}

/** dy · (w + 2 · loraB · loraA) */
export function linearInputGrad(
  dy: ArrayLike<number>,
  parts: Parts,
  M: number,
  K: number,
  N: number,
  r: number,
): Float64Array {
  return product(dy, merged(parts, K, N, r), [M, N, K]);
}

function merged({ w, loraA, loraB }: Parts, K: number, N: number, r: number): Float64Array {
  const sum = Float64Array.from(w);
  if (loraA === undefined) return sum;
  const low = product(loraB, loraA, [N, r, K]);
  return sum.map((value, i) => value + 2 * (low[i] as number));
}
