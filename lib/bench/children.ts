/**
 * Child processes that end with this process, however it ends (except by SIGKILL). Without this, stopped
 * children would stay: only SIGKILL and SIGCONT reach them, and the system sends these only to an orphaned
 * process group, which that of a script is not.
 */

import type { ChildProcess } from 'node:child_process';

const living = new Set<ChildProcess>();

function endAll(): void {
  for (const child of living) child.kill('SIGKILL');
}

/** Ends the child when this process exits, if it still runs then. */
export function endWithUs(child: ChildProcess): void {
  if (living.size === 0) process.once('exit', endAll);
  living.add(child);
  child.once('close', () => {
    living.delete(child);
    if (living.size === 0) process.off('exit', endAll);
  });
}
