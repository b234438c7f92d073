/** Starts a subject that can be run in several ways, and keeps the fastest. */

import type { Program } from './peer.js';
import { type Ready, SubjectProcess, type ThreadTimesOf } from './subject-process.js';

/** Number of samples of each way before one is chosen. */
const kTries = 3;

/** A subject that is ready to be sampled, and the chosen way. */
export interface Started {
  readonly process: SubjectProcess;
  readonly ready: Ready;
  readonly program: Program;
}

/**
 * Starts a subject and finds how many calls make a sample. Several ways of running it take samples
 * in turns, and the fastest stays.
 *
 * @throws Error, in words, if one of them does not start; none is left running
 */
export async function startFastest(
  programs: readonly Program[],
  sample_ms: number,
  timesOf?: ThreadTimesOf,
): Promise<Started> {
  const all: (Started & { least_ms: number })[] = [];
  let kept: SubjectProcess | undefined;
  try {
    for (const program of programs) {
      const { process, ready } = await SubjectProcess.start(program);
      all.push({ program, process, ready, least_ms: Number.POSITIVE_INFINITY });
      await process.calibrate(sample_ms);
    }
    for (let round = 0; all.length > 1 && round < kTries; round++) {
      for (const one of all) {
        const { ms } = await one.process.sample(timesOf);
        one.least_ms = Math.min(one.least_ms, ms);
      }
    }
    const { process, ready, program } = all.reduce((a, b) => (b.least_ms < a.least_ms ? b : a));
    kept = process;
    const note = [ready.note, program.settings].filter((text) => text !== undefined).join('; ');
    return { process, program, ready: note === '' ? ready : { ...ready, note } };
  } finally {
    for (const { process } of all) if (process !== kept) await process.close();
  }
}
