/**
 * Mutated safetensors files against an independent oracle.
 *
 * `LOWRANK_FUZZ_INPUTS` sets the number of inputs (default 20,000), `LOWRANK_FUZZ_SEED` the seed; a
 * failure prints both the seed and the input's number. `LOWRANK_FUZZ_DUMP` names a file that receives
 * every input with its verdict, for safetensors-differential.py.
 */

import fs from 'node:fs';
import { describe, expect, it } from 'vitest';
import { bytesOf, type RawTensor } from '../../lib/checkpoint/raw-tensor.js';
import { encodeSafetensors, readSafetensors } from '../../lib/checkpoint/safetensors.js';
import { LowrankError } from '../../lib/core/errors.js';
import { generator, kFuzzInputs as kInputs, kFuzzSeed as kSeed } from './fuzz.js';
import { entry, rawFile } from './raw-file.js';

const kDump = process.env.LOWRANK_FUZZ_DUMP;

const kBits: Record<string, bigint> = {
  F64: 64n,
  I64: 64n,
  U64: 64n,
  C64: 64n,
  F32: 32n,
  I32: 32n,
  U32: 32n,
  F16: 16n,
  BF16: 16n,
  I16: 16n,
  U16: 16n,
  I8: 8n,
  U8: 8n,
  BOOL: 8n,
  F8_E4M3: 8n,
  F8_E5M2: 8n,
  F8_E8M0: 8n,
  F4: 4n,
  F6_E2M3: 6n,
  F6_E3M2: 6n,
};

/** `expect` costs more than the reader does; this is called a million times. */
function check(holds: boolean): void {
  if (!holds) throw new Error('the oracle disagrees');
}

/**
 * Sizes recomputed in wide arithmetic, from the file alone: what the reader accepted must tile the
 * data section, byte for byte, and each tensor must hold exactly its bytes.
 */
function oracle(file: Uint8Array, tensors: ReadonlyMap<string, RawTensor>): void {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const length = view.getBigUint64(0, true);
  check(length <= BigInt(file.byteLength) - 8n);
  const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(
    file.subarray(8, 8 + Number(length)),
  );
  // Whatever the scanner accepts must be JSON too, with the same keys.
  const header = JSON.parse(text) as Record<string, unknown>;
  const keys = Object.keys(header).filter((key) => key !== '__metadata__');
  check(JSON.stringify([...tensors.keys()].sort()) === JSON.stringify(keys.sort()));
  let covered = 0n;
  for (const [name, tensor] of tensors) {
    const entry = header[name] as { dtype: string; shape: number[]; data_offsets: number[] };
    const [begin, end] = entry.data_offsets.map((x) => BigInt(x)) as [bigint, bigint];
    const elements = entry.shape.reduce((product, dim) => product * BigInt(dim), 1n);
    const bits = elements * (kBits[entry.dtype] as bigint);
    check(bits % 8n === 0n);
    check(end - begin === bits / 8n);
    check(tensor.dtype === entry.dtype);
    check(String(tensor.shape) === String(entry.shape));
    const data = file.subarray(8 + Number(length) + Number(begin), 8 + Number(length + end));
    check(Buffer.compare(bytesOf(tensor.data), data) === 0);
    covered += end - begin;
  }
  check(covered === BigInt(file.byteLength) - 8n - length);
}

const kTokens = [
  '{',
  '}',
  '[',
  ']',
  ',',
  ':',
  '"',
  '\\',
  ' ',
  '\0',
  '0',
  '-1',
  '1.0',
  '1e9',
  '9007199254740993',
  '18446744073709551616',
  '4294967296',
  'null',
  'true',
  '"__metadata__"',
  '"dtype"',
  '"shape"',
  '"data_offsets"',
  '"F32"',
  '"F4"',
  '"F64"',
  '\\u0061',
  '\\ud800',
  '[0,8]',
  '[8,16]',
  '[0]',
  '{}',
];

function seeds(): Uint8Array[] {
  return [
    encodeSafetensors({}),
    encodeSafetensors({ a: { dtype: 'F32', shape: [2], data: new Float32Array([1, 2]) } }),
    encodeSafetensors(
      {
        a: { dtype: 'BF16', shape: [3, 5], data: new Uint16Array(15).fill(7) },
        b: { dtype: 'I64', shape: [2], data: new BigInt64Array(2).fill(3n) },
        c: { dtype: 'BOOL', shape: [3], data: new Uint8Array(3).fill(1) },
        d: { dtype: 'F4', shape: [2, 2], data: new Uint8Array(2).fill(9) },
      },
      { format: 'pt' },
    ),
    rawFile(`{${entry('a', 'U8', '[0,3]', '[0,0]')},${entry('b', 'F16', '[]', '[0,2]')}}`, 2),
  ];
}

/** A structure-aware file: entries with chosen shapes and offsets, sizes at their boundaries. */
function build(random: (below: number) => number): Uint8Array {
  const dtypes = Object.keys(kBits);
  const dims = ['0', '1', '2', '3', '4', '8', '4294967296', '9007199254740991', '2.0', '-1'];
  const parts: string[] = [];
  let at = 0;
  for (let i = random(4); i >= 0; i--) {
    const dtype = dtypes[random(dtypes.length)] as string;
    const rank = random(4);
    const shape = Array.from({ length: rank }, () => dims[random(random(8) === 0 ? 10 : 6)]);
    const bits = shape.reduce((product, dim) => product * Number(dim), 1) * Number(kBits[dtype]);
    const size = Math.max(0, Math.min(65536, Math.ceil(bits / 8)));
    const slip = random(12) === 0 ? random(9) - 4 : 0;
    parts.push(
      entry(`t${random(40)}`, dtype, `[${shape.join(',')}]`, `[${at},${at + size + slip}]`),
    );
    at += size + (random(20) === 0 ? 1 : 0);
  }
  return rawFile(`{${parts.join(',')}}`, Math.min(at, 65536));
}

function mutate(file: Uint8Array, random: (below: number) => number): Uint8Array {
  let bytes = Uint8Array.from(file);
  for (let n = random(4); n >= 0; n--) {
    const at = random(bytes.length + 1);
    switch (random(5)) {
      case 0:
        if (at < bytes.length) bytes[at] = (bytes[at] as number) ^ (1 << random(8));
        break;
      case 1:
        bytes = bytes.slice(0, at);
        break;
      case 2: {
        const token = new TextEncoder().encode(kTokens[random(kTokens.length)]);
        const keep = random(2) === 0 ? 0 : token.length;
        bytes = new Uint8Array([...bytes.slice(0, at), ...token, ...bytes.slice(at + keep)]);
        break;
      }
      case 3:
        bytes = new Uint8Array([...bytes.slice(0, at), ...bytes.slice(at + 1 + random(8))]);
        break;
      default:
        if (bytes.length >= 8) {
          // Keep the length honest now and then, so that the header is reached.
          new DataView(bytes.buffer).setBigUint64(
            0,
            BigInt(Math.max(0, bytes.length - random(24))),
            true,
          );
        }
    }
  }
  return bytes;
}

describe('safetensors fuzzing', () => {
  it(`survives ${kInputs} inputs of seed ${kSeed}`, { timeout: 600_000 }, () => {
    const random = generator(kSeed);
    const corpus = seeds();
    let accepted = 0;
    let slowest_ms = 0;
    const dump = kDump === undefined ? undefined : fs.openSync(kDump, 'w');
    for (let input = 0; input < kInputs; input++) {
      const source = corpus[random(corpus.length)] as Uint8Array;
      const file = random(3) === 0 ? build(random) : mutate(source, random);
      const start = performance.now();
      let verdict: unknown = null;
      try {
        const { tensors } = readSafetensors(file);
        oracle(file, tensors);
        accepted++;
        verdict = [...tensors].map(([name, { dtype, shape, data }]) => [
          name,
          dtype,
          shape,
          Buffer.from(bytesOf(data)).toString('base64'),
        ]);
      } catch (error) {
        if (!(error instanceof LowrankError)) {
          throw new Error(
            `seed ${kSeed}, input ${input}: ${Buffer.from(file).toString('base64')}`,
            {
              cause: error,
            },
          );
        }
        check(error.code === 'ERR_FILE' || error.code === 'ERR_PICKLE_REFUSED');
      }
      slowest_ms = Math.max(slowest_ms, performance.now() - start);
      if (dump !== undefined) {
        const base64 = Buffer.from(file).toString('base64');
        fs.writeSync(dump, `${JSON.stringify({ file: base64, tensors: verdict })}\n`);
      }
    }
    expect(slowest_ms).toBeLessThan(500);
    // A fuzzer whose inputs are all refused at the door, or all accepted, tests nothing.
    expect(accepted).toBeGreaterThan(kInputs * 0.02);
    expect(accepted).toBeLessThan(kInputs * 0.9);
  });
});
