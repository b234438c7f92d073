/** Marks a process in the files that it leaves, so that another process can tell whether it still runs. */

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';

/** A mark: machine (and its namespace of process ids), process id, start time. */
export const kMarkPattern = '[0-9a-f]{8}-[0-9]+-[0-9]+';

let machine: string | undefined;

/** Process ids are distinguished by machine, and by container. */
function machineTag(): string {
  if (machine === undefined) {
    let namespace = '';
    try {
      namespace = fs.readlinkSync('/proc/self/ns/pid');
    } catch {
      // Not on Linux: the host's name must suffice.
    }
    machine = createHash('sha256')
      .update(`${os.hostname()} ${namespace}`)
      .digest('hex')
      .slice(0, 8);
  }
  return machine;
}

/**
 * The start time of a process in clock ticks since boot; 0 if it cannot be known, `undefined` if the process has
 * ended. A process that reuses the id of another has another start time.
 */
function startOf(pid: number): number | undefined {
  if (process.platform !== 'linux') {
    try {
      process.kill(pid, 0);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ESRCH') return undefined;
    }
    return 0;
  }
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The name in parentheses may contain spaces, so fields are counted after it.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const [state = ''] = fields;
    return 'ZX'.includes(state) ? undefined : Number(fields[19]);
  } catch {
    return undefined;
  }
}

/** The mark of this process. */
export function processMark(): string {
  return `${machineTag()}-${process.pid}-${startOf(process.pid) ?? 0}`;
}

/** May the process of a mark still run? Nothing is known about processes of other machines. */
export function mayRun(mark: string): boolean {
  const [tag, pid, start] = mark.split('-');
  if (tag !== machineTag()) return true;
  return startOf(Number(pid)) === Number(start);
}
