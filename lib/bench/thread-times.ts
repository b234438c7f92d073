/**
 * What the scheduler did with the threads of a process while a sample was taken.
 */

import { readdirSync, readFileSync } from 'node:fs';

/** Of one thread, in all. */
export interface ThreadTime {
  /** On a core. */
  readonly ran_ms: number;
  /** Ready to run without one. */
  readonly waited_ms: number;
}

export type ThreadTimes = ReadonlyMap<string, ThreadTime>;

/** Times of the threads of a process, by their number; `undefined` where the kernel does not say. */
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

/** A thread may end between the listing and this: it then did nothing. */
function readThread(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '0 0';
  }
}

/** A sample is clean if no thread that computes waited for a core for more than this part of it. */
const kCleanDelay = 0.02;
/**
 * A thread computes if it ran for this part of a sample. Others (one that hands work out and sleeps until
 * it is done, those of a runtime) may well wait while every core computes, and nothing waits for them.
 */
const kComputes = 0.1;

/**
 * Whether no thread that computed in a sample of `ms` waited for a core; not known, and so, off Linux.
 *
 * @param queued_ms for which a thread of the process handed calls out: it may take the core of one that
 *   computes, where every core computes, which is no fault of the machine
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
