/** Worlds of several ranks in this process, over TCP on the loopback. */

import net from 'node:net';
import { type Collective, joinWorld, type WorldOptions } from '../../lib/index.js';

/** A port that was free a moment ago. */
export function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = net.createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as net.AddressInfo;
      server.close(() => resolve(port));
    });
  });
}

export async function worldOf(
  size: number,
  options: Partial<WorldOptions> = {},
): Promise<Collective[]> {
  const address = `127.0.0.1:${await freePort()}`;
  return Promise.all(
    Array.from({ length: size }, (_, rank) =>
      joinWorld({ transport: 'tcp', rank, size, address, timeoutSeconds: 10, ...options }),
    ),
  );
}
