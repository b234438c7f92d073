/** What all layouts end in: a level less a zero-point, times a scale, each operation rounded to f32. */
const f32 = Math.fround;

/** A scale or zero-point for element (n, k). */
export type Grid = (n: number, k: number) => number;

/** [rows, pitch] values, one for each tile of `spanN` rows and `spanK` columns. */
export function tiles(
  values: ArrayLike<number>,
  pitch: number,
  spanN: number,
  spanK: number,
): Grid {
  return (n, k) => values[Math.floor(n / spanN) * pitch + Math.floor(k / spanK)] as number;
}

/** [rows, pitch] values: of groups of `span` columns, or of the group that `groupOf` names. */
export function rowGroups(
  values: ArrayLike<number>,
  pitch: number,
  span: number,
  groupOf?: ArrayLike<number>,
): Grid {
  if (groupOf === undefined) return tiles(values, pitch, 1, span);
  return (n, k) => values[n * pitch + (groupOf[k] as number)] as number;
}

/** w[n, k] = f32(f32(level - zero) · scale) for the levels of [N, K], row by row. */
export function scaled(levels: ArrayLike<number>, K: number, scale: Grid, zero?: Grid) {
  const w = new Float32Array(levels.length);
  for (let i = 0; i < w.length; i++) {
    const n = Math.floor(i / K);
    const k = i % K;
    w[i] = f32((levels[i] as number) - (zero?.(n, k) ?? 0)) * scale(n, k);
  }
  return w;
}

/** Largest magnitude of every tile of `spanN` rows and `spanK` columns; NaN where it has one. */
export function tileMaxima(
  w: ArrayLike<number>,
  K: number,
  spanN: number,
  spanK: number,
): Float64Array {
  const pitch = Math.ceil(K / spanK);
  const maxima = new Float64Array(Math.ceil(w.length / K / spanN) * pitch);
  for (let i = 0; i < w.length; i++) {
    const tile = Math.floor(Math.floor(i / K) / spanN) * pitch + Math.floor((i % K) / spanK);
    maxima[tile] = Math.max(maxima[tile] as number, Math.abs(w[i] as number));
  }
  return maxima;
}
