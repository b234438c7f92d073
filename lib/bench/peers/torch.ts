/** PyTorch in eager mode, run as its experts run it on a CPU. */

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

/**
 * The interpreter whose torch can be timed: one that multiplies with a tuned BLAS, as its experts run it.
 * Debian's torch multiplies with the reference BLAS, many times slower, until a tuned one is installed beside it.
 * @param modules wanted besides torch and NumPy
 */
export function findTunedTorch(
  ...modules: string[]
):
  | { readonly command: string; readonly versions: readonly string[] }
  | { readonly missing: string } {
  const python = findPython('torch', 'numpy', ...modules);
  if (python === undefined) {
    return { missing: 'apt install python3-torch, or pip install torch numpy' };
  }
  const name = blasOf(python.command);
  return name.startsWith('reference BLAS')
    ? { missing: `apt install libopenblas0, since this torch multiplies with the ${name}` }
    : python;
}

const blases = new Map<string, string>();
function blasOf(command: string): string {
  const known = blases.get(command);
  if (known !== undefined) return known;
  const run = spawnSync(command, [benchFile('torch_peer.py'), 'blas'], {
    encoding: 'utf8',
    timeout: 60_000,
  });
  const name = run.status === 0 ? run.stdout.trim() : '';
  blases.set(command, name);
  return name;
}

/** What {@link Peer.find} answers for torch with these modules. */
export function torchFound(...modules: string[]): Found {
  const found = findTunedTorch(...modules);
  return 'missing' in found
    ? found
    : { version: found.versions.at(modules.length === 0 ? 0 : -1) as string };
}

/** A way of running torch: environment variables, and what they do. */
export interface TorchSettings {
  readonly env: Readonly<Record<string, string>>;
  readonly settings: string;
}

/**
 * The settings worth trying. OpenMP threads that spin when idle win if BLAS runs on the same threads,
 * and lose by a large factor if BLAS has its own pool (Debian's OpenBLAS), because the two pools then
 * take each other's cores. A policy set by the user stays. glibc's malloc returns big blocks at every
 * free and pays for their pages at every call, unless it is told to keep them.
 */
export function torchSettings(
  threads: number,
  environment: Readonly<Record<string, string | undefined>> = process.env,
): readonly TorchSettings[] {
  const glibc = process.platform === 'linux' && environment.GLIBC_TUNABLES === undefined;
  const count = String(threads);
  const common = {
    OMP_NUM_THREADS: count,
    OPENBLAS_NUM_THREADS: count,
    MKL_NUM_THREADS: count,
    ...(glibc
      ? {
          GLIBC_TUNABLES:
            'glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=68719476736',
        }
      : {}),
  };
  const malloc = glibc ? ', malloc keeps big blocks' : '';
  const chosen = environment.OMP_WAIT_POLICY;
  if (chosen !== undefined) {
    return [{ env: common, settings: `OMP_WAIT_POLICY=${chosen}${malloc}` }];
  }
  return [
    {
      env: { ...common, OMP_WAIT_POLICY: 'passive' },
      settings: `OMP_WAIT_POLICY=passive${malloc}`,
    },
    { env: common, settings: `OMP_WAIT_POLICY unset${malloc}` },
  ];
}

/** The driver for one job, in each way to try. */
export function torchPrograms(job: Job, mode: 'dense' | 'bitsandbytes'): readonly Program[] {
  const modules = ['torch', 'numpy', ...(mode === 'bitsandbytes' ? [mode] : [])];
  const { command } = findPython(...modules) as { command: string };
  const args = [benchFile('torch_peer.py'), JSON.stringify({ ...job, mode })];
  return torchSettings(job.threads).map((settings) => ({ command, args, ...settings }));
}

export const torchPeer: Peer = {
  name: 'torch',
  find: () => torchFound(),
  refuses: ({ device }: Job) =>
    device === 'cpu' || device === 'reference' ? undefined : 'measured on the CPU only',
  program: (job) => torchPrograms(job, 'dense'),
};
