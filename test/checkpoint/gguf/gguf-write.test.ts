/** The writer of GGUF files: layout, every kind of metadata, what it refuses, and that a file appears whole. */

import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  encodeGguf,
  GGUF_TYPES,
  type GgufContent,
  type GgufTensorSource,
  type GgufType,
  type GgufValue,
  ggufToFloat32,
  openGguf,
  permuteGgufRows,
  writeGguf,
} from '../../../lib/index.js';
import { codeOf, tempFolder } from '../raw-file.js';
import { array, key, rawGguf, tensor, text, u32, u64 } from './raw-gguf.js';

const bytesFrom = (values: ArrayBufferView) => [...new Uint8Array(values.buffer)];

/** Every kind of value, and its bytes. */
const values: Record<string, [GgufValue, number[]]> = {
  u8: [{ type: 'u8', value: 255 }, key('u8', 0, [255])],
  i8: [{ type: 'i8', value: -128 }, key('i8', 1, [128])],
  u16: [{ type: 'u16', value: 65535 }, key('u16', 2, [255, 255])],
  i16: [{ type: 'i16', value: -32768 }, key('i16', 3, [0, 128])],
  u32: [{ type: 'u32', value: 2 ** 32 - 1 }, key('u32', 4, [255, 255, 255, 255])],
  i32: [{ type: 'i32', value: -(2 ** 31) }, key('i32', 5, [0, 0, 0, 128])],
  f32: [{ type: 'f32', value: -0 }, key('f32', 6, [0, 0, 0, 128])],
  'f32 infinity': [{ type: 'f32', value: -Infinity }, key('f32 infinity', 6, [0, 0, 128, 255])],
  yes: [{ type: 'bool', value: true }, key('yes', 7, [1])],
  no: [{ type: 'bool', value: false }, key('no', 7, [0])],
  text: [{ type: 'string', value: 'a\0\ufeff漢😀' }, key('text', 8, text('a\0\ufeff漢😀'))],
  'BOM first': [{ type: 'string', value: '\ufeffx' }, key('BOM first', 8, text('\ufeffx'))],
  'not UTF-8': [
    { type: 'string', value: Uint8Array.of(0xe6, 0xbc) },
    key('not UTF-8', 8, text([0xe6, 0xbc])),
  ],
  'u64 safe': [{ type: 'u64', value: 2 ** 53 - 1 }, key('u64 safe', 10, u64(2 ** 53 - 1))],
  'u64 wide': [{ type: 'u64', value: 1n << 53n }, key('u64 wide', 10, u64(1n << 53n))],
  'u64 most': [
    { type: 'u64', value: (1n << 64n) - 1n },
    key('u64 most', 10, u64((1n << 64n) - 1n)),
  ],
  'i64 least': [
    { type: 'i64', value: -(1n << 63n) },
    key('i64 least', 11, bytesFrom(BigInt64Array.of(-(1n << 63n)))),
  ],
  'i64 safe': [{ type: 'i64', value: -5 }, key('i64 safe', 11, bytesFrom(BigInt64Array.of(-5n)))],
  f64: [{ type: 'f64', value: 0.1 }, key('f64', 12, bytesFrom(Float64Array.of(0.1)))],
  u8s: [
    { type: 'array', of: 'u8', value: Uint8Array.of(1, 2, 3) },
    key('u8s', 9, array(0, 3, [1, 2, 3])),
  ],
  i64s: [
    { type: 'array', of: 'i64', value: BigInt64Array.of(-1n, 1n << 60n) },
    key('i64s', 9, array(11, 2, bytesFrom(BigInt64Array.of(-1n, 1n << 60n)))),
  ],
  f32s: [
    { type: 'array', of: 'f32', value: Float32Array.of(0.5, NaN) },
    key('f32s', 9, array(6, 2, bytesFrom(Float32Array.of(0.5, NaN)))),
  ],
  bools: [
    { type: 'array', of: 'bool', value: [true, false] },
    key('bools', 9, array(7, 2, [1, 0])),
  ],
  texts: [
    { type: 'array', of: 'string', value: ['', 'é', Uint8Array.of(0xff)] },
    key('texts', 9, array(8, 3, [...text(''), ...text('é'), ...text([0xff])])),
  ],
  none: [{ type: 'array', of: 'string', value: [] }, key('none', 9, array(8, 0, []))],
  nested: [
    {
      type: 'array',
      of: 'array',
      value: [
        { type: 'array', of: 'u8', value: Uint8Array.of(7) },
        { type: 'array', of: 'array', value: [{ type: 'array', of: 'bool', value: [true] }] },
      ],
    },
    key('nested', 9, array(9, 2, [...array(0, 1, [7]), ...array(9, 1, array(7, 1, [1]))])),
  ],
};
const metadata = new Map(Object.entries(values).map(([name, [value]]) => [name, value]));
const everything = rawGguf({ keys: Object.values(values).map(([, bytes]) => bytes) });

describe('metadata', () => {
  it('every kind is written as its bytes, and read back as it was', () => {
    expect(encodeGguf({ metadata, tensors: {} })).toEqual(everything);
    const file = openGguf(everything);
    expect([...file.metadata]).toEqual([...metadata]);
    expect(encodeGguf({ metadata: file.metadata, tensors: {} })).toEqual(everything);
  });

  it.each<[string, unknown, string, RegExp]>([
    [
      'a number without its type',
      5,
      'ERR_TYPE',
      /metadata "k" must be a value with its type, got a/,
    ],
    [
      'an unknown type',
      { type: 'u128', value: 1 },
      'ERR_VALUE',
      /metadata "k": type must be one of/,
    ],
    ['no type', { value: 1 }, 'ERR_VALUE', /type must be one of u8, .*array, got undefined/],
    [
      'a text as a number',
      { type: 'u8', value: '1' },
      'ERR_TYPE',
      /must be an integer, got a string/,
    ],
    ['256 as u8', { type: 'u8', value: 256 }, 'ERR_VALUE', /from 0 to 255 of type u8, got 256/],
    ['-1 as u64', { type: 'u64', value: -1n }, 'ERR_VALUE', /from 0 to 18446744073709551615/],
    ['2^53 as a number', { type: 'u64', value: 2 ** 53 }, 'ERR_VALUE', /an integer from 0 to/],
    ['half', { type: 'i32', value: 0.5 }, 'ERR_VALUE', /an integer from .* of type i32, got 0.5/],
    ['a bigint as f32', { type: 'f32', value: 1n }, 'ERR_TYPE', /must be a number, got a bigint/],
    [
      '1e39 as f32',
      { type: 'f32', value: 1e39 },
      'ERR_VALUE',
      /a number that f32 holds, got 1e\+39/,
    ],
    ['1 as bool', { type: 'bool', value: 1 }, 'ERR_TYPE', /must be true or false, got a number/],
    ['half a pair', { type: 'string', value: '\ud800' }, 'ERR_VALUE', /well-formed Unicode/],
    [
      'a number as text',
      { type: 'string', value: 1 },
      'ERR_TYPE',
      /a string or its bytes, got a num/,
    ],
    [
      'an array of numbers that is no typed array',
      { type: 'array', of: 'u8', value: [1] },
      'ERR_TYPE',
      /must be a Uint8Array, got an array/,
    ],
    [
      'another typed array',
      { type: 'array', of: 'i8', value: Uint8Array.of(1) },
      'ERR_TYPE',
      /must be a Int8Array, got a Uint8Array/,
    ],
    [
      'an array in an array without its type',
      { type: 'array', of: 'array', value: [[1]] },
      'ERR_TYPE',
      /must be arrays of arrays, got an array/,
    ],
    ['text of an array', { type: 'array', of: 'string', value: 'abc' }, 'ERR_TYPE', /got a string/],
  ])('refuses %s', (_, value, code, words) => {
    const call = () => encodeGguf({ metadata: { k: value as GgufValue }, tensors: {} });
    expect(codeOf(call)).toBe(code);
    expect(call).toThrow(words);
  });

  it('refuses arrays that nest deeper than the reader reads', () => {
    let value: GgufValue = { type: 'array', of: 'u8', value: Uint8Array.of(1) };
    for (let depth = 1; depth < 8; depth++) value = { type: 'array', of: 'array', value: [value] };
    const content = (v: GgufValue): GgufContent => ({ metadata: { k: v }, tensors: {} });
    expect(openGguf(encodeGguf(content(value))).metadata.get('k')).toEqual(value);
    const deeper: GgufValue = { type: 'array', of: 'array', value: [value] };
    expect(codeOf(() => encodeGguf(content(deeper)))).toBe('ERR_VALUE');
  });

  it.each([
    ['', 'ERR_VALUE'],
    ['a\0', 'ERR_VALUE'],
    ['k'.repeat(65_536), 'ERR_VALUE'],
    ['\udc00', 'ERR_VALUE'],
  ])('refuses a key', (name, code) => {
    const bad = { [name]: { type: 'u8', value: 1 } as const };
    expect(codeOf(() => encodeGguf({ metadata: bad, tensors: {} }))).toBe(code);
  });
});

const source = (type: GgufType, shape: number[], data_bytes: number): GgufTensorSource => ({
  type,
  shape,
  data: Uint8Array.from({ length: data_bytes }, (_, i) => i + 1),
});

describe('tensors', () => {
  it('follow one another in the given order, padded to the alignment', () => {
    const tensors = { b: source('Q8_0', [1, 32], 34), a: source('F32', [2, 1, 3], 24) };
    const file = encodeGguf({
      version: 2,
      metadata: { 'general.alignment': { type: 'u32', value: 64 } },
      tensors,
    });
    const raw = rawGguf({
      version: 2,
      keys: [key('general.alignment', 4, u32(64))],
      tensors: [tensor('b', [32, 1], 8), tensor('a', [3, 1, 2], 0, 64)],
      alignment: 64,
      data_bytes: 128,
    });
    const start = raw.length - 128;
    raw.fill(0, start);
    raw.set(tensors.b.data as Uint8Array, start);
    raw.set(tensors.a.data as Uint8Array, start + 64);
    expect(file).toEqual(raw);
    const opened = openGguf(file);
    expect(opened.info('a')).toEqual({
      type: 'F32',
      shape: [2, 1, 3],
      begin: start + 64,
      byteLength: 24,
    });
    expect([opened.version, opened.alignment, opened.path]).toEqual([2, 64, '(bytes)']);
    expect(opened.has('a') && !opened.has('c') && opened.info('c') === undefined).toBe(true);
  });

  it.each(Object.entries(GGUF_TYPES))('%s: blocks of its size', (name, { elements, bytes }) => {
    const type = name as GgufType;
    const tensors = { t: source(type, [3, 2 * elements], 6 * bytes) };
    const file = openGguf(encodeGguf({ metadata: {}, tensors }));
    expect(file.read('t')).toEqual(tensors.t);
    const short = { t: source(type, [3, 2 * elements], 6 * bytes - 1) };
    expect(codeOf(() => encodeGguf({ metadata: {}, tensors: short }))).toBe('ERR_SHAPE');
  });

  it.each<[string, unknown, string, RegExp]>([
    [
      'no tensor',
      1,
      'ERR_TYPE',
      /tensor "t" must be a tensor of type, shape and data, got a number/,
    ],
    [
      'an unknown type',
      { type: 'IQ2_XS' },
      'ERR_DTYPE',
      /type must be one of F32, .*, got "IQ2_XS"/,
    ],
    ['no shape', { type: 'F32' }, 'ERR_TYPE', /shape must be an array of integers, got undefined/],
    [
      'a ragged row',
      source('Q4_K', [2, 128], 144),
      'ERR_SHAPE',
      /one with rows of a multiple of 256 elements in Q4_K, got 128/,
    ],
    ['5 dimensions', source('F32', [1, 1, 1, 1, 1], 4), 'ERR_SHAPE', /at most 4 dimensions, got 5/],
    ['a dimension of 0', source('F32', [0], 0), 'ERR_SHAPE', /dimensions of at least 1, got \[0\]/],
    [
      'no data',
      { type: 'F32', shape: [1] },
      'ERR_DTYPE',
      /data must be a typed array, got undefined/,
    ],
    [
      'too much data',
      source('F16', [3], 8),
      'ERR_SHAPE',
      /must be 6 bytes for F16\[3\], got 8 bytes/,
    ],
  ])('refuses %s', (_, bad, code, words) => {
    const call = () => encodeGguf({ metadata: {}, tensors: { t: bad as GgufTensorSource } });
    expect(codeOf(call)).toBe(code);
    expect(call).toThrow(words);
  });

  it('refuses what is no content at all', () => {
    expect(codeOf(() => encodeGguf(null as never))).toBe('ERR_TYPE');
    expect(codeOf(() => encodeGguf({ metadata: [], tensors: {} } as never))).toBe('ERR_TYPE');
    expect(codeOf(() => encodeGguf({ metadata: {} } as never))).toBe('ERR_TYPE');
    const version = { version: 1, metadata: {}, tensors: {} };
    expect(codeOf(() => encodeGguf(version as never))).toBe('ERR_VALUE');
    const alignment = { 'general.alignment': { type: 'u32', value: 24 } } as const;
    expect(codeOf(() => encodeGguf({ metadata: alignment, tensors: {} }))).toBe('ERR_VALUE');
    const name = { ['n'.repeat(256)]: source('F32', [1], 4) };
    expect(codeOf(() => encodeGguf({ metadata: {}, tensors: name }))).toBe('ERR_VALUE');
  });
});

describe('writeGguf', () => {
  it('replaces a file whole, asking for data as it is written', () => {
    const file = path.join(tempFolder(), 'model.gguf');
    const asked: string[] = [];
    const lazy = (name: string): GgufTensorSource => ({
      ...source('F32', [2], 8),
      data: () => {
        asked.push(name);
        return Float32Array.of(1, 2);
      },
    });
    writeGguf(file, { metadata, tensors: { a: lazy('a'), b: lazy('b') } });
    expect(asked).toEqual(['a', 'b']);
    const opened = openGguf(file);
    expect(ggufToFloat32(opened.read('b'))).toEqual(Float32Array.of(1, 2));
    // Onto itself, with one more key.
    const named = new Map(opened.metadata).set('n', { type: 'string', value: 'x' });
    writeGguf(file, { metadata: named, tensors: opened.tensors() });
    const again = openGguf(file);
    expect([...again.metadata.keys()].at(-1)).toBe('n');
    expect(again.read('a').data).toEqual(new Uint8Array(Float32Array.of(1, 2).buffer));
  });

  it('keeps the old file if a tensor fails on the way', () => {
    const folder = tempFolder();
    const file = path.join(folder, 'model.gguf');
    fs.writeFileSync(file, 'old');
    const bad = { ...source('F32', [2], 8), data: () => new Uint8Array(7) };
    const tensors = { a: source('F32', [2], 8), b: bad };
    expect(codeOf(() => writeGguf(file, { metadata: {}, tensors }))).toBe('ERR_SHAPE');
    expect(fs.readFileSync(file, 'utf8')).toBe('old');
    expect(fs.readdirSync(folder)).toEqual(['model.gguf']);
    expect(codeOf(() => writeGguf(3 as never, { metadata: {}, tensors: {} }))).toBe('ERR_TYPE');
    const nowhere = path.join(folder, 'none', 'model.gguf');
    expect(codeOf(() => writeGguf(nowhere, { metadata: {}, tensors: {} }))).toBe(
      'ERR_FILE_NOT_FOUND',
    );
  });
});

describe('permuteGgufRows', () => {
  it('row h · D + 2i + j of the file is row h · D + j · D/2 + i of the folder', () => {
    // Two heads of six rows of one byte, numbered in the order of the folder.
    const hf = Uint8Array.from({ length: 12 }, (_, row) => row);
    const gguf = permuteGgufRows(hf, { rows: 12, heads: 2, to: 'gguf' });
    expect([...gguf]).toEqual([0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    expect(permuteGgufRows(gguf, { rows: 12, heads: 2, to: 'hf' })).toEqual(hf);
  });

  it.each<[string, unknown[], string]>([
    ['no bytes', [[1], { rows: 2, heads: 1, to: 'hf' }], 'ERR_TYPE'],
    ['no options', [new Uint8Array(2)], 'ERR_TYPE'],
    ['rows as text', [new Uint8Array(2), { rows: '2', heads: 1, to: 'hf' }], 'ERR_TYPE'],
    ['no head', [new Uint8Array(2), { rows: 2, heads: 0, to: 'hf' }], 'ERR_VALUE'],
    ['another side', [new Uint8Array(2), { rows: 2, heads: 1, to: 'torch' }], 'ERR_VALUE'],
    ['heads of odd size', [new Uint8Array(6), { rows: 6, heads: 2, to: 'hf' }], 'ERR_SHAPE'],
    ['a ragged row', [new Uint8Array(7), { rows: 4, heads: 2, to: 'hf' }], 'ERR_SHAPE'],
  ])('refuses %s', (_, args, code) => {
    expect(codeOf(() => (permuteGgufRows as (...a: unknown[]) => unknown)(...args))).toBe(code);
  });
});
