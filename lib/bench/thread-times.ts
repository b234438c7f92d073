/**
 * What the scheduler did with the threads of a process while a sample was taken.
 */

import { readdirSync, readFileSync } from 'node:fs';

/** Total times of one thread. */
export interface ThreadTime {
  /** On a core. */
  readonly ran_ms: number;
  /** Ready to run without one. */
  readonly waited_ms: number;
}

export type ThreadTimes = ReadonlyMap<string, ThreadTime>;

/** Times of the threads of a process, by their number; `undefined` if the kernel does not report them. */
export function threadTimes(pid: number | undefined): ThreadTimes | undefined {
  if (pid === undefined) return undefined;
  try {
    const times = new Map<string, ThreadTime>();
    for (const thread of readdirSync(`/proc/${pid}/task`)) {
      const line = readThread(`/proc/${pid}/task/${thread}/schedstat`);
      const [ran, waited] = line.split(' ');
      times.set(thread, { ran_ms: Number(ran) / 1e6, waited_ms: Number(waited ?? 0) / 1e6 });
    }
    return times;
  } catch {
    return undefined;
  }
}

/** A thread may end between the listing and this read: it then did nothing. */
function readThread(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '0 0';
  }
}

/** A sample is clean if no computing thread waited for a core for more than this fraction of it. */
const kCleanDelay = 0.02;
/**
 * A thread computes if it ran for this fraction of a sample. Others (one that hands out work and sleeps
 * until it is done, those of a runtime) may wait while every core computes, because nothing waits for
 * them.
 */
const kComputes = 0.1;

/**
 * Did no thread that computed in a sample of `ms` wait for a core? Unknown off Linux, where it is
 * taken as true.
 *
 * @param queued_ms time for which a thread of the process queued calls: it may take a core from a
 * computing thread if every core computes, which is not the machine's fault
 */
export function isClean(
  before: ThreadTimes | undefined,
  after: ThreadTimes | undefined,
  ms: number,
  queued_ms = 0,
): boolean {
  const most = kCleanDelay * ms + queued_ms;
  for (const [thread, now] of after ?? []) {
    const then = before?.get(thread) ?? { ran_ms: 0, waited_ms: 0 };
    const computes = now.ran_ms - then.ran_ms >= kComputes * ms;
    if (computes && now.waited_ms - then.waited_ms >= most) return false;
  }
  return true;
}
