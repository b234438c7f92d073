/** Eigenvalues of a symmetric matrix [n, n] by cyclic rotations, descending. */
export function eigenvaluesOf(matrix: Float64Array, n: number): number[] {
  const a = matrix.slice();
  for (let sweep = 0; sweep < 30; sweep++) {
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        const off = a[p * n + q] as number;
        if (Math.abs(off) < 1e-300) continue;
        const angle =
          0.5 * Math.atan2(2 * off, (a[q * n + q] as number) - (a[p * n + p] as number));
        const [c, s] = [Math.cos(angle), Math.sin(angle)];
        for (let k = 0; k < n; k++) {
          const [x, y] = [a[k * n + p] as number, a[k * n + q] as number];
          a[k * n + p] = c * x - s * y;
          a[k * n + q] = s * x + c * y;
        }
        for (let k = 0; k < n; k++) {
          const [x, y] = [a[p * n + k] as number, a[q * n + k] as number];
          a[p * n + k] = c * x - s * y;
          a[q * n + k] = s * x + c * y;
        }
      }
    }
  }
  return Array.from({ length: n }, (_, i) => a[i * n + i] as number).sort((x, y) => y - x);
}
