/**
 * The same training step with and without the fused kernels, in the same process on the same batch.
 */

import type { ModelKernels } from './kernels.js';
import { UnfusedKernels } from './kernels.js';
import type { Trainer } from './trainer.js';

/** Dense copies of the base beyond this are not made for a comparison. */
const kMaxDense_bytes = 1 << 30;
/** Measured steps of each kind; unfused ones are slow, and the medians differ by a factor. */
const kRounds = 3;

/** Times of one step in milliseconds: medians over interleaved rounds. */
export interface KernelComparison {
  readonly fused_ms: number;
  readonly unfused_ms: number;
  /** unfused / fused */
  readonly speedup: number;
  /** Losses of the same step, which must agree. */
  readonly fusedLoss: number;
  readonly unfusedLoss: number;
}

/**
 * Measures. The trainer is not changed: steps are rehearsed.
 *
 * @returns `undefined` where dense weights would not fit
 */
export async function compareKernels(
  trainer: Trainer,
  fused: ModelKernels,
  options: {
    readonly warn?: (text: string) => void;
    readonly pause?: (done: number, total: number) => Promise<void>;
  } = {},
): Promise<KernelComparison | undefined> {
  if (trainer.base.memory.linearF32_bytes > kMaxDense_bytes) {
    options.warn?.('not compared with unfused training: the base in f32 takes more than 1 GiB');
    return undefined;
  }
  const unfused = new UnfusedKernels();
  try {
    const times = { fused: [] as number[], unfused: [] as number[] };
    const losses = { fused: 0, unfused: 0 };
    // The first round builds dense weights and lets the engine compile: it is not counted.
    for (let round = 0; round <= kRounds; round++) {
      for (const kernels of [fused, unfused]) {
        await options.pause?.(2 * round + (kernels === fused ? 0 : 1), 2 * (kRounds + 1));
        const started = performance.now();
        losses[kernels.name] = trainer.rehearse(kernels);
        if (round > 0) times[kernels.name].push(performance.now() - started);
      }
    }
    const fused_ms = median(times.fused);
    const unfused_ms = median(times.unfused);
    return {
      fused_ms,
      unfused_ms,
      speedup: unfused_ms / fused_ms,
      fusedLoss: losses.fused,
      unfusedLoss: losses.unfused,
    };
  } finally {
    unfused.dispose();
  }
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1] as number;
}
