/** A sample is as many calls as were asked for, and their time, the wait for queued ones among it. */

import { expect, it } from 'vitest';
import { makeRunner } from '../../lib/bench/runner.js';

for (const asynchronous of [false, true]) {
  it(`times every call, ${asynchronous ? 'awaited' : 'by the benchmark package'}`, async () => {
    let calls = 0;
    const call_ms = 0.5;
    const body = () => {
      calls++;
      const end = performance.now() + call_ms;
      while (performance.now() < end);
    };
    const runner = await makeRunner(asynchronous ? async () => body() : body, asynchronous);
    expect(runner.name).toMatch(asynchronous ? /loop/ : /benchmark 2/);
    for (const count of [1, 7, 40]) {
      calls = 0;
      const { ms, queued_ms } = await runner.time(count);
      expect(queued_ms).toBe(0); // nothing is left to wait for
      expect(calls).toBe(count);
      expect(ms).toBeGreaterThanOrEqual(count * call_ms * 0.99);
    }
  });
}

for (const asynchronous of [false, true]) {
  it(`times the wait for queued calls, once a sample, ${asynchronous ? 'awaited' : 'at once'}`, async () => {
    let queued = 0;
    const waits: number[] = [];
    const call_ms = 0.5;
    const finish = () => {
      waits.push(queued);
      const end = performance.now() + queued * call_ms;
      while (performance.now() < end);
      queued = 0;
    };
    const queue_ms = 0.05;
    const run = () => {
      const end = performance.now() + queue_ms;
      while (performance.now() < end);
      queued++;
    };
    const runner = await makeRunner(
      run,
      asynchronous,
      asynchronous ? async () => finish() : finish,
    );
    for (const count of [1, 7, 40]) {
      const { ms, queued_ms } = await runner.time(count);
      expect(queued_ms).toBeGreaterThanOrEqual(count * queue_ms * 0.99);
      expect(ms - queued_ms).toBeGreaterThanOrEqual(count * call_ms * 0.99);
    }
    expect(waits).toEqual([1, 7, 40]);
  });
}
