/**
 * Children that end with this process, however it ends (but by SIGKILL). Those that are stopped would stay
 * otherwise: nothing but SIGKILL and SIGCONT reaches them, and the system sends these only to a process group
 * that nobody is left to look after, which that of a script is not.
 */

import type { ChildProcess } from 'node:child_process';

const living = new Set<ChildProcess>();

function endAll(): void {
  for (const child of living) child.kill('SIGKILL');
}

/** Ends the child when this process exits, if it is there then. */
export function endWithUs(child: ChildProcess): void {
  if (living.size === 0) process.once('exit', endAll);
  living.add(child);
  child.once('close', () => {
    living.delete(child);
    if (living.size === 0) process.off('exit', endAll);
  });
}
