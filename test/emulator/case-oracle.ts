/**
 * Are the values of a case right? Each runs on the device `reference` too, which sums in double, and every
 * tensor that it hashes is compared. A check of a kernel's arithmetic as a whole, not of its rounding: that
 * is the conformance suite's business.
 */
import type { DType, Tensor } from '../../lib/index.js';

/** What a case has hashed, in its order. */
export interface Recorded {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly values: Float32Array;
}

let recording: Recorded[] | undefined;

/** The tensors that `body` hashes, beside its result. */
export async function recorded<T>(body: () => Promise<T>): Promise<[T, readonly Recorded[]]> {
  const list: Recorded[] = [];
  recording = list;
  try {
    return [await body(), list];
  } finally {
    recording = undefined;
  }
}

/** Called for each tensor that is hashed. */
export async function record(tensor: Tensor): Promise<void> {
  if (recording === undefined) return;
  const { dtype, shape } = tensor;
  recording.push({ dtype, shape, values: await tensor.read() });
}

/** Relative steps of the types. */
const STEP: Record<DType, number> = { f32: 2 ** -23, bf16: 2 ** -7, f16: 2 ** -10 };
/**
 * Beside two steps of its type (its rounding, and that of an intermediate of this type) an element may be off by
 * so much of its tensor's root mean square: sums of a few thousand products on tensor cores.
 */
const PART_OF_SIZE = 2 ** -10;
/** Below the normal numbers of f32 nothing is promised. */
const SUBNORMAL = 2 ** -126;

function meanSquare(values: Float32Array): number {
  let sum = 0;
  let count = 0;
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    sum += value * value;
    count += 1;
  }
  return count === 0 ? 0 : sum / count;
}

/** How far the tensors are from the reference's, in what is allowed; and the worst of them in words. */
export function compareRecorded(
  actual: readonly Recorded[],
  expected: readonly Recorded[],
): { worst: number; where: string } {
  if (actual.length !== expected.length) {
    return { worst: Infinity, where: `${actual.length} tensors in place of ${expected.length}` };
  }
  let worst = 0;
  let where = '';
  for (const [t, { dtype, shape, values }] of actual.entries()) {
    const right = (expected[t] as Recorded).values;
    const size = Math.sqrt(meanSquare(right));
    for (let i = 0; i < right.length; i++) {
      const [y, r] = [values[i] as number, right[i] as number];
      if (Object.is(y, r) || y === r) continue;
      const allowed =
        2 * STEP[dtype] * Math.abs(r) + (PART_OF_SIZE + STEP[dtype]) * size + SUBNORMAL;
      const error = Number.isFinite(r) && Number.isFinite(y) ? Math.abs(y - r) / allowed : Infinity;
      if (!(error > worst)) continue;
      worst = error;
      where = `tensor ${t} ${dtype} [${shape}] at ${i}: ${y} in place of ${r}`;
    }
  }
  return { worst, where };
}
