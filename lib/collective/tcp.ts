/** Ranks that are connected by TCP, each with each. */

import { isMainThread } from 'node:worker_threads';
import { fail, wrongType } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { type Collective, CollectiveError } from './collective.js';
import { type FrameHeader, kMostBytes, type Operation } from './frames.js';
import type { Link } from './link.js';
import { connectMesh, type MeshOptions } from './mesh.js';
import { treeSum } from './tree-sum.js';

/** More connections than this are a case for MPI. */
export const kMostTcpRanks = 16;
const kHeartbeatMs = 5000;

/**
 * Each rank owns a part of the vector: slices go to their owners, the owner adds them in the order of the tree, and the
 * sums go back. A rank sends and receives 2(R − 1)/R of the vector.
 */
export class TcpWorld implements Collective {
  readonly rank: number;
  readonly size: number;
  readonly #links: readonly (Link | undefined)[];
  readonly #heartbeat: NodeJS.Timeout;
  #sequence = 0;
  #last: Promise<unknown> = Promise.resolve();
  #broken: CollectiveError | undefined;
  #closed = false;

  private constructor(
    { rank, size, timeoutMs }: MeshOptions,
    links: readonly (Link | undefined)[],
  ) {
    this.rank = rank;
    this.size = size;
    this.#links = links;
    for (const [peer, link] of links.entries()) {
      if (link === undefined) continue;
      link.peer = peer;
      link.onFailure = (error) => this.#fail(error);
    }
    const beat = () => {
      for (const link of links) link?.send({ kind: 'heartbeat' });
    };
    this.#heartbeat = setInterval(beat, Math.min(kHeartbeatMs, timeoutMs / 4)).unref();
  }

  /** @throws ERR_COLLECTIVE, ERR_UNSUPPORTED */
  static async join(options: MeshOptions): Promise<TcpWorld> {
    if (!isMainThread) {
      fail('ERR_UNSUPPORTED', 'joinWorld', 'the thread', 'the main one', 'a worker');
    }
    return new TcpWorld(options, await connectMesh(options));
  }

  sum(values: Float32Array): Promise<void> {
    if (!(values instanceof Float32Array)) {
      return Promise.reject(wrongType('collective.sum', 'values', 'a Float32Array', values));
    }
    return this.#call((sequence) => this.#sum(values, sequence));
  }

  async sumTensor(values: Tensor): Promise<void> {
    if (!Tensor.is(values)) throw wrongType('collective.sumTensor', 'values', 'a Tensor', values);
    const own = await values.to({ dtype: 'f32' }).read();
    await this.sum(own);
    values.write(own);
  }

  gather(bytes: Uint8Array): Promise<Uint8Array[]> {
    return this.#call((sequence) => this.#gather('gather', bytes.slice(), sequence, kMostBytes));
  }

  broadcast(bytes: Uint8Array | undefined, from = 0): Promise<Uint8Array> {
    const own = bytes?.slice();
    return this.#call(async (sequence) => {
      if (this.rank !== from) {
        const link = this.#links[from];
        if (link === undefined) {
          fail('ERR_VALUE', 'broadcast', 'from', `0 to ${this.size - 1}`, `${from}`);
        }
        return link.receive(this.#expect('broadcast', sequence, from, { most: kMostBytes }));
      }
      if (own === undefined) throw wrongType('broadcast', 'bytes', 'a Uint8Array', bytes);
      this.#send('broadcast', sequence, from, () => own);
      return own;
    });
  }

  async barrier(): Promise<void> {
    await this.#call((sequence) => this.#gather('barrier', new Uint8Array(), sequence, 0));
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#last.catch(() => {});
    clearInterval(this.#heartbeat);
    for (const link of this.#links) link?.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Runs one call after the ones before it. */
  #call<T>(work: (sequence: number) => Promise<T>): Promise<T> {
    const run = async () => {
      if (this.#broken !== undefined) throw this.#broken;
      if (this.#closed)
        throw new CollectiveError('lost', this.rank, 'collective: this rank has left');
      try {
        return await work(++this.#sequence);
      } catch (error) {
        if (error instanceof CollectiveError) this.#fail(error);
        throw this.#broken ?? error;
      }
    };
    const result = this.#last.then(run, run);
    this.#last = result.catch(() => {});
    return result;
  }

  async #sum(values: Float32Array, sequence: number): Promise<void> {
    const n = values.length;
    const most = Math.ceil(n / this.size);
    const slice = (of: Float32Array, rank: number) =>
      of.subarray(Math.min(rank * most, n), Math.min((rank + 1) * most, n));
    const bytes = (of: Float32Array) => new Uint8Array(of.buffer, of.byteOffset, of.byteLength);
    this.#send('sum', sequence, n, (peer) => bytes(slice(values, peer)));
    const mine = slice(values, this.rank);
    const parts = await this.#each(async (link) => {
      const into = new Float32Array(mine.length);
      await link.receive(this.#expect('sum', sequence, n, { into: bytes(into) }));
      return into;
    }, mine);
    const sums = new Float32Array(n);
    slice(sums, this.rank).set(treeSum(parts));
    this.#send('sums', sequence, n, () => bytes(slice(sums, this.rank)));
    await this.#each(async (link, peer) => {
      await link.receive(this.#expect('sums', sequence, n, { into: bytes(slice(sums, peer)) }));
    }, undefined);
    values.set(sums);
  }

  #gather(
    operation: 'gather' | 'barrier',
    own: Uint8Array,
    sequence: number,
    most: number,
  ): Promise<Uint8Array[]> {
    this.#send(operation, sequence, 0, () => own);
    return this.#each<Uint8Array>(
      (link) => link.receive(this.#expect(operation, sequence, 0, { most })),
      own,
    );
  }

  #send(
    operation: Operation,
    sequence: number,
    total: number,
    payload: (peer: number) => Uint8Array,
  ): void {
    for (const [peer, link] of this.#links.entries()) {
      link?.send({ kind: 'data', operation, sequence, total }, payload(peer));
    }
  }

  /** One result of each rank. */
  #each<T>(run: (link: Link, peer: number) => Promise<T>, own: T): Promise<T[]> {
    return Promise.all(
      this.#links.map((link, peer) => (link === undefined ? own : run(link, peer))),
    );
  }

  /** The memory of the frame that this call waits for. */
  #expect(
    operation: Operation,
    sequence: number,
    total: number,
    room: { readonly into: Uint8Array } | { readonly most: number },
  ): (header: FrameHeader) => Uint8Array {
    return (header) => {
      const show = (call: Pick<FrameHeader, 'operation' | 'sequence' | 'total'>) => {
        const name = call.operation === 'sums' ? 'sum' : call.operation || 'no call';
        const size = name === 'sum' ? ` of ${call.total} values` : '';
        return `call ${call.sequence}, ${name}${size}`;
      };
      const same = header.operation === operation && header.total === total;
      if (header.kind !== 'data' || !same || header.sequence !== sequence) {
        const wanted = show({ operation, sequence, total });
        throw new CollectiveError(
          'mismatch',
          undefined,
          `collective: ranks must make the same calls, got ${show(header)} where rank ${this.rank} makes ${wanted}`,
        );
      }
      const most = 'into' in room ? room.into.length : room.most;
      if (header.length > most || ('into' in room && header.length !== most)) {
        throw new CollectiveError(
          'refused',
          undefined,
          `collective: a frame of ${operation} must have ${most} bytes, got ${header.length}`,
        );
      }
      return 'into' in room ? room.into : new Uint8Array(header.length);
    };
  }

  /** Ends all connections, and tells the others why. */
  #fail(error: CollectiveError): void {
    if (this.#broken !== undefined) return;
    this.#broken = error;
    clearInterval(this.#heartbeat);
    for (const link of this.#links) link?.close(error);
  }
}
