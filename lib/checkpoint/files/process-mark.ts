/** Names of processes in files that they leave, by which another process knows whether the one named still runs. */

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';

/** A mark: machine (and its namespace of process ids), process id, time of its start. */
export const kMarkPattern = '[0-9a-f]{8}-[0-9]+-[0-9]+';

let machine: string | undefined;

/** Process ids are told apart by machine, and by container. */
function machineTag(): string {
  if (machine === undefined) {
    let namespace = '';
    try {
      namespace = fs.readlinkSync('/proc/self/ns/pid');
    } catch {
      // No Linux: the host's name has to do.
    }
    machine = createHash('sha256')
      .update(`${os.hostname()} ${namespace}`)
      .digest('hex')
      .slice(0, 8);
  }
  return machine;
}

/**
 * When a process began, in ticks since the machine did; 0 where that cannot be known, `undefined` where it has ended.
 * A process that took over the number of another has another start.
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
    // The name in parentheses may hold spaces: fields are counted after it.
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

/** Whether the process of a mark may still run: of another machine's processes nothing is known. */
export function mayRun(mark: string): boolean {
  const [tag, pid, start] = mark.split('-');
  if (tag !== machineTag()) return true;
  return startOf(Number(pid)) === Number(start);
}
