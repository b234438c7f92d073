import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import {
  encodeSafetensors,
  openSafetensors,
  readSafetensors,
} from '../../lib/checkpoint/safetensors.js';
import { codeOf, entry, rawFile, tempFolder } from './raw-file.js';

const kGood = entry('a', 'F32', '[2]', '[0,8]');
const utf8 = (text: string) => new TextEncoder().encode(text);
const withBytes = (before: string, bytes: number[], after: string) =>
  new Uint8Array([...utf8(before), ...bytes, ...utf8(after)]);
const nameBytes = (bytes: number[]) =>
  rawFile(withBytes('{"', bytes, '":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'));
const shape = (text: string, data_bytes = 8) =>
  rawFile(`{${entry('a', 'F32', text, `[0,${data_bytes}]`)}}`, data_bytes);
const offsets = (text: string, data_bytes = 8) =>
  rawFile(`{${entry('a', 'F32', '[2]', text)}}`, data_bytes);
const two = (a: string, b: string, data_bytes = 16) =>
  rawFile(`{${entry('a', 'F32', '[2]', a)},${entry('b', 'F32', '[2]', b)}}`, data_bytes);
const trailing = (bytes: number[]) => new Uint8Array([...rawFile(`{${kGood}}`, 8), ...bytes]);

/** Class -> a file of it; every one must be refused with ERR_FILE. */
const malformed: Record<string, () => Uint8Array> = {
  empty: () => new Uint8Array(0),
  'shorter than 8 bytes': () => new Uint8Array(7),
  'only the length bytes': () => new Uint8Array([2, 0, 0, 0, 0, 0, 0, 0]),
  'header length 0': () => rawFile(`{${kGood}}`, 8, 0n),
  'header length 2^63': () => rawFile(`{${kGood}}`, 8, 1n << 63n),
  'header length 2^64 - 1': () => rawFile(`{${kGood}}`, 8, (1n << 64n) - 1n),
  'header longer than the file': () => rawFile(`{${kGood}}`, 8, 1000n),
  'header longer than the cap': () => rawFile(`{}${' '.repeat(25_000_000)}`),
  'first byte is not {': () => rawFile(`x{${kGood}}`, 8),
  'leading space': () => rawFile(` {${kGood}}`, 8),
  'byte order mark': () => rawFile(`\ufeff{${kGood}}`, 8),
  'NUL in the header': () => rawFile(`{${kGood}\0}`, 8),
  'NUL behind the header': () => rawFile(`{${kGood}}\0\0`, 8),
  'NUL in a name': () => nameBytes([0x61, 0x00]),
  'invalid UTF-8': () => nameBytes([0xff, 0xfe]),
  'overlong UTF-8': () => nameBytes([0xc0, 0xaf]),
  'surrogate in UTF-8': () => nameBytes([0xed, 0xa0, 0x80]),
  'lone surrogate escape': () => nameBytes([...utf8('\\ud800')]),
  'unknown escape': () => nameBytes([...utf8('\\x41')]),
  'not JSON': () => rawFile('{hello}'),
  'unterminated string': () => rawFile('{"a'),
  'unterminated escape': () => rawFile('{"a\\'),
  'trailing comma': () => rawFile(`{${kGood},}`, 8),
  'two objects': () => rawFile(`{${kGood}}{}`, 8),
  'array at the top': () => rawFile('[]'),
  'null at the top': () => rawFile('null'),
  'number at the top': () => rawFile('12345'),
  'tensor is null': () => rawFile('{"a":null}'),
  'duplicate tensor name': () => rawFile(`{${kGood},${kGood}}`, 8),
  'duplicate name by an escape': () =>
    rawFile(`{${kGood},"\\u0061":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}`, 16),
  'duplicate __metadata__': () => rawFile(`{"__metadata__":{},"__metadata__":{},${kGood}}`, 8),
  'duplicate metadata key': () => rawFile(`{"__metadata__":{"k":"1","k":"2"},${kGood}}`, 8),
  'metadata value is a number': () => rawFile(`{"__metadata__":{"k":1},${kGood}}`, 8),
  'metadata value is an object': () => rawFile(`{"__metadata__":{"k":{}},${kGood}}`, 8),
  'metadata is null': () => rawFile(`{"__metadata__":null,${kGood}}`, 8),
  'name of 1 MB': () => rawFile(`{${entry('n'.repeat(1e6), 'F32', '[2]', '[0,8]')}}`, 8),
  'unknown dtype': () => rawFile(`{${entry('a', 'F128', '[2]', '[0,8]')}}`, 8),
  'dtype __proto__': () => rawFile(`{${entry('a', '__proto__', '[2]', '[0,8]')}}`, 8),
  'dtype constructor': () => rawFile(`{${entry('a', 'constructor', '[2]', '[0,8]')}}`, 8),
  'lower-case dtype': () => rawFile(`{${entry('a', 'f32', '[2]', '[0,8]')}}`, 8),
  'two dtypes': () =>
    rawFile('{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', 8),
  'two shapes': () =>
    rawFile('{"a":{"dtype":"F32","shape":[3],"shape":[2],"data_offsets":[0,8]}}', 8),
  'two data_offsets': () =>
    rawFile('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9],"data_offsets":[0,8]}}', 8),
  'missing dtype': () => rawFile('{"a":{"shape":[2],"data_offsets":[0,8]}}', 8),
  'missing shape': () => rawFile('{"a":{"dtype":"F32","data_offsets":[0,8]}}', 8),
  'missing data_offsets': () => rawFile('{"a":{"dtype":"F32","shape":[2]}}', 8),
  'extra key': () => rawFile('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":"y"}}', 8),
  'negative dimension': () => shape('[-2]'),
  'minus zero': () => shape('[-0]', 0),
  'fractional dimension': () => shape('[1.5]'),
  'dimension 1.0': () => shape('[2.0]'),
  'dimension 2e0': () => shape('[2e0]'),
  'dimension 1e400': () => shape('[1e400]'),
  'dimension 02': () => shape('[02]'),
  'dimension as text': () => shape('["2"]'),
  'dimension of a million digits': () => shape(`[${'9'.repeat(1e6)}]`),
  'dimension above 2^53': () => shape('[9007199254740993]'),
  'product wraps 2^63': () => shape('[4294967296,2147483649]'),
  'product wraps to 0': () => shape('[4294967296,4294967296]', 0),
  'product wraps to 8 bytes': () => shape('[2305843009213693952,2,1]'),
  '[0, huge]': () => shape('[0,18446744073709551615]', 0),
  '[0, huge, huge]': () => shape('[0,4503599627370496,4503599627370496]', 0),
  'rank 17': () => shape(`[2${',1'.repeat(16)}]`),
  'shape is a number': () => shape('2'),
  'shape nested': () => shape('[[2]]'),
  'shape unterminated': () => rawFile('{"a":{"dtype":"F32","shape":[2'),
  'reversed offsets': () => offsets('[8,0]'),
  'negative offset': () => offsets('[-8,0]'),
  'fractional offset': () => offsets('[0,8.5]'),
  'one offset': () => offsets('[8]'),
  'three offsets': () => offsets('[0,8,8]'),
  'offset past the end': () => offsets('[0,8]', 4),
  'offset of 2^53': () => offsets('[0,9007199254740992]'),
  'span smaller than the shape': () => offsets('[0,4]', 4),
  'span larger than the shape': () => offsets('[0,12]', 12),
  overlap: () => two('[0,8]', '[4,12]', 12),
  'two tensors on the same bytes': () => two('[0,8]', '[0,8]', 8),
  hole: () => two('[0,8]', '[12,20]', 20),
  'hole at the start': () => offsets('[4,12]', 12),
  'empty tensor inside another': () =>
    rawFile(`{${kGood},${entry('b', 'F32', '[0]', '[4,4]')}}`, 8),
  'trailing zip': () => trailing([0x50, 0x4b, 3, 4, 0, 0, 0, 0]),
  'trailing PDF': () => trailing([...utf8('%PDF-1.7')]),
  'trailing ELF': () => trailing([0x7f, 0x45, 0x4c, 0x46]),
  'sub-byte dtype off a byte edge': () => rawFile(`{${entry('a', 'F4', '[3]', '[0,1]')}}`, 1),
  '6-bit dtype off a byte edge': () => rawFile(`{${entry('a', 'F6_E2M3', '[2]', '[0,2]')}}`, 2),
  'a million opening brackets': () => rawFile(`{"a":${'['.repeat(1e6)}`),
  'a million opening braces': () => rawFile(`{"a":${'{"a":'.repeat(2e5)}`),
};

/** Odd, but valid: name, file, and the one tensor name it must give. */
const valid: Record<string, [() => Uint8Array, string]> = {
  'name __proto__': [
    () => rawFile(`{${entry('__proto__', 'F32', '[2]', '[0,8]')}}`, 8),
    '__proto__',
  ],
  'name constructor': [
    () => rawFile(`{${entry('constructor', 'F32', '[2]', '[0,8]')}}`, 8),
    'constructor',
  ],
  'empty name': [() => rawFile(`{${entry('', 'F32', '[2]', '[0,8]')}}`, 8), ''],
  'terminal escapes in a name': [
    () => rawFile(`{${entry('\u001b[2J\u202e', 'F32', '[2]', '[0,8]')}}`, 8),
    '\u001b[2J\u202e',
  ],
  'astral name': [() => rawFile(`{${entry('\u{1f600}', 'F32', '[2]', '[0,8]')}}`, 8), '\u{1f600}'],
  'escaped pair': [
    () => rawFile('{"\\ud83d\\ude00":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    '\u{1f600}',
  ],
  scalar: [() => rawFile(`{${entry('s', 'F32', '[]', '[0,4]')}}`, 4), 's'],
  'empty tensor': [() => rawFile(`{${entry('e', 'F32', '[0,5]', '[0,0]')}}`), 'e'],
  'rank 16': [() => rawFile(`{${entry('r', 'F32', `[2${',1'.repeat(15)}]`, '[0,8]')}}`, 8), 'r'],
  'white space between tokens': [
    () => rawFile(`{\n\t"w" : {"dtype" : "F32", "shape" : [ 2 ],\r"data_offsets":[0 ,8]}  } \n`, 8),
    'w',
  ],
  'keys in another order': [
    () => rawFile('{"k":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}', 8),
    'k',
  ],
  'header length that begins like a pickle': [
    () => rawFile(`{${entry('p', 'F32', '[2]', '[0,8]')}}`.padEnd(0x0280), 8),
    'p',
  ],
};

describe('hostile safetensors', () => {
  it.each(Object.keys(malformed))('refuses from bytes: %s', (name) => {
    const file = malformed[name]?.() as Uint8Array;
    const before = process.memoryUsage().arrayBuffers;
    const start = performance.now();
    expect(codeOf(() => readSafetensors(file))).toBe('ERR_FILE');
    expect(performance.now() - start).toBeLessThan(1000);
    const grown = process.memoryUsage().arrayBuffers - before;
    expect(grown).toBeLessThan(16 * file.length + 8e6);
  });

  it('refuses the same from a file, by both ways of reading', () => {
    const file = path.join(tempFolder(), 'model.safetensors');
    for (const [name, build] of Object.entries(malformed)) {
      fs.writeFileSync(file, build());
      expect([name, codeOf(() => readSafetensors(file))]).toEqual([name, 'ERR_FILE']);
      expect([name, codeOf(() => openSafetensors(file))]).toEqual([name, 'ERR_FILE']);
    }
  });

  it.each(Object.keys(valid))('accepts: %s', (name) => {
    const [build, tensor] = valid[name] as [() => Uint8Array, string];
    const { tensors } = readSafetensors(build());
    expect([...tensors.keys()]).toEqual([tensor]);
    expect(Object.getPrototypeOf(tensors)).toBe(Map.prototype);
  });

  it('takes a header above the default cap when asked, never above the format cap', () => {
    const file = rawFile(`{}${' '.repeat(25_000_000)}`);
    expect(readSafetensors(file, { maxHeaderBytes: 30e6 }).tensors.size).toBe(0);
    const huge = rawFile(`{}${' '.repeat(100_000_000)}`);
    expect(codeOf(() => readSafetensors(huge, { maxHeaderBytes: 1e12 }))).toBe('ERR_FILE');
  });

  it('parses the most tensors in bounded time, and refuses many more before it parses any', () => {
    const fileOf = (tensors: number, named: (i: number) => string) => {
      const parts: string[] = [];
      for (let i = 0; i < tensors; i++) parts.push(entry(named(i), 'U8', '[0]', '[0,0]'));
      return rawFile(`{${parts.join(',')}}`);
    };
    const cpuTime = (call: () => void) => {
      const before = process.cpuUsage();
      call();
      const { user, system } = process.cpuUsage(before);
      return (user + system) / 1000;
    };
    const most = fileOf(200_000, (i) => `t${i}`);
    expect(most.length).toBeGreaterThan(10e6);
    const read = () => expect(readSafetensors(most, { names: ['t7'] }).tensors.size).toBe(1);
    expect(cpuTime(read)).toBeLessThan(5000);
    const bomb = fileOf(420_000, () => 't');
    expect(bomb.length).toBeGreaterThan(20e6);
    // A name stands twice, which a parser would find first.
    const text = 'header must hold at most 810000 keys, got 1680000';
    expect(cpuTime(() => expect(() => readSafetensors(bomb)).toThrow(text))).toBeLessThan(500);
  });

  it.each([
    ['protocol 2', [0x80, 0x02, 0x7d, 0x71, 0x00, 0x2e]],
    ['protocol 4', [0x80, 0x04, 0x95, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x8c]],
    ['protocol 0', [...utf8('(dp0\nS"a"\np1\n')]],
    ['protocol 0, a call', [...utf8('cposix\nsystem\n(S"true"\ntR.')]],
    ['a zip archive', [0x50, 0x4b, 0x03, 0x04, 0x00, 0x00, 0x08, 0x08, 0, 0, 0, 0]],
    ['an empty zip archive', [0x50, 0x4b, 0x05, 0x06, ...new Array<number>(18).fill(0)]],
  ])('refuses a pickle behind the right name: %s', (_, bytes) => {
    const file = path.join(tempFolder(), 'model.safetensors');
    fs.writeFileSync(file, new Uint8Array(bytes));
    expect(codeOf(() => readSafetensors(file))).toBe('ERR_PICKLE_REFUSED');
    expect(codeOf(() => openSafetensors(file))).toBe('ERR_PICKLE_REFUSED');
    expect(codeOf(() => readSafetensors(new Uint8Array(bytes)))).toBe('ERR_PICKLE_REFUSED');
  });

  it.each(['model.bin', 'model.pt', 'm.PTH', 'm.ckpt', 'm.pkl'])('refuses by name: %s', (name) => {
    const file = path.join(tempFolder(), name);
    fs.writeFileSync(file, encodeSafetensors({}));
    expect(codeOf(() => readSafetensors(file))).toBe('ERR_PICKLE_REFUSED');
    expect(() => readSafetensors(file)).toThrow(/convert/i);
  });

  it('refuses valid files cut at every byte', () => {
    const files = [
      encodeSafetensors({}),
      encodeSafetensors({ a: { dtype: 'F32', shape: [2], data: new Float32Array(2) } }),
      encodeSafetensors({
        b: { dtype: 'BF16', shape: [3, 5], data: new Uint16Array(15) },
        a: { dtype: 'I64', shape: [2], data: new BigInt64Array(2) },
        u: { dtype: 'BOOL', shape: [3], data: new Uint8Array(3) },
      }),
      encodeSafetensors(
        { '"\\\u{1f600}': { dtype: 'F16', shape: [1], data: new Uint16Array(1) } },
        { format: 'pt', 'a"b': 'line\nline' },
      ),
      rawFile(`{"__metadata__":{"k":"v"},${kGood}}`, 8),
    ];
    for (const file of files) {
      expect(codeOf(() => readSafetensors(file))).toBe('no error');
      for (let length = 0; length < file.length; length++) {
        expect([length, codeOf(() => readSafetensors(file.slice(0, length)))]).toEqual([
          length,
          'ERR_FILE',
        ]);
      }
    }
  });
});

describe('files that change', () => {
  const build = () =>
    encodeSafetensors({
      a: { dtype: 'F32', shape: [4], data: new Float32Array([1, 2, 3, 4]) },
      b: { dtype: 'F32', shape: [4], data: new Float32Array([5, 6, 7, 8]) },
    });
  const write = () => {
    const file = path.join(tempFolder(), 'model.safetensors');
    fs.writeFileSync(file, build());
    return file;
  };

  it('notices a file that was cut after it was opened', () => {
    const file = write();
    const opened = openSafetensors(file);
    expect(opened.read('a').data).toEqual(new Float32Array([1, 2, 3, 4]));
    fs.truncateSync(file, fs.statSync(file).size - 4);
    expect(codeOf(() => opened.read('a'))).toBe('ERR_FILE_CHANGED');
  });

  it('notices a file that another took the place of', () => {
    const file = write();
    const opened = openSafetensors(file);
    fs.writeFileSync(`${file}.next`, build());
    fs.renameSync(`${file}.next`, file);
    expect(codeOf(() => opened.read('a'))).toBe('ERR_FILE_CHANGED');
  });

  it('notices a file that was written to', () => {
    const file = write();
    const opened = openSafetensors(file);
    const fd = fs.openSync(file, 'r+');
    fs.writeSync(fd, new Uint8Array([9]), 0, 1, fs.statSync(file).size - 1);
    fs.closeSync(fd);
    const later = new Date(Date.now() + 5000);
    fs.utimesSync(file, later, later);
    expect(codeOf(() => opened.read('b'))).toBe('ERR_FILE_CHANGED');
  });

  it('notices a file that was removed', () => {
    const file = write();
    const opened = openSafetensors(file);
    fs.rmSync(file);
    expect(codeOf(() => opened.read('a'))).toBe('ERR_FILE_CHANGED');
  });

  it('notices a change in the middle of a whole read', () => {
    const file = write();
    const read = fs.readSync;
    let calls = 0;
    const spy = vi.spyOn(fs, 'readSync').mockImplementation(((...args: Parameters<typeof read>) => {
      if (++calls === 3) fs.truncateSync(file, 100);
      return read(...args);
    }) as typeof read);
    try {
      expect(codeOf(() => readSafetensors(file))).toBe('ERR_FILE_CHANGED');
    } finally {
      spy.mockRestore();
    }
    expect(calls).toBeGreaterThanOrEqual(3);
  });
});
