/** Whether a sample was disturbed, from what the scheduler did with the threads of its process. */

import { describe, expect, it } from 'vitest';
import { isClean, threadTimes } from '../../lib/bench/thread-times.js';

const times = (...threads: readonly (readonly [ran_ms: number, waited_ms: number])[]) =>
  new Map(threads.map(([ran_ms, waited_ms], i) => [String(i), { ran_ms, waited_ms }]));

describe('a sample is clean', () => {
  const before = times([5, 5], [5, 5]);

  it('where no thread that computed waited for more than 2 % of it', () => {
    expect(isClean(before, times([105, 6.9], [55, 6.9]), 100)).toBe(true);
    expect(isClean(before, times([105, 6.9], [55, 7.1]), 100)).toBe(false);
    expect(isClean(before, times([105, 6.9], [14.9, 90]), 100)).toBe(true); // hardly ran
    expect(isClean(times([5, 5]), times([105, 5], [50, 3]), 100)).toBe(false); // began in it
    expect(isClean(undefined, undefined, 100)).toBe(true); // not known
  });

  it('also where one waited while its own process handed calls out', () => {
    expect(isClean(before, times([105, 9.9], [55, 5]), 100, 3)).toBe(true);
    expect(isClean(before, times([105, 10.1], [55, 5]), 100, 3)).toBe(false);
  });
});

it('reads what the threads of a process did, where the kernel says', () => {
  expect(threadTimes(undefined)).toBeUndefined();
  expect(threadTimes(2 ** 30)).toBeUndefined();
  if (process.platform !== 'linux') {
    expect(threadTimes(process.pid)).toBeUndefined();
    return;
  }
  const before = threadTimes(process.pid);
  const most_ms = () =>
    Math.max(
      ...[...(threadTimes(process.pid) ?? [])].map(
        ([thread, { ran_ms }]) => ran_ms - (before?.get(thread)?.ran_ms ?? 0),
      ),
    );
  // The kernel counts a running thread from tick to tick, and others may use the cores.
  const end = performance.now() + 10_000;
  while (most_ms() < 20 && performance.now() < end);
  expect(most_ms()).toBeGreaterThanOrEqual(20);
});
