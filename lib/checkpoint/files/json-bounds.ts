/**
 * Limits for the content of a JSON file. `JSON.parse` turns one byte into up to a hundred bytes of memory (an array in
 * an array), and a key into an entry of a hash table. So what a file would cost is counted first, in one pass over its
 * bytes that takes no memory.
 */

import { LowrankError } from '../../core/errors.js';

/** The limits for one kind of file. */
export interface JsonBounds {
  /** Larger files are rejected unread. */
  readonly maxBytes: number;
  /** Maximum nesting of objects and arrays. */
  readonly maxDepth: number;
  /** Maximum number of keys in all objects. */
  readonly maxKeys: number;
  /** Maximum number of object members and array elements in the whole file. */
  readonly maxValues: number;
}

/** Real files stay far below these limits. The comments name the largest known ones. */
export const jsonBounds = {
  /**
   * config.json and adapter_config.json: kilobytes. An adapter config with 10,000 module names and a rank
   * for each has 1.5 MB and 20,000 values.
   */
  config: { maxBytes: 4 << 20, maxDepth: 32, maxKeys: 50_000, maxValues: 500_000 },
  /** The state of a weight that bitsandbytes quantised: a codebook of 256 numbers, and one for its scales. */
  quantState: { maxBytes: 64 << 10, maxDepth: 8, maxKeys: 1000, maxValues: 10_000 },
  /** model.safetensors.index.json: DeepSeek-V3 has 8.9 MB and 92,000 tensors, Kimi K2 about 140,000. */
  index: { maxBytes: 32 << 20, maxDepth: 8, maxKeys: 400_000, maxValues: 400_000 },
  /** tokenizer.json and tokenizer_config.json: Gemma 3 has 33 MB, 262,000 tokens and 515,000 merges. */
  tokenizer: { maxBytes: 64 << 20, maxDepth: 32, maxKeys: 1_000_000, maxValues: 4_000_000 },
  /** A line of training data: a long conversation with tools has 1 MB, 1,000 messages and schemas of 20 levels. */
  example: { maxBytes: 16 << 20, maxDepth: 64, maxKeys: 100_000, maxValues: 500_000 },
} as const satisfies Readonly<Record<string, JsonBounds>>;

const kQuote = 0x22;
const kBackslash = 0x5c;

/**
 * Requires that JSON of these bytes stays within the limits. The parser decides whether it is JSON at
 * all.
 *
 * @param refuse throws, with the violated requirement
 */
export function requireBounded(
  bytes: Uint8Array,
  bounds: JsonBounds,
  refuse: (what: string) => never,
): void {
  const { maxBytes, maxDepth, maxKeys, maxValues } = bounds;
  if (bytes.length > maxBytes) refuse(`must be at most ${maxBytes} bytes, got ${bytes.length}`);
  let [depth, deepest, keys, values] = [0, 0, 0, 0];
  for (let at = 0; at < bytes.length; at++) {
    switch (bytes[at]) {
      case kQuote:
        at = endOfString(bytes, at);
        break;
      case 0x5b: // [
      case 0x7b: // {
        if (++depth > deepest) deepest = depth;
        values++;
        break;
      case 0x5d: // ]
      case 0x7d: // }
        depth--;
        break;
      case 0x2c: // ,
        values++;
        break;
      case 0x3a: // :
        keys++;
        break;
    }
  }
  if (deepest > maxDepth) refuse(`must nest at most ${maxDepth} deep, got ${deepest}`);
  if (keys > maxKeys) refuse(`must hold at most ${maxKeys} keys, got ${keys}`);
  if (values > maxValues) refuse(`must hold at most ${maxValues} values, got ${values}`);
}

/** The end of the string that starts at `at`. */
function endOfString(bytes: Uint8Array, at: number): number {
  for (let end = at; ; ) {
    end = bytes.indexOf(kQuote, end + 1);
    if (end < 0) return bytes.length;
    let slashes = 0;
    while (bytes[end - 1 - slashes] === kBackslash) slashes++;
    if (slashes % 2 === 0) return end;
  }
}

/** The same, with the error for a file. */
export function requireBoundedFile(
  op: string,
  what: string,
  bytes: Uint8Array,
  bounds: JsonBounds,
  code: LowrankError['code'] = 'ERR_FILE',
): void {
  const refuse = (expected: string): never => {
    throw new LowrankError(code, `${op}: ${what} ${expected}`, { op });
  };
  requireBounded(bytes, bounds, refuse);
}
