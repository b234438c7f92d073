/** Starting a subject that can be run in several ways: the fastest stays. */

import type { Program } from './peer.js';
import { type Ready, SubjectProcess, type ThreadTimesOf } from './subject-process.js';

/** Samples of each way of running a subject, before one is chosen. */
const kTries = 3;

/** A subject that is ready to be sampled, and the way that was chosen. */
export interface Started {
  readonly process: SubjectProcess;
  readonly ready: Ready;
  readonly program: Program;
}

/**
 * Starts a subject and finds how many calls make a sample. Each of several ways of running it takes
 * samples in turns, and that with the least time stays.
 *
 * @throws Error in words where one of them does not come up; none is left running
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
