/** A connection from every rank to every other. Rank 0 listens at a known address and tells the others where they are. */

import net from 'node:net';
import { printable } from '../core/printable.js';
import { CollectiveError } from './collective.js';
import { join, letIn, only } from './handshake.js';
import { Link } from './link.js';

/** Connections whose hello has not come. */
const kMostStrangers = 64;
const kHelloMs = 10_000;
const kRetryMs = 100;
const kMostPeersBytes = 16_384;

export interface MeshOptions {
  readonly rank: number;
  readonly size: number;
  readonly host: string;
  readonly port: number;
  readonly token: string;
  readonly timeoutMs: number;
}

/**
 * Connects.
 * @returns links by rank, with a hole at this one
 * @throws ERR_COLLECTIVE
 */
export async function connectMesh(options: MeshOptions): Promise<(Link | undefined)[]> {
  const { rank, size, host, port, token, timeoutMs } = options;
  const until = performance.now() + timeoutMs;
  const links: (Link | undefined)[] = new Array(size).fill(undefined);
  const places: ({ host: string; port: number } | undefined)[] = new Array(size).fill(undefined);
  let server: net.Server | undefined;
  try {
    if (rank === 0) {
      const arriving = new Arrivals(options, until);
      server = await listen(arriving, host, port);
      for (const { link, place, address } of await arriving.all(size - 1)) {
        links[place.rank] = link;
        places[place.rank] = { host: address, port: place.port };
      }
      const peers = new TextEncoder().encode(JSON.stringify(places.slice(1)));
      for (const link of links) link?.send({ kind: 'peers' }, peers);
      return links;
    }
    const first = await dial(host, port, until, timeoutMs, 0);
    links[0] = first.link;
    const above = size - 1 - rank;
    const arriving = new Arrivals(options, until);
    if (above > 0) server = await listen(arriving, first.local, 0);
    const own = (server?.address() as net.AddressInfo | null | undefined)?.port ?? 0;
    await join(first.link, token, { rank, size, port: own }, 0);
    const peers = parsePeers(await first.link.receive(only('peers', 2, kMostPeersBytes)), size);
    for (let to = 1; to < rank; to++) {
      const peer = peers[to - 1] as { host: string; port: number };
      // A rank on the machine of rank 0 has the address under which rank 0 is known here.
      const at = isLoopback(peer.host) ? host : peer.host;
      const { link } = await dial(at, peer.port, until, timeoutMs, to);
      links[to] = link;
      await join(link, token, { rank, size, port: 0 }, to);
    }
    for (const { link, place } of await arriving.all(above)) links[place.rank] = link;
    return links;
  } catch (error) {
    const known = error instanceof CollectiveError ? error : undefined;
    for (const link of links) link?.close(known);
    throw error;
  } finally {
    server?.close();
  }
}

interface Arrival {
  readonly link: Link;
  readonly place: { readonly rank: number; readonly port: number };
  readonly address: string;
}

/** Ranks that come to a listener. */
class Arrivals {
  readonly #options: MeshOptions;
  readonly #until: number;
  readonly #arrived: Arrival[] = [];
  #strangers = 0;
  #refused = '';
  #changed: () => void = () => {};

  constructor(options: MeshOptions, until: number) {
    this.#options = options;
    this.#until = until;
  }

  readonly connection = (socket: net.Socket): void => {
    if (this.#strangers >= kMostStrangers) {
      socket.destroy();
      return;
    }
    this.#strangers++;
    const { token, rank, size, timeoutMs } = this.#options;
    const address = socket.remoteAddress ?? '';
    const link = new Link(socket, Math.min(kHelloMs, timeoutMs));
    letIn(link, token, { rank, size })
      .then((place) => {
        if (this.#arrived.some((other) => other.place.rank === place.rank)) {
          const text = `collective: each rank must join once, got rank ${place.rank} twice`;
          throw new CollectiveError('refused', place.rank, text);
        }
        link.peer = place.rank;
        link.timeoutMs = timeoutMs;
        this.#arrived.push({ link, place, address });
      })
      .catch((error: unknown) => {
        if (!(error instanceof CollectiveError)) throw error;
        this.#refused = error.message;
        link.close(error);
      })
      .finally(() => {
        this.#strangers--;
        this.#changed();
      });
  };

  /** Waits until so many are there. */
  all(count: number): Promise<readonly Arrival[]> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => {
          const { rank, size, timeoutMs } = this.#options;
          const here = new Set(this.#arrived.map(({ place }) => place.rank));
          const missing = Array.from({ length: size }, (_, i) => i).filter(
            (i) => i > rank && !here.has(i),
          );
          for (const { link } of this.#arrived) link.close();
          const last =
            this.#refused === '' ? '' : `. The last that was not let in: ${this.#refused}`;
          const text = `collective: rank ${missing.join(', ')} must join within ${timeoutMs / 1000} s, got nothing${last}`;
          reject(new CollectiveError('timeout', missing[0], text));
        },
        Math.max(this.#until - performance.now(), 1),
      );
      this.#changed = () => {
        if (this.#arrived.length < count) return;
        clearTimeout(timer);
        resolve(this.#arrived);
      };
      this.#changed();
    });
  }
}

function listen(arrivals: Arrivals, host: string, port: number): Promise<net.Server> {
  return new Promise((resolve, reject) => {
    const server = net.createServer(arrivals.connection);
    server.once('error', (error) => {
      const where = `${printable(host)} port ${port}`;
      const text = `collective: the address must be free on this machine, got ${where} (${error.message})`;
      reject(new CollectiveError('refused', 0, text));
    });
    server.listen(port, host === '' ? undefined : host, () => resolve(server));
  });
}

/** Connects, again and again until the listener is there. */
async function dial(host: string, port: number, until: number, timeoutMs: number, rank: number) {
  for (;;) {
    const socket = net.connect({ host, port });
    const failed = await new Promise<NodeJS.ErrnoException | undefined>((resolve) => {
      socket.setTimeout(Math.max(until - performance.now(), 1), () =>
        socket.destroy(new Error('no answer')),
      );
      socket.once('connect', () => resolve(undefined));
      socket.once('error', resolve);
    });
    if (failed === undefined) {
      socket.setTimeout(0);
      socket.removeAllListeners('error');
      return { link: new Link(socket, timeoutMs, rank), local: socket.localAddress ?? '' };
    }
    const again = failed.code === 'ECONNREFUSED' || failed.code === 'EHOSTUNREACH';
    if (!again || performance.now() + kRetryMs > until) {
      const where = `${printable(host)} port ${port}`;
      const text = `collective: rank ${rank} must listen at ${where}, got ${failed.message}`;
      throw new CollectiveError(again ? 'timeout' : 'refused', rank, text);
    }
    await new Promise((resolve) => setTimeout(resolve, kRetryMs));
  }
}

/** Is it this machine, so that nobody else can connect? */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^(::ffff:)?127\.\d+\.\d+\.\d+$/.test(host);
}

function parsePeers(bytes: Uint8Array, size: number): { host: string; port: number }[] {
  const wrong = (): never => {
    const text = 'collective: rank 0 must send the addresses of all ranks, got something else';
    throw new CollectiveError('refused', 0, text);
  };
  let parsed: unknown;
  try {
    parsed = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return wrong();
  }
  if (!Array.isArray(parsed) || parsed.length !== size - 1) return wrong();
  return parsed.map((each: { host?: unknown; port?: unknown } | null) => {
    const { host, port } = each ?? {};
    if (typeof host !== 'string' || net.isIP(host) === 0) return wrong();
    if (!Number.isInteger(port) || (port as number) < 0 || (port as number) > 65_535)
      return wrong();
    return { host, port: port as number };
  });
}
