/** PyTorch in eager mode: as it is shipped, and with a malloc that keeps big blocks. */

import { spawnSync } from 'node:child_process';
import { benchFile } from '../foreign.js';
import type { Job } from '../job.js';
import type { Found, Peer, Program } from '../peer.js';

/**
 * The interpreter that has these modules, and their versions. A distribution's torch belongs to its
 * own python3, which need not be the first on the PATH.
 */
export function findPython(
  ...modules: string[]
): { command: string; versions: string[] } | undefined {
  const key = modules.join();
  if (!looked.has(key)) looked.set(key, look(modules));
  return looked.get(key);
}
const looked = new Map<string, { command: string; versions: string[] } | undefined>();

function look(modules: readonly string[]) {
  const script = `import ${modules.join(',')}; print(${modules.map((name) => `${name}.__version__`).join(',')})`;
  for (const command of [process.env.PYTHON, 'python3', '/usr/bin/python3']) {
    if (command === undefined || command === '') continue;
    const run = spawnSync(command, ['-c', script], { encoding: 'utf8', timeout: 60_000 });
    if (run.status !== 0) continue;
    const versions = run.stdout.trim().split('\n').pop()?.split(' ') ?? [];
    return { command, versions };
  }
  return undefined;
}

const find = (): Found => {
  const python = findPython('torch', 'numpy');
  const version = python?.versions[0];
  return version === undefined
    ? { missing: 'apt install python3-torch, or pip install torch numpy' }
    : { version };
};

/** The driver for one job. */
export function torchProgram(job: Job, mode: 'dense' | 'bitsandbytes', tuned: boolean): Program {
  const modules = ['torch', 'numpy', ...(mode === 'bitsandbytes' ? [mode] : [])];
  const { command } = findPython(...modules) as { command: string };
  const threads = String(job.threads);
  return {
    command,
    args: [benchFile('torch_peer.py'), JSON.stringify({ ...job, mode })],
    env: {
      OMP_NUM_THREADS: threads,
      OPENBLAS_NUM_THREADS: threads,
      MKL_NUM_THREADS: threads,
      ...(tuned
        ? {
            // glibc gives big blocks back at every free, and pays for their pages at every call.
            GLIBC_TUNABLES:
              'glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=68719476736',
          }
        : {}),
    },
  };
}

const refuses = ({ device }: Job) =>
  device === 'cpu' || device === 'reference' ? undefined : 'measured on the CPU only';

export const torchPeer: Peer = {
  name: 'torch',
  find,
  refuses,
  program: (job) => torchProgram(job, 'dense', false),
};

export const torchTunedPeer: Peer = {
  name: 'torch-tuned',
  find: () =>
    process.platform === 'linux' ? find() : { missing: 'the tuning is of glibc, so of Linux' },
  refuses,
  program: (job) => torchProgram(job, 'dense', true),
};
