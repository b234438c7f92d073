/** A subject takes no core from others when it is not its turn. */

import { existsSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { SubjectProcess } from '../../lib/bench/subject-process.js';

/** A child that keeps a core busy whenever it may run, as the threads of a pool that spin. */
const kBusy = `
  console.log(JSON.stringify({ ready: { note: String(process.pid) } }));
  process.stdin.on('data', () => console.log(JSON.stringify({ ms: 1 })));
  process.stdin.on('end', () => process.exit(0));
  setImmediate(function spin() {
    const end = Date.now() + 2;
    while (Date.now() < end);
    setImmediate(spin);
  });`;

const linux = process.platform === 'linux';
if (!linux) console.warn('skipped: the state of a process is read from /proc');

it.skipIf(!linux)('is stopped between its turns, and ends when told to', async () => {
  const { process: subject, ready } = await SubjectProcess.start({
    command: process.execPath,
    args: ['-e', kBusy],
  });
  const pid = Number(ready.note);
  const stat = () =>
    readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /, '')
      .split(' ');
  // State, and processor time of the user and the system in ticks.
  const busyTicks = () => Number(stat()[11]) + Number(stat()[12]);
  try {
    for (let turn = 0; turn < 2; turn++) {
      await sleep(50);
      expect(stat()[0]).toBe('T');
      const before = busyTicks();
      await sleep(200);
      expect(busyTicks()).toBe(before);
      expect((await subject.sample(() => new Map())).ms).toBe(1);
    }
  } finally {
    await subject.close();
  }
  expect(existsSync(`/proc/${pid}`)).toBe(false);
});
