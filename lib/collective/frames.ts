/**
 * Frames between ranks. A header of 28 bytes, little-endian, then the payload:
 *
 *   0 magic and version  4 kind  5 operation  6 zero (2)  8 sequence (4)  12 total (8)  20 length (4)  24 zero (4)
 *
 * Peers are not trusted: a header is checked before memory is taken for its payload.
 */

import { CollectiveError } from './collective.js';

/** `LRC` and the version of the frames. */
const kMagic = 0x0143524c;
export const kHeaderBytes = 28;
/** No payload is longer. */
export const kMostBytes = 2 ** 30;

const kKinds = ['', 'challenge', 'hello', 'welcome', 'peers', 'data', 'heartbeat', 'bye'] as const;
const kOperations = ['', 'sum', 'sums', 'gather', 'broadcast', 'barrier'] as const;
export type FrameKind = Exclude<(typeof kKinds)[number], ''>;
/** `sum` carries slices to their owner, `sums` their sums back. */
export type Operation = (typeof kOperations)[number];

export interface FrameHeader {
  readonly kind: FrameKind;
  /** Of `data` only. */
  readonly operation: Operation;
  /** Number of the call, from 1; of `data` only. */
  readonly sequence: number;
  /** Length of the whole vector in elements, for sums. */
  readonly total: number;
  /** Of the payload, in bytes. */
  readonly length: number;
}

/** The bytes of a header. */
export function encodeHeader(header: FrameHeader): Uint8Array {
  const bytes = new Uint8Array(kHeaderBytes);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, kMagic, true);
  view.setUint8(4, kKinds.indexOf(header.kind));
  view.setUint8(5, kOperations.indexOf(header.operation));
  view.setUint32(8, header.sequence, true);
  view.setBigUint64(12, BigInt(header.total), true);
  view.setUint32(20, header.length, true);
  return bytes;
}

/**
 * Reads a header.
 * @throws ERR_COLLECTIVE (`refused`) if no rank of this version sends it
 */
export function decodeHeader(bytes: Uint8Array): FrameHeader {
  const view = new DataView(bytes.buffer, bytes.byteOffset, kHeaderBytes);
  const magic = view.getUint32(0, true);
  if (magic !== kMagic) {
    const other = (magic & 0xffffff) === (kMagic & 0xffffff);
    throw malformed(
      other ? `frames of version 1` : 'frames of lowrank',
      other ? `version ${magic >>> 24}` : 'other bytes',
    );
  }
  const kind = kKinds[view.getUint8(4)];
  const operation = kOperations[view.getUint8(5)];
  if (!kind) throw malformed('a known kind', String(view.getUint8(4)));
  if (operation === undefined || (kind === 'data') !== (operation !== '')) {
    throw malformed('a known operation', String(view.getUint8(5)));
  }
  const sequence = view.getUint32(8, true);
  const total = view.getBigUint64(12, true);
  const length = view.getUint32(20, true);
  if (view.getUint16(6, true) !== 0 || view.getUint32(24, true) !== 0) {
    throw malformed('zeros in its unused bytes', 'others');
  }
  if (kind !== 'data' && (sequence !== 0 || total !== 0n)) {
    throw malformed(`no number of a call in ${kind}`, 'one');
  }
  if (total > BigInt(Number.MAX_SAFE_INTEGER)) throw malformed('a total below 2^53', `${total}`);
  if (length > kMostBytes) throw malformed(`at most ${kMostBytes} bytes`, `${length} bytes`);
  return { kind, operation, sequence, total: Number(total), length };
}

function malformed(expected: string, actual: string): CollectiveError {
  return new CollectiveError(
    'refused',
    undefined,
    `collective: a frame must have ${expected}, got ${actual}`,
  );
}

/** Cuts a stream of bytes into frames. */
export class FrameReader {
  readonly #header = new Uint8Array(kHeaderBytes);
  readonly #left: Uint8Array[] = [];
  #filled = 0;
  #current: FrameHeader | undefined;
  #payload: Uint8Array | undefined;

  /**
   * @param accept gives the memory of a payload, or undefined while nobody wants the frame: the reader then waits for
   * {@link FrameReader.push}; it throws for a frame that must not come
   * @param done called with each whole frame
   */
  constructor(
    readonly accept: (header: FrameHeader) => Uint8Array | undefined,
    readonly done: (header: FrameHeader, payload: Uint8Array) => void,
  ) {}

  /** Does a frame wait for memory? */
  get waiting(): boolean {
    return this.#current !== undefined && this.#payload === undefined;
  }

  /**
   * Takes bytes, or goes on with those that it has.
   * @throws ERR_COLLECTIVE for malformed frames; what `accept` and `done` throw
   */
  push(chunk?: Uint8Array): void {
    if (chunk !== undefined && chunk.length > 0) this.#left.push(chunk);
    for (;;) {
      if (this.#current === undefined) {
        this.#filled += this.#take(this.#header.subarray(this.#filled));
        if (this.#filled < kHeaderBytes) return;
        this.#current = decodeHeader(this.#header);
        this.#filled = 0;
      }
      if (this.#payload === undefined) {
        this.#payload = this.accept(this.#current);
        if (this.#payload === undefined) return;
      }
      this.#filled += this.#take(this.#payload.subarray(this.#filled));
      if (this.#filled < this.#payload.length) return;
      const [header, payload] = [this.#current, this.#payload];
      this.#current = undefined;
      this.#payload = undefined;
      this.#filled = 0;
      this.done(header, payload);
    }
  }

  #take(into: Uint8Array): number {
    let taken = 0;
    while (taken < into.length) {
      const [first] = this.#left;
      if (first === undefined) break;
      const count = Math.min(first.length, into.length - taken);
      into.set(first.subarray(0, count), taken);
      taken += count;
      if (count === first.length) this.#left.shift();
      else this.#left[0] = first.subarray(count);
    }
    return taken;
  }
}
