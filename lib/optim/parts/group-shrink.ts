/** The Euclidean norm of all values of a group, in float64. */
export function groupNorm(group: readonly ArrayLike<number>[]): number {
  let squares = 0;
  for (const values of group) {
    for (let i = 0; i < values.length; i++) squares += (values[i] as number) ** 2;
  }
  return Math.sqrt(squares);
}

/**
 * The proximal step of the group lasso (Yuan and Lin, Model Selection and Estimation in Regression with Grouped Variables,
 * 2006): p ← max(0, 1 − threshold / ‖p‖) · p, with the norm over the whole group.
 */
export function shrinkGroup(group: readonly Float32Array[], threshold: number): void {
  const norm = groupNorm(group);
  const factor = 1 - threshold / norm;
  for (const values of group) {
    if (!(norm > threshold)) {
      values.fill(0);
      continue;
    }
    for (let i = 0; i < values.length; i++) values[i] = factor * (values[i] as number);
  }
}
