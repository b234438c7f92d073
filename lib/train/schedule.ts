/**
 * Learning rate of a step: linear warm-up from lr / warmup to lr, then a cosine down to a tenth.
 *
 * @param step 0 for the first
 * @param constant lr after the warm-up instead
 */
export function learningRate(
  step: number,
  lr: number,
  warmup: number,
  steps: number,
  constant = false,
): number {
  if (step < warmup) return (lr * (step + 1)) / warmup;
  if (constant) return lr;
  const progress = (step - warmup) / Math.max(1, steps - warmup);
  return lr * (0.55 + 0.45 * Math.cos(Math.PI * Math.min(1, progress)));
}
