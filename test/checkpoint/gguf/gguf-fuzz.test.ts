/**
 * Mutated GGUF files against an independent account of their layout, with the machinery of the safetensors fuzzer:
 * `LOWRANK_FUZZ_INPUTS` and `LOWRANK_FUZZ_SEED` set the inputs and the seed, and a failure prints both.
 */

import { describe, expect, it } from 'vitest';
import { LowrankError } from '../../../lib/core/errors.js';
import { encodeGguf, GGUF_TYPES, type GgufFile, openGguf } from '../../../lib/index.js';
import { generator, kFuzzInputs, kFuzzSeed } from '../fuzz.js';
import { array, key, rawGguf, tensor, text, u32, u64 } from './raw-gguf.js';

/** `expect` costs more than the reader does. */
function check(holds: boolean, what: string): void {
  if (!holds) throw new Error(`the oracle disagrees: ${what}`);
}

const kBits: Readonly<Record<string, bigint>> = Object.fromEntries(
  Object.entries(GGUF_TYPES).map(([type, { bytes, elements }]) => [
    type,
    BigInt((bytes * 8 * 256) / elements),
  ]),
);

/** Sizes recomputed in wide arithmetic: tensors lie inside the file, one behind the other. */
function oracle(file: Uint8Array, opened: GgufFile): void {
  let reached = 0n;
  for (const name of opened.names()) {
    const info = opened.info(name);
    if (info === undefined) throw new Error(name);
    const elements = info.shape.reduce((product, dim) => product * BigInt(dim), 1n);
    check(elements > 0n && info.shape.length <= 4, 'shape');
    const bytes = (elements * (kBits[info.type] as bigint)) / 256n / 8n;
    check(BigInt(info.byteLength) === bytes, 'size');
    check(BigInt(info.begin) >= reached, 'overlap');
    reached = BigInt(info.begin) + bytes;
    check(reached <= BigInt(file.length), 'end');
    const data = file.subarray(info.begin, info.begin + info.byteLength);
    check(Buffer.compare(opened.read(name).data, data) === 0, 'data');
  }
  const { version, metadata } = opened;
  const again = encodeGguf({ version, metadata, tensors: opened.tensors() });
  check(again.length - file.length < opened.alignment && again.length >= file.length, 'length');
  // What differs is padding, which the writer fills with zeros, or the payload of a NaN.
  const differs = file.findIndex((byte, i) => byte !== again[i]);
  if (differs < 0) return;
  const reread = openGguf(again);
  check(String([...reread.metadata.keys()]) === String([...metadata.keys()]), 'keys');
  for (const name of opened.names()) {
    check(Buffer.compare(reread.read(name).data, opened.read(name).data) === 0, 'data again');
  }
}

function seeds(): Uint8Array[] {
  const one = tensor('a', [8], 0);
  return [
    rawGguf({}),
    rawGguf({ tensors: [one], data_bytes: 32 }),
    rawGguf({
      version: 2,
      keys: [key('general.alignment', 4, u32(8)), key('k', 9, array(9, 1, array(8, 1, text('x'))))],
      tensors: [tensor('q', [64, 2], 8), tensor('s', [], 0, 136), tensor('k', [256], 12, 144)],
      alignment: 8,
      data_bytes: 288,
    }),
    rawGguf({
      keys: [
        key('a', 8, text('llama')),
        key('b', 7, [1]),
        key('c', 10, u64(1n << 60n)),
        key('d', 9, array(4, 3, [u32(1), u32(2), u32(3)].flat())),
      ],
      tensors: [one, tensor('b', [2, 3, 4, 1], 1, 32)],
      data_bytes: 96,
    }),
  ];
}

const kWords = [
  ...[0, 1, 2, 7, 8, 9, 12, 13, 32, 64, 255, 65_536, 2 ** 31, 2 ** 32 - 1].map(u32),
  ...[0n, 1n, 8n, 32n, 1n << 32n, 1n << 53n, 1n << 60n, (1n << 64n) - 1n].map(u64),
  text('general.alignment'),
  text('a'),
  [...text('general.alignment'), ...u32(4), ...u32(16)],
  array(9, 1, []),
];

function mutate(file: Uint8Array, random: (below: number) => number): Uint8Array {
  let bytes = Uint8Array.from(file);
  for (let n = random(3); n >= 0; n--) {
    // Fields of the header lie at the start.
    const at = random(2) === 0 ? random(Math.min(bytes.length, 120) + 1) : random(bytes.length + 1);
    const word = kWords[random(kWords.length)] as number[];
    switch (random(5)) {
      case 0:
        if (at < bytes.length) bytes[at] = (bytes[at] as number) ^ (1 << random(8));
        break;
      case 1:
        bytes = bytes.slice(0, at);
        break;
      case 2:
        bytes = new Uint8Array([...bytes.slice(0, at), ...word, ...bytes.slice(at + word.length)]);
        break;
      case 3:
        bytes = new Uint8Array([...bytes.slice(0, at), ...word, ...bytes.slice(at)]);
        break;
      default:
        bytes = new Uint8Array([...bytes.slice(0, at), ...bytes.slice(at + 1 + random(8))]);
    }
  }
  return bytes;
}

/** A structure-aware file: fields of their kinds, sizes at their boundaries. */
function build(random: (below: number) => number): Uint8Array {
  const types = Object.values(GGUF_TYPES);
  const tensors: number[][] = [];
  let at = 0;
  for (let i = random(4); i > 0; i--) {
    const { id, elements, bytes } = types[random(types.length)] as (typeof types)[number];
    const dims = [
      elements * (1 + random(3)),
      ...Array.from({ length: random(3) }, () => 1 + random(3)),
    ];
    if (random(12) === 0)
      dims[random(dims.length)] = [0, 1, 2 ** 32, 2 ** 53 - 1][random(4)] as number;
    const slip = random(16) === 0 ? 32 * random(3) : 0;
    const size = (dims.reduce((a, b) => a * b, 1) / elements) * bytes;
    tensors.push(tensor(`t${random(20)}`, dims, random(20) === 0 ? random(64) : id, at + slip));
    at += Math.ceil(Math.min(size, 65_536) / 32) * 32;
  }
  const keys = Array.from({ length: random(3) }, (_, i) =>
    random(2) === 0
      ? key(`k${i}`, random(random(8) === 0 ? 15 : 8), [random(2)])
      : key(`k${i}`, 9, array(random(10), random(3), [random(2), 0, 0, 0])),
  );
  return rawGguf({ keys, tensors, data_bytes: Math.max(0, at - 32 * random(2)) });
}

describe('GGUF fuzzing', () => {
  it(`survives ${kFuzzInputs} inputs of seed ${kFuzzSeed}`, { timeout: 600_000 }, () => {
    const random = generator(kFuzzSeed);
    const corpus = seeds();
    let accepted = 0;
    let slowest_ms = 0;
    for (let input = 0; input < kFuzzInputs; input++) {
      const source = corpus[random(corpus.length)] as Uint8Array;
      const file = random(3) === 0 ? build(random) : mutate(source, random);
      const start = performance.now();
      try {
        oracle(file, openGguf(file));
        accepted++;
      } catch (error) {
        const typed = error instanceof LowrankError && error.op === 'openGguf';
        if (!typed || (error.code !== 'ERR_FILE' && error.code !== 'ERR_UNSUPPORTED')) {
          const base64 = Buffer.from(file).toString('base64');
          throw new Error(`seed ${kFuzzSeed}, input ${input}: ${base64}`, { cause: error });
        }
      }
      slowest_ms = Math.max(slowest_ms, performance.now() - start);
    }
    // Beside other work on the machine; a loop over a count of the file would take minutes.
    expect(slowest_ms).toBeLessThan(2000);
    // A fuzzer whose inputs are all refused at the door, or all accepted, tests nothing.
    expect(accepted).toBeGreaterThan(kFuzzInputs * 0.02);
    expect(accepted).toBeLessThan(kFuzzInputs * 0.9);
  });
});
