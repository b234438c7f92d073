/**
 * Turns text into training sequences.
 *
 * Documents are tokenised one by one, each followed by the end-of-text token, and concatenated. The
 * stream is cut into sequences of T inputs, each with the next token as its target. The last tenth
 * is held out. No token is a target twice.
 */

import { createHash } from 'node:crypto';
import { readSmallFile } from '../checkpoint/files/file-access.js';
import { fail, LowrankError, wrongType } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { checkInteger } from '../core/validate.js';
import type { Batch, Sequences, TrainingData } from './sequences.js';
import type { TextTokenizer } from './tokenizer.js';

/** Of a file of data. */
export const kMaxTextBytes = 256 << 20;
const kHeldOutShare = 0.1;

/** The text, and its identity in a checkpoint. */
export interface TextSource {
  readonly documents: readonly string[];
  readonly bytes: number;
  /** Hash of the files' bytes, one after another. */
  readonly sha256: string;
}

/**
 * Reads text files, in order.
 *
 * @param separator text between two documents of one file
 * @throws LowrankError `ERR_FILE_NOT_FOUND`, `ERR_FILE` (not UTF-8, too large), `ERR_PATH`
 */
export function readText(op: string, files: readonly string[], separator: string): TextSource {
  const hash = createHash('sha256');
  const documents: string[] = [];
  let bytes = 0;
  for (const file of files) {
    const content = readSmallFile(op, file, kMaxTextBytes);
    hash.update(content);
    bytes += content.length;
    let text: string;
    try {
      text = new TextDecoder('utf-8', { fatal: true }).decode(content);
    } catch (error) {
      const message = `${op}: ${printable(file)} must be UTF-8 text, got other bytes`;
      throw new LowrankError('ERR_FILE', message, { op, cause: error });
    }
    text = text.replace(/\r\n/g, '\n');
    const parts = separator === '' ? [text] : text.split(separator);
    for (const part of parts) {
      const trimmed = part.trim();
      if (trimmed !== '') documents.push(trimmed);
    }
  }
  return { documents, bytes, sha256: hash.digest('hex') };
}

/**
 * Sequences of T tokens with their targets, cut from one stream.
 * @example
 * const train = new SequenceSet(Int32Array.from([5, 3, 8, 1, 7]), 2); // 5 3 and 8 1, with the targets 3 8 and 1 7
 */
export class SequenceSet implements Sequences {
  readonly whole = true;

  /** @throws ERR_TYPE · ERR_VALUE */
  constructor(
    /** count · T + 1 tokens. */
    private readonly tokens: Int32Array,
    readonly T: number,
  ) {
    const op = 'SequenceSet';
    if (!(tokens instanceof Int32Array)) throw wrongType(op, 'tokens', 'an Int32Array', tokens);
    checkInteger(op, 'T', T, 1, 2 ** 31 - 1);
    if (tokens.length > T && (tokens.length - 1) % T === 0) return;
    fail('ERR_VALUE', op, 'tokens', `a multiple of T (${T}), and one more`, String(tokens.length));
  }

  get count(): number {
    return (this.tokens.length - 1) / this.T;
  }

  get learned(): number {
    return this.count * this.T;
  }

  /** Inputs and targets of the sequences with the given indices, [indices.length, T] each. */
  batch(indices: ArrayLike<number>): Batch {
    const { T } = this;
    const ids = new Int32Array(indices.length * T);
    const targets = new Int32Array(indices.length * T);
    for (let row = 0; row < indices.length; row++) {
      const start = (indices[row] as number) * T;
      ids.set(this.tokens.subarray(start, start + T), row * T);
      targets.set(this.tokens.subarray(start + 1, start + T + 1), row * T);
    }
    return { ids, targets };
  }
}

/**
 * Tokenises text and packs it into sequences.
 *
 * @param T sequence length
 * @param onDocument called now and then, even without visible progress; if it throws, the work ends
 * @param heldOut another text to evaluate on; without it, the last tenth is held out
 * @throws LowrankError `ERR_FILE` as {@link TextTokenizer.encodeAll} · `ERR_VALUE` if the text has too few tokens for one sequence to train on
 * and one to hold out
 */
export async function packText(
  op: string,
  source: TextSource,
  tokenizer: TextTokenizer,
  T: number,
  onDocument: (done: number, total: number) => void | Promise<void> = () => {},
  heldOut?: TextSource,
): Promise<TrainingData> {
  const stream = await streamOf(source, tokenizer, onDocument);
  const require = (least: number, tokens: number, what: string): number => {
    const count = Math.floor((tokens - 1) / T);
    if (count >= least) return count;
    const text =
      `${op}: the text must have at least ${least * T + 1} tokens (${what}), got ${tokens}. ` +
      'Give a longer text, or a smaller --seq-len';
    throw new LowrankError('ERR_VALUE', text, { op });
  };
  const whole = (tokens: Int32Array, count: number) =>
    new SequenceSet(tokens.slice(0, count * T + 1), T);
  if (heldOut !== undefined) {
    const other = await streamOf(heldOut, tokenizer, onDocument);
    const one = `one sequence of ${T}`;
    return {
      train: whole(stream, require(1, stream.length, one)),
      heldOut: whole(other, require(1, other.length, `${one}, of --eval-data`)),
      tokens: stream.length + other.length,
    };
  }
  const why = `one sequence of ${T} to train on and one to hold out`;
  const count = require(2, stream.length, why);
  const cut = count - heldOutCount(count);
  return {
    train: whole(stream, cut),
    heldOut: whole(stream.subarray(cut * T), count - cut),
    tokens: stream.length,
  };
}

/** How many of a number of sequences or examples are held out: a tenth. */
export const heldOutCount = (count: number): number =>
  Math.max(1, Math.round(count * kHeldOutShare));

/** The tokens of all documents, each with the end-of-text token behind it. */
async function streamOf(
  { documents }: TextSource,
  tokenizer: TextTokenizer,
  onDocument: (done: number, total: number) => void | Promise<void>,
): Promise<Int32Array> {
  const parts: Int32Array[] = [];
  const end = tokenizer.eosId === undefined ? [] : [tokenizer.eosId];
  const keep = (ids: Int32Array, lengths: readonly number[]) => {
    let at = 0;
    for (const length of lengths) {
      parts.push(ids.subarray(at, at + length), Int32Array.from(end));
      at += length;
    }
  };
  const report = (done: number) => onDocument(done, documents.length);
  await tokenizer.encodeAll(documents, 'document', keep, report);
  return joined(parts);
}

/** Arrays one after another. */
export function joined(parts: readonly Int32Array[]): Int32Array {
  const all = new Int32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
