/**
 * The same training step on the same batch with this library's kernels, on TensorFlow.js' own ops in the
 * same process, and in eager PyTorch if Python has it. They are measured in turns.
 */

import { busyMilliseconds } from '../bench/machine.js';
import { kFewestClean, median } from '../bench/statistics.js';
import { type ThreadTimes, threadTimes } from '../bench/thread-times.js';
import { startTorch, type TorchStep } from './compare-torch.js';
import type { ModelKernels } from './kernels.js';
import { UnfusedKernels } from './kernels.js';
import type { Trainer } from './trainer.js';

/** A larger dense copy of the base is not made for a comparison. */
const kMaxDense_bytes = 1 << 30;
/** Number of measured steps of each kind, if they are clean. */
const kRounds = 4;
/** Maximum number, if other programs use the cores... */
const kMostRounds = 12;
/** ...and no more than {@link kRounds} after this time. */
const kPatience_ms = 30_000;
/** A step is clean if other programs used less than this fraction of a core while it ran. */
const kForeign = 0.1;

/** Another implementation of the step. */
export interface OtherStep {
  /** Its name, with the version. */
  readonly name: string;
  /** How it was run. */
  readonly note?: string;
  /** Median of the clean samples, or of all samples if fewer than three are clean. */
  readonly ms: number;
  /** Its time relative to that with this library's kernels; absent if fewer than three pairs were clean. */
  readonly ratio?: number;
  readonly loss: number;
}

/** Times of one step in milliseconds. */
export interface KernelComparison {
  readonly fused_ms: number;
  readonly fusedLoss: number;
  /** TensorFlow.js, then torch if it is installed. */
  readonly others: readonly OtherStep[];
}

/** One implementation of the step, and its samples by round. */
interface Subject {
  readonly name: string;
  readonly note?: string;
  loss: number;
  /** Runs the step once. */
  take(): Promise<Timed>;
  readonly samples: Timed[];
}

interface Timed {
  readonly ms: number;
  readonly clean: boolean;
}

/**
 * Runs the comparison. The trainer does not change: steps are rehearsed.
 *
 * @returns `undefined` if dense weights would not fit
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
    options.warn?.('not compared with other trainers: the base in f32 takes more than 1 GiB');
    return undefined;
  }
  const unfused = new UnfusedKernels();
  let torch: TorchStep | undefined;
  try {
    torch = await startTorch(trainer).catch((error: Error) => {
      options.warn?.(`not compared with torch: ${error.message}`);
      return undefined;
    });
    const ours = rehearsal(trainer, fused, 'lowrank');
    const others = [
      rehearsal(trainer, unfused, 'TensorFlow.js'),
      ...(torch === undefined ? [] : [torchSubject(torch)]),
    ];
    await sampleInTurns([ours, ...others], options.pause);
    return {
      fused_ms: medianOf(ours.samples),
      fusedLoss: ours.loss,
      others: others.map((subject) => {
        const ratio = ratioOf(subject, ours);
        return {
          name: subject.name,
          ...(subject.note === undefined ? {} : { note: subject.note }),
          ms: medianOf(subject.samples),
          ...(ratio === undefined ? {} : { ratio }),
          loss: subject.loss,
        };
      }),
    };
  } finally {
    unfused.dispose();
    await torch?.close();
  }
}

async function sampleInTurns(
  subjects: readonly Subject[],
  pause: (done: number, total: number) => Promise<void> = async () => {},
): Promise<void> {
  const started = performance.now();
  const enough = () =>
    subjects.every(({ samples }) => samples.filter(({ clean }) => clean).length >= kFewestClean);
  // The first round builds dense weights and lets the engine compile, so it is not counted.
  for (let round = 0; round <= kMostRounds; round++) {
    if (round > kRounds && (enough() || performance.now() - started > kPatience_ms)) break;
    for (const [i, subject] of subjects.entries()) {
      const done = subjects.length * Math.min(round, kRounds) + i;
      await pause(done, subjects.length * (kRounds + 1));
      const sample = await subject.take();
      if (round > 0) subject.samples.push(sample);
    }
  }
}

/** The step in this process. */
function rehearsal(trainer: Trainer, kernels: ModelKernels, name: string): Subject {
  const subject: Subject = {
    name,
    loss: Number.NaN,
    samples: [],
    take: async () => {
      const foreign = foreignTime(process.pid);
      const started = performance.now();
      subject.loss = trainer.rehearse(kernels);
      const ms = performance.now() - started;
      return { ms, clean: foreign() < kForeign * ms };
    },
  };
  return subject;
}

function torchSubject({ process: torch, version, note, loss }: TorchStep): Subject {
  return {
    name: `torch ${version}`,
    note,
    loss,
    samples: [],
    take: async () => {
      // Queried before and after the timed step.
      const asked: (() => number)[] = [];
      let foreign_ms = 0;
      const { ms } = await torch.sample((pid) => {
        foreign_ms = asked[0]?.() ?? 0;
        asked.push(foreignTime(pid));
        return undefined;
      });
      return { ms, clean: foreign_ms < kForeign * ms };
    },
  };
}

/** Core milliseconds that processes other than one use from now on; 0 if unknown. */
function foreignTime(pid: number | undefined): () => number {
  const [busy, own] = [busyMilliseconds(), ranOf(threadTimes(pid))];
  return () => {
    const now = busyMilliseconds();
    if (busy === undefined || now === undefined) return 0;
    return now - busy - (ranOf(threadTimes(pid)) - own);
  };
}

function ranOf(times: ThreadTimes | undefined): number {
  return [...(times ?? new Map()).values()].reduce((sum, { ran_ms }) => sum + ran_ms, 0);
}

function medianOf(samples: readonly Timed[]): number {
  const clean = samples.filter((sample) => sample.clean);
  return median((clean.length >= kFewestClean ? clean : samples).map(({ ms }) => ms));
}

/** Median of the ratios of times in the same round, if both are clean. */
export function ratioOf(
  other: { readonly samples: readonly Timed[] },
  ours: { readonly samples: readonly Timed[] },
): number | undefined {
  const ratios = other.samples.flatMap(({ ms, clean }, round) => {
    const own = ours.samples[round];
    return own?.clean && clean ? [ms / own.ms] : [];
  });
  return ratios.length < kFewestClean ? undefined : median(ratios);
}
