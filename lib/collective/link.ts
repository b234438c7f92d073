/** A connection to one other rank. */

import type { Socket } from 'node:net';
import { printable } from '../core/printable.js';
import { CollectiveError, type CollectiveReason } from './collective.js';
import { encodeHeader, type FrameHeader, type FrameKind, FrameReader } from './frames.js';

const kReasons = ['left', 'lost', 'timeout', 'mismatch', 'refused', 'no-mpi'] as const;
const kByeBytes = 600;
const kNoRank = 0xffff;

interface Wanted {
  readonly check: (header: FrameHeader) => Uint8Array;
  readonly resolve: (payload: Uint8Array) => void;
  readonly reject: (error: CollectiveError) => void;
}

/** Frames over a socket. A frame that comes before it is wanted stays in the socket. */
export class Link {
  /** The other rank, once it is known. */
  peer: number | undefined;
  /** Called once with what broke the connection. */
  onFailure: ((error: CollectiveError) => void) | undefined;
  readonly #socket: Socket;
  /** Longest silence while a frame is awaited. */
  timeoutMs: number;
  readonly #reader: FrameReader;
  #wanted: Wanted | undefined;
  #timer: NodeJS.Timeout | undefined;
  #heard = 0;
  #error: CollectiveError | undefined;

  constructor(socket: Socket, timeoutMs: number, peer?: number) {
    this.peer = peer;
    this.#socket = socket;
    this.timeoutMs = timeoutMs;
    this.#reader = new FrameReader(
      (header) => this.#accept(header),
      (header, payload) => this.#done(header, payload),
    );
    socket.setNoDelay(true);
    socket.on('data', (chunk) => this.#push(chunk));
    socket.on('error', (error) => this.fail('lost', `broke its connection (${error.message})`));
    socket.on('close', () => this.fail('lost', 'ended its connection'));
  }

  get #name(): string {
    return this.peer === undefined ? 'a peer' : `rank ${this.peer}`;
  }

  /** Queues a frame; leave the payload alone until the peer has answered. */
  send(
    header: Partial<FrameHeader> & { kind: FrameKind },
    payload: Uint8Array = new Uint8Array(),
  ): void {
    if (this.#error !== undefined || this.#socket.destroyed) return;
    const whole = { operation: '', sequence: 0, total: 0, ...header } as const;
    this.#socket.cork();
    this.#socket.write(encodeHeader({ ...whole, length: payload.length }));
    if (payload.length > 0) this.#socket.write(payload);
    this.#socket.uncork();
  }

  /**
   * Waits for the next frame but heartbeats.
   * @param check gives the memory of the payload, or throws for a frame that must not come
   * @throws ERR_COLLECTIVE
   */
  receive(check: (header: FrameHeader) => Uint8Array): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      if (this.#error !== undefined) {
        reject(this.#error);
        return;
      }
      this.#wanted = { check, resolve, reject };
      this.#heard = performance.now();
      this.#watch();
      if (!this.#reader.waiting) return;
      this.#push();
      if (!this.#reader.waiting) this.#socket.resume();
    });
  }

  /** Breaks the connection. @param what it did, after its name */
  fail(reason: CollectiveReason, what: string): void {
    this.#break(new CollectiveError(reason, this.peer, `collective: ${this.#name} ${what}`));
  }

  /** Tells the peer why, and ends the connection. */
  close(error?: CollectiveError): void {
    if (this.#error !== undefined) return;
    const text = new TextEncoder().encode(error?.message ?? '').subarray(0, kByeBytes - 3);
    const payload = new Uint8Array(3 + text.length);
    const rank = error?.rank ?? kNoRank;
    payload.set([kReasons.indexOf(error?.reason ?? 'left'), rank & 0xff, rank >> 8]);
    payload.set(text, 3);
    this.send({ kind: 'bye' }, payload);
    this.#error = error ?? new CollectiveError('lost', undefined, 'collective: this rank has left');
    this.#settle();
    this.#socket.end();
    // What the peer still sends is not read.
    this.#socket.resume();
    // A peer that never ends its half keeps no process alive.
    this.#socket.unref();
  }

  #push(chunk?: Uint8Array): void {
    this.#heard = performance.now();
    if (this.#error !== undefined) return;
    try {
      this.#reader.push(chunk);
    } catch (error) {
      if (!(error instanceof CollectiveError)) throw error;
      this.#break(new CollectiveError(error.reason, error.rank ?? this.peer, error.message), true);
      return;
    }
    if (this.#reader.waiting) this.#socket.pause();
  }

  #accept(header: FrameHeader): Uint8Array | undefined {
    const { kind, length } = header;
    if (kind === 'heartbeat' || kind === 'bye') {
      const most = kind === 'bye' ? kByeBytes : 0;
      if (length > most || (kind === 'bye' && length < 3)) {
        throw new CollectiveError(
          'refused',
          this.peer,
          `collective: ${kind} of ${this.#name} must have at most ${most} bytes, got ${length}`,
        );
      }
      return new Uint8Array(length);
    }
    return this.#wanted?.check(header);
  }

  #done({ kind }: FrameHeader, payload: Uint8Array): void {
    if (kind === 'heartbeat') return;
    if (kind === 'bye') {
      this.#bye(payload);
      return;
    }
    const wanted = this.#wanted;
    this.#wanted = undefined;
    clearTimeout(this.#timer);
    wanted?.resolve(payload);
  }

  #bye(payload: Uint8Array): void {
    const reason = kReasons[payload[0] as number];
    if (reason === undefined || reason === 'left') {
      // What it sent before is whole, so only a later call misses it.
      this.#error = new CollectiveError('lost', this.peer, `collective: ${this.#name} has left`);
      this.#socket.end();
      this.#settle();
      return;
    }
    const rank = (payload[1] as number) | ((payload[2] as number) << 8);
    const text = printable(new TextDecoder().decode(payload.subarray(3)));
    const culprit = rank === kNoRank ? this.peer : rank;
    const message = `collective: ${this.#name} stopped: ${text}`;
    this.#break(new CollectiveError(reason, culprit, message));
  }

  #watch(): void {
    clearTimeout(this.#timer);
    const left = this.#heard + this.timeoutMs - performance.now();
    this.#timer = setTimeout(
      () => {
        if (performance.now() < this.#heard + this.timeoutMs) this.#watch();
        else this.fail('timeout', `sent nothing for ${this.timeoutMs / 1000} s`);
      },
      Math.max(left, 1),
    );
  }

  /** @param tell whether the peer learns why */
  #break(error: CollectiveError, tell = false): void {
    if (this.#error !== undefined) return;
    if (tell) this.close(error);
    this.#error = error;
    if (!tell) this.#socket.destroy();
    this.#settle();
    this.onFailure?.(error);
  }

  #settle(): void {
    clearTimeout(this.#timer);
    const wanted = this.#wanted;
    this.#wanted = undefined;
    wanted?.reject(this.#error as CollectiveError);
  }
}
