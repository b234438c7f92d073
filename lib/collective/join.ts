/** How a process joins others. */

import { fail, shown } from '../core/errors.js';
import { checkFinite, checkInteger, readOptions } from '../core/validate.js';
import type { Collective } from './collective.js';
import { isLoopback } from './mesh.js';
import { SingleWorld } from './single.js';
import { kMostTcpRanks, TcpWorld } from './tcp.js';

/** How a process joins. */
export interface WorldOptions {
  /** Default: `single` for one process, else `tcp`. */
  readonly transport?: 'tcp' | 'single';
  /** Of this process, from 0; default 0. */
  readonly rank?: number;
  /** Number of processes; default 1. */
  readonly size?: number;
  /** Where rank 0 listens: `host:port`, or `:port` for every address of its machine. */
  readonly address?: string;
  /** What all ranks know and nobody else; default `LOWRANK_WORLD_TOKEN`. Needed unless the address is of this machine alone. */
  readonly token?: string;
  /** Longest wait for a rank that sends nothing; default 120. */
  readonly timeoutSeconds?: number;
}

/**
 * Joins a world of processes.
 * @throws ERR_TYPE, ERR_VALUE · ERR_UNSUPPORTED in a worker, and for more than 16 ranks · ERR_COLLECTIVE if the ranks do
 * not find each other
 * @example
 * await using world = await joinWorld({ rank: 1, size: 2, address: '127.0.0.1:7700' });
 * await world.sum(gradients);
 */
export async function joinWorld(options?: WorldOptions): Promise<Collective> {
  const op = 'joinWorld';
  const given = readOptions(op, options, {
    transport: true,
    rank: true,
    size: true,
    address: true,
    token: true,
    timeoutSeconds: true,
  });
  const size = checkInteger(op, 'size', given.size ?? 1, 1, 65_535);
  const rank = checkInteger(op, 'rank', given.rank ?? 0, 0, size - 1);
  const { transport = size === 1 ? 'single' : 'tcp' } = given;
  if (transport !== 'tcp' && transport !== 'single') {
    fail('ERR_VALUE', op, 'transport', 'tcp or single', shown(transport));
  }
  if (transport === 'single') {
    if (size > 1) fail('ERR_VALUE', op, 'size', '1 with transport single', String(size));
    return new SingleWorld();
  }
  if (size > kMostTcpRanks) {
    fail('ERR_UNSUPPORTED', op, 'size', `at most ${kMostTcpRanks} over TCP`, String(size));
  }
  const { host, port } = parseAddress(op, given.address);
  const token = given.token ?? process.env.LOWRANK_WORLD_TOKEN ?? '';
  if (token === '' && !isLoopback(host)) {
    const where = 'set on every rank (LOWRANK_WORLD_TOKEN), for an address beyond this machine';
    fail('ERR_VALUE', op, 'token', where, 'none');
  }
  const seconds = checkFinite(op, 'timeoutSeconds', given.timeoutSeconds ?? 120);
  if (seconds <= 0 || seconds > 86_400) {
    fail('ERR_VALUE', op, 'timeoutSeconds', 'above 0 and at most 86400', String(seconds));
  }
  return TcpWorld.join({ rank, size, host, port, token, timeoutMs: seconds * 1000 });
}

function parseAddress(op: string, address: unknown): { host: string; port: number } {
  const found = typeof address === 'string' ? /^(.*):(\d{1,5})$/.exec(address) : null;
  const port = Number(found?.[2]);
  if (found === null || port < 1 || port > 65_535) {
    fail('ERR_VALUE', op, 'address', 'HOST:PORT or :PORT', shown(address));
  }
  return { host: (found[1] as string).replace(/^\[(.*)\]$/, '$1'), port };
}
