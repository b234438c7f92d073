/**
 * The same training step on the same batch with this library, in eager PyTorch if Python has it, and on TensorFlow.js'
 * own ops in this process if it is installed. They are measured in turns.
 */

import { busyMilliseconds } from '../bench/machine.js';
import { kFewestClean, median } from '../bench/statistics.js';
import { type ThreadTimes, threadTimes } from '../bench/thread-times.js';
import type { ModelTrainer } from '../train/model-trainer.js';
import { type StepSnapshot, stepSnapshot } from '../train/snapshot.js';
import { startTorch, type TorchStep } from './torch.js';

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
  /** Its time relative to this library's; absent if fewer than three pairs were clean. */
  readonly ratio?: number;
  readonly loss: number;
}

/** Times of one step in milliseconds. */
export interface StepComparison {
  readonly own_ms: number;
  readonly ownLoss: number;
  /** torch in each dtype, then TensorFlow.js, as far as they are installed. */
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

/** How {@link compareSteps} reports. */
export interface CompareOptions {
  readonly warn?: (text: string) => void;
  readonly pause?: (done: number, total: number) => Promise<void>;
}

/**
 * Runs the comparison. The trainer does not change: steps are rehearsed.
 *
 * @returns `undefined` if there is nothing to compare with, or dense weights would not fit
 */
export async function compareSteps(
  trainer: ModelTrainer,
  { warn = () => {}, pause }: CompareOptions = {},
): Promise<StepComparison | undefined> {
  const { architecture } = trainer.decoder.config;
  if (architecture !== 'llama') {
    warn(`not compared with other trainers: the comparison runs Llama models, not ${architecture}`);
    return undefined;
  }
  if (trainer.decoder.weights.memory.linearF32_bytes > kMaxDense_bytes) {
    warn('not compared with other trainers: the base in f32 takes more than 1 GiB');
    return undefined;
  }
  const opened: { close(): Promise<void> }[] = [];
  try {
    const step = stepSnapshot(trainer);
    const others: Subject[] = [];
    for (const dtype of trainer.options.dtype === 'bf16'
      ? (['f32', 'bf16'] as const)
      : ['f32' as const]) {
      const torch = await startTorch(step, dtype).catch((error: Error) => {
        warn(`not compared with torch in ${dtype}: ${error.message}`);
        return undefined;
      });
      if (torch === undefined) continue;
      opened.push(torch);
      others.push(torchSubject(torch));
    }
    const tensorflow = await tensorflowSubject(step, warn);
    if (tensorflow !== undefined) {
      opened.push(tensorflow);
      others.push(tensorflow.subject);
    }
    if (others.length === 0) return undefined;
    const ours = subjectHere('lowrank', () => trainer.rehearse());
    await sampleInTurns([ours, ...others], pause);
    return {
      own_ms: medianOf(ours.samples),
      ownLoss: ours.loss,
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
    for (const each of opened) await each.close();
  }
}

/** TensorFlow.js, if it is installed. It is loaded here only. */
async function tensorflowSubject(step: StepSnapshot, warn: (text: string) => void) {
  const { TensorflowStep } = await import('./tensorflow/llama.js');
  try {
    const peer = await TensorflowStep.start(step);
    const name = `TensorFlow.js (${peer.backend})`;
    const subject = subjectHere(name, () => peer.run().loss);
    return { subject, close: async () => peer.dispose() };
  } catch (error) {
    if ((error as { code?: unknown }).code === 'ERR_UNSUPPORTED') return undefined;
    warn(`not compared with TensorFlow.js: ${(error as Error).message}`);
    return undefined;
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

/** A step in this process. */
function subjectHere(name: string, run: () => number): Subject {
  const subject: Subject = {
    name,
    loss: Number.NaN,
    samples: [],
    take: async () => {
      const foreign = foreignTime(process.pid);
      const started = performance.now();
      subject.loss = run();
      const ms = performance.now() - started;
      return { ms, clean: foreign() < kForeign * ms };
    },
  };
  return subject;
}

function torchSubject({ process: torch, version, dtype, note, loss }: TorchStep): Subject {
  return {
    name: `torch ${version}, ${dtype}`,
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
