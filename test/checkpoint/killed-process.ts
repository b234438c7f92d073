/** A process that is killed at one of its calls that change the file system, without leaving this one. */

import fs from 'node:fs';
import { vi } from 'vitest';

/** What changes files and folders; writing to an open file is among them. */
const kCalls = [
  'mkdirSync',
  'openSync',
  'writeSync',
  'writeFileSync',
  'fsyncSync',
  'renameSync',
  'rmSync',
  'rmdirSync',
  'linkSync',
  'copyFileSync',
] as const;

/**
 * Runs `body` as a process that is killed at its call number `at`: from there on nothing changes files any more, what
 * cleans up included, and the process that comes next has another mark.
 * @returns whether it was killed
 */
export async function killedAt(at: number, body: () => unknown): Promise<boolean> {
  incarnation++;
  let count = 0;
  const killed = () => count >= at;
  const spies = kCalls.map((call) => {
    const original = fs[call] as (...args: unknown[]) => unknown;
    return vi.spyOn(fs, call as 'openSync').mockImplementation(((...args: unknown[]) => {
      const reads = call === 'openSync' && (args[1] === 'r' || typeof args[1] === 'number');
      if (!reads && (killed() || ++count === at)) throw new Error('killed');
      return original(...args);
    }) as never);
  });
  const read = fs.readFileSync;
  const own = `/proc/${process.pid}/stat`;
  const stat = vi.spyOn(fs, 'readFileSync').mockImplementation(((...args: unknown[]) => {
    const content = (read as (...all: unknown[]) => unknown)(...args);
    return args[0] === own ? withStart(String(content), incarnation) : content;
  }) as never);
  try {
    await body();
    return killed();
  } catch (error) {
    if (killed()) return true;
    throw error;
  } finally {
    for (const spy of [...spies, stat]) spy.mockRestore();
  }
}

let incarnation = 0;

/** /proc/PID/stat of a process that began at another time: field 22. */
function withStart(text: string, start: number): string {
  const end = text.lastIndexOf(')') + 2;
  const fields = text.slice(end).split(' ');
  fields[19] = String(start);
  return `${text.slice(0, end)}${fields.join(' ')}`;
}
