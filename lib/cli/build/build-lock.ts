/** Allows one build in a folder at a time. */

import { spawn } from 'node:child_process';
import path from 'node:path';

/** The wait for the lock after which the user is told. */
const kPatienceMs = 500;

/**
 * Runs `work` while no other process builds in `folder`: two builds in one folder would overwrite each other.
 * flock(1) of util-linux holds the lock and releases it when this process ends, for whatever reason. Without flock,
 * nothing is locked.
 * @param onWait called once if another process has it
 */
export async function withBuildLock<T>(
  folder: string,
  onWait: () => void,
  work: () => T,
): Promise<T> {
  const held = ['sh', '-c', 'echo held; exec cat'];
  const holder = spawn('flock', [path.join(folder, 'build.lock'), ...held], {
    stdio: ['pipe', 'pipe', 'ignore'],
  });
  const patience = setTimeout(onWait, kPatienceMs);
  try {
    await new Promise<void>((resolve) => {
      holder.once('error', () => resolve());
      holder.once('exit', () => resolve());
      holder.stdout.once('data', () => resolve());
    });
    clearTimeout(patience);
    return work();
  } finally {
    clearTimeout(patience);
    holder.stdin.on('error', () => {}); // it has ended already
    holder.stdin.end();
  }
}
