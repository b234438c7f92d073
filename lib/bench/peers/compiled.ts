/** C and C++ libraries, by small programs in `bench/` that are compiled on demand. */

import { compileProgram } from '../foreign.js';
import type { BenchOp, Job } from '../job.js';
import type { ComputeType, Peer, Program } from '../peer.js';

interface CompiledPeer {
  readonly name: string;
  readonly source: string;
  /** What to link. */
  readonly flags: readonly string[];
  readonly install: string;
  readonly ops: readonly BenchOp[];
  readonly dtypes: readonly Job['dtype'][];
  readonly computes?: ComputeType;
}

/** The command line of bench/peer.h. */
export function compiledProgram(program: string, job: Job): Program {
  const { op, dtype, format, M, K, N, r, threads, coldBytes } = job;
  const args = [op, dtype, format, M, K, N, r, threads, coldBytes].map(String);
  const count = String(threads);
  return { command: program, args, env: { OMP_NUM_THREADS: count, OPENBLAS_NUM_THREADS: count } };
}

function compiledPeer(row: CompiledPeer): Peer {
  const compiled = () => compileProgram(row.source, row.flags);
  return {
    name: row.name,
    find: () => {
      const found = compiled();
      // The library reports its version once it runs.
      return 'program' in found
        ? { version: 'compiled' }
        : { missing: `${row.install} (${found.missing})` };
    },
    refuses: ({ op, dtype, device }) => {
      if (!row.ops.includes(op)) return `only ${row.ops.join(', ')}`;
      if (!row.dtypes.includes(dtype)) return `only ${row.dtypes.join(', ')}`;
      return device === 'cpu' || device === 'reference' ? undefined : 'measured on the CPU only';
    },
    ...(row.computes === undefined ? {} : { computes: row.computes }),
    program: (job) => {
      const found = compiled();
      return compiledProgram('program' in found ? found.program : 'false', job);
    },
  };
}

/** Dense f32, every op, one product after another. */
export const openblasPeer = compiledPeer({
  name: 'openblas',
  source: 'openblas_peer.cpp',
  flags: ['-lopenblas'],
  install: 'apt install libopenblas-dev',
  ops: ['matmul', 'loraForward', 'loraBackward', 'lora'],
  dtypes: ['f32'],
});

/** Dense weights, packed once, as in inference. */
export const onednnPeer = compiledPeer({
  name: 'onednn',
  source: 'onednn_peer.cpp',
  flags: ['-ldnnl'],
  install: 'apt install libdnnl-dev',
  ops: ['matmul', 'loraForward'],
  dtypes: ['f32', 'bf16'],
});
