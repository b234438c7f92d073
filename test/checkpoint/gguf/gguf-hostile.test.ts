/** Malformed GGUF files: each gives one typed error that names the place, the rule and what is there. */

import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { GGUF_TYPES, GgufFile, openGguf } from '../../../lib/index.js';
import { codeOf, tempFolder } from '../raw-file.js';
import { array, key, type RawGguf, rawGguf, tensor, text, u32, u64, utf8 } from './raw-gguf.js';

const good = tensor('a', [8], 0);
const withKey = (...keys: number[][]) => ({ keys, tensors: [good], data_bytes: 32 });
const withTensors = (data_bytes: number, ...tensors: number[][]) => ({ tensors, data_bytes });
const kBig = 1n << 60n;

/** What it is -> the file, and the words of its error behind `openGguf: "(bytes)": `. */
const malformed: Record<string, [RawGguf | Uint8Array, string]> = {
  empty: [new Uint8Array(0), 'bytes must fit the 0 bytes that are left of the file, got 4'],
  'magic alone': [Uint8Array.from(utf8('GGUF')), 'bytes must fit the 0 bytes'],
  'another magic': [{ magic: 'PK\u0003\u0004' }, 'must begin with "GGUF", got "PK\\u0003\\u0004"'],
  'version 0': [{ version: 0 }, 'version must be 2 or 3, got 0'],
  'counts missing': [Uint8Array.from([...utf8('GGUF'), ...u32(3)]), 'bytes must fit'],
  '2^60 keys': [{ keyCount: kBig }, `number of keys must be below 2^53, got ${kBig}`],
  '2^63 tensors': [{ tensorCount: 1n << 63n }, 'number of tensors must be below 2^53'],
  '2^40 keys': [{ keyCount: 2 ** 40 }, 'number of keys must be at most 65536'],
  '2^40 tensors': [{ tensorCount: 2 ** 40 }, 'number of tensors must be at most 200000'],
  'more keys than bytes': [{ keyCount: 1000 }, 'keys must fit the 8 bytes that are left'],
  'more tensors than bytes': [{ tensorCount: 1000 }, 'tensors must fit the 8 bytes'],
  'a key of 2^60 bytes': [
    withKey([...u64(kBig), ...utf8('aaaaaaaa')]),
    'metadata key 0: length of a key must be below 2^53',
  ],
  'a key longer than the limit': [
    withKey(key('k'.repeat(65_536), 0, [1])),
    'metadata key 0: a key must have 1 to 65535 bytes, got 65536',
  ],
  'an empty key': [withKey(key('', 0, [1])), 'a key must have 1 to 65535 bytes, got 0'],
  'a key that is not UTF-8': [withKey(key([0xff, 0xfe], 0, [1])), 'a key must be valid UTF-8'],
  'a key with NUL': [withKey(key('a\0b', 0, [1])), 'a key must not hold NUL, got "a\\u0000b"'],
  'a key twice': [
    withKey(key('k', 0, [1]), key('k', 0, [2])),
    'metadata "k": a key must occur once, got it twice',
  ],
  'an unknown type of value': [
    withKey(key('k', 13, [1])),
    'metadata "k": type of a value must be from 0 to 12, got 13',
  ],
  'a boolean of 2': [withKey(key('k', 7, [2])), 'a boolean must be 0 or 1, got 2'],
  'a text beyond the file': [
    withKey(key('k', 8, text('abc', 4000))),
    'metadata "k": bytes of a text must fit the',
  ],
  'a text that ends a byte behind the file': [
    { keys: [key('k', 8, text('a'.repeat(19), 20))] },
    'metadata "k": bytes of a text must fit the 19 bytes that are left of the file, got 20',
  ],
  'a text of 2^64 - 1 bytes': [
    withKey(key('k', 8, text('abc', (1n << 64n) - 1n))),
    'length of a text must be below 2^53, got 18446744073709551615',
  ],
  'an array of 2^52 numbers': [
    withKey(key('k', 9, array(4, 2 ** 52, [1, 2, 3, 4]))),
    'metadata "k": numbers of type u32 must fit the',
  ],
  'an array of 2^52 texts': [withKey(key('k', 9, array(8, 2 ** 52, []))), 'texts must fit the'],
  'an array of 2^52 booleans': [withKey(key('k', 9, array(7, 2 ** 52, []))), 'booleans must fit'],
  'an array of 2^52 arrays': [withKey(key('k', 9, array(9, 2 ** 52, []))), 'arrays must fit the'],
  'an array of an unknown type': [withKey(key('k', 9, array(99, 1, [1]))), 'got 99'],
  'arrays nested 9 deep': [
    withKey(
      key('k', 9, [
        ...Array(8)
          .fill(array(9, 1, []))
          .flat(),
        ...array(0, 1, [7]),
      ]),
    ),
    'metadata "k": arrays must nest at most 8 deep',
  ],
  'arrays nested 10,000 deep': [
    {
      keys: [
        key(
          'k',
          9,
          Array(1e6)
            .fill(array(9, 1, []))
            .flat(),
        ),
      ],
    },
    'arrays must nest at most 8 deep',
  ],
  'more arrays in arrays than the limit': [
    withKey(
      key(
        'k',
        9,
        array(
          9,
          100_001,
          Array(100_001)
            .fill(array(0, 0, []))
            .flat(),
        ),
      ),
    ),
    'arrays in arrays must be at most 100000, got more',
  ],
  'alignment of 0': [
    withKey(key('general.alignment', 4, u32(0))),
    'metadata "general.alignment" must be a power of two from 1 to 2097152 of type u32, got 0',
  ],
  'alignment of 48': [withKey(key('general.alignment', 4, u32(48))), 'of type u32, got 48'],
  'alignment of 2^31': [withKey(key('general.alignment', 4, u32(2 ** 31))), 'got 2147483648'],
  'alignment of another type': [
    withKey(key('general.alignment', 10, u64(32))),
    'of type u32, got a value of type u64',
  ],
  'a tensor name longer than the limit': [
    withTensors(32, tensor('n'.repeat(256), [8], 0)),
    'tensor 0: a name must have 1 to 255 bytes, got 256',
  ],
  'an empty tensor name': [withTensors(32, tensor('', [8], 0)), 'tensor 0: a name must have 1 to'],
  'a tensor name with NUL': [withTensors(32, tensor('a\0', [8], 0)), 'a name must not hold NUL'],
  'a tensor name that is not UTF-8': [
    withTensors(32, tensor([0xc0, 0xaf], [8], 0)),
    'tensor 0: a name must be valid UTF-8',
  ],
  'a tensor name twice': [
    withTensors(64, good, tensor('a', [8], 0, 32)),
    'tensor "a": a name must occur once, got it twice',
  ],
  '5 dimensions': [
    withTensors(32, tensor('a', [1, 1, 1, 1, 8], 0)),
    'tensor "a": must have at most 4 dimensions, got 5',
  ],
  '2^31 dimensions': [
    withTensors(32, tensor('a', [8], 0, 0, 2 ** 31)),
    'must have at most 4 dimensions, got 2147483648',
  ],
  'a dimension of 0': [
    withTensors(32, tensor('a', [8, 0], 0)),
    'tensor "a": must have dimensions of at least 1, got [0, 8]',
  ],
  'a dimension of 2^63': [
    withTensors(32, tensor('a', [1n << 63n], 0)),
    'a dimension must be below',
  ],
  'a product that wraps 2^64': [
    withTensors(32, tensor('a', [2 ** 32, 2 ** 32], 0)),
    'must have fewer than 2^53 / 64 elements, got [4294967296, 4294967296]',
  ],
  'rows that blocks do not divide': [
    withTensors(96, tensor('a', [48, 2], 8)),
    'tensor "a": must have rows of a multiple of 32 elements in Q8_0, got 48',
  ],
  'a scalar in blocks': [withTensors(96, tensor('a', [], 8)), 'multiple of 32 elements in Q8_0'],
  'an offset off the alignment': [
    withTensors(64, tensor('a', [8], 0, 16)),
    'tensor "a" must begin at a multiple of 32 bytes, got 16',
  ],
  'an offset of 2^64 - 32': [
    withTensors(64, tensor('a', [8], 0, (1n << 64n) - 32n)),
    'tensor "a": offset must be below 2^53',
  ],
  'two tensors on the same bytes': [
    withTensors(64, good, tensor('b', [8], 0, 0)),
    'tensor "b" must begin at byte 32 of the data, behind the tensor before it, got 0, an overlap',
  ],
  'a tensor that begins inside another': [
    withTensors(96, tensor('a', [16], 0), tensor('b', [8], 0, 32)),
    'must begin at byte 64 of the data, behind the tensor before it, got 32, an overlap',
  ],
  'a hole at the start': [withTensors(96, tensor('a', [8], 0, 32)), 'got 32, a hole'],
  'a hole between': [withTensors(128, good, tensor('b', [8], 0, 64)), 'got 64, a hole'],
  'tensors in another order than their bytes': [
    withTensors(64, tensor('a', [8], 0, 32), tensor('b', [8], 0, 0)),
    'tensor "a" must begin at byte 0 of the data, behind the tensor before it, got 32, a hole',
  ],
  'a tensor beyond the file': [
    withTensors(31, good),
    'tensor "a" must end within the 95 bytes of the file, got byte 96',
  ],
  'a file cut in its first tensor': [
    withTensors(10, good, tensor('b', [8], 0, 32)),
    'tensor "a" must end within the',
  ],
  'bytes behind the last tensor': [
    withTensors(64, good),
    'must end at byte 96, behind its last tensor, got 128 bytes',
  ],
  'bytes behind a file without tensors': [{ data_bytes: 1 }, 'must end at byte 32'],
};

/** Refused by name, with the way out. */
const unsupported: Record<string, [RawGguf, string]> = {
  'version 1': [
    { version: 1 },
    'version must be 2 or 3, got 1. Convert it again with a current llama.cpp',
  ],
  'version 4': [{ version: 4 }, 'version must be 2 or 3, got 4. Update lowrank'],
  'big-endian by its version': [
    { version: 0x03000000 },
    'must be little-endian, got a big-endian file. Convert it with gguf-py',
  ],
  'big-endian by its magic': [{ magic: 'FUGG' }, 'must be little-endian, got a big-endian file'],
  ...Object.fromEntries(
    ['GGML', 'GGMF', 'GGJT', 'GGLA'].map((name) => [
      `${name}, of before GGUF`,
      [
        { magic: name.toLowerCase().split('').reverse().join('') },
        `must be a GGUF file, got ${name}, of before GGUF. Take a GGUF file of this model`,
      ] as [RawGguf, string],
    ]),
  ),
  ...Object.fromEntries(
    Object.entries({
      IQ2_XXS: 16,
      IQ2_XS: 17,
      IQ3_XXS: 18,
      IQ1_S: 19,
      IQ3_S: 21,
      IQ2_S: 22,
      IQ1_M: 29,
    }).map(([name, id]) => [
      name,
      [
        withTensors(256, tensor('a', [256], id)),
        `tensor "a" must be of a type that is read, got ${name}, which is not read, because its codes ` +
          'are indices into a table of vectors. Take a file of this model in Q2_K, Q3_K or IQ4_XS',
      ] as [RawGguf, string],
    ]),
  ),
  Q8_K: [withTensors(32, tensor('a', [256], 15)), 'got Q8_K, which is not read, because it is a'],
  Q4_0_8_8: [withTensors(32, tensor('a', [32], 33)), 'Take a file of this model in Q4_0'],
  IQ4_NL_4_4: [withTensors(32, tensor('a', [32], 36)), 'Take a file of this model in IQ4_NL'],
  TQ1_0: [withTensors(32, tensor('a', [256], 34)), 'five digits of base 3. Take a file'],
  Q1_0: [withTensors(32, tensor('a', [128], 41)), 'got Q1_0, which is not read'],
  'a type of the future': [
    withTensors(32, tensor('a', [32], 4_000_000_000)),
    'got type number 4000000000, which this version does not know. Take another file of this model',
  ],
};

const fileOf = (file: RawGguf | Uint8Array) => (file instanceof Uint8Array ? file : rawGguf(file));

describe('a malformed GGUF file', () => {
  it.each(Object.entries(malformed))('%s', (_, [parts, words]) => {
    const file = fileOf(parts);
    expect(codeOf(() => openGguf(file))).toBe('ERR_FILE');
    expect(() => openGguf(file)).toThrow(words);
    expect(() => openGguf(file)).toThrow(/^openGguf: "\(bytes\)": /);
  });

  it.each(Object.entries(unsupported))('refuses %s by name', (_, [parts, words]) => {
    const file = fileOf(parts);
    expect(codeOf(() => openGguf(file))).toBe('ERR_UNSUPPORTED');
    expect(() => openGguf(file)).toThrow(words);
  });

  it('names every type number up to 41, read or not', () => {
    const known = new Set(Object.values(GGUF_TYPES).map(({ id }) => id));
    for (let id = 0; id < 42; id++) {
      if (known.has(id)) continue;
      const file = rawGguf(withTensors(32, tensor('a', [256], id)));
      expect(() => openGguf(file), String(id)).toThrow(/got I?T?Q\w+, which is not read, because/);
    }
  });

  it('allocates nothing for what is not there', () => {
    const before = process.memoryUsage();
    const start = performance.now();
    for (const [parts] of Object.values(malformed)) {
      if (parts instanceof Uint8Array || parts.keyCount !== undefined) {
        expect(codeOf(() => openGguf(fileOf(parts)))).toBe('ERR_FILE');
      }
    }
    expect(process.memoryUsage().arrayBuffers - before.arrayBuffers).toBeLessThan(64 << 20);
    expect(performance.now() - start).toBeLessThan(1000);
  });

  it('refuses more texts that are not UTF-8 than a vocabulary has', () => {
    const one = Uint8Array.from(text([0xff]));
    const withTexts = (count: number) => {
      const head = rawGguf({ keys: [key('k', 9, array(8, count, []))], alignment: 1 });
      const file = new Uint8Array(head.length + count * one.length);
      file.set(head);
      for (let at = head.length; at < file.length; at += one.length) file.set(one, at);
      return file;
    };
    expect(openGguf(withTexts(1000)).metadata.get('k')?.value).toHaveLength(1000);
    expect(() => openGguf(withTexts(500_001))).toThrow(
      'metadata "k": texts that are not UTF-8 must be at most 500000, got more',
    );
  });

  it('reads a header up to the limit', () => {
    const file = rawGguf(withKey(key('k', 9, array(0, 1 << 20, Array(1 << 20).fill(1)))));
    expect(openGguf(file).metadata.get('k')?.value).toHaveLength(1 << 20);
    const capped = () => openGguf(file, { maxHeaderBytes: 1 << 20 });
    expect(codeOf(capped)).toBe('ERR_FILE');
    expect(capped).toThrow(
      /header must be at most 1048576 bytes long \(see maxHeaderBytes\), got 1048576 numbers/,
    );
    expect(codeOf(() => openGguf(file, { maxHeaderBytes: -1 }))).toBe('ERR_VALUE');
    expect(codeOf(() => openGguf(file, { maxHeaderBytes: '1' as never }))).toBe('ERR_TYPE');
  });

  it('steers no terminal', () => {
    const file = rawGguf(withKey(key('\u001b[2J\u202e', 13, [])));
    expect(codeOf(() => openGguf(file))).toBe('ERR_FILE');
  });
});

describe('a GGUF file on the disk', () => {
  const write = (bytes: Uint8Array) => {
    const file = path.join(tempFolder(), 'model.gguf');
    fs.writeFileSync(file, bytes);
    return file;
  };

  it('must be a regular file that is there', () => {
    const folder = tempFolder();
    expect(codeOf(() => openGguf(path.join(folder, 'none.gguf')))).toBe('ERR_FILE_NOT_FOUND');
    expect(codeOf(() => openGguf(folder))).toBe('ERR_PATH');
    expect(codeOf(() => openGguf(3 as never))).toBe('ERR_TYPE');
  });

  it('must not change between opening and reading', () => {
    const file = write(rawGguf(withTensors(32, good)));
    const opened = openGguf(file);
    expect(opened.read('a').data).toEqual(Uint8Array.from({ length: 32 }, (_, i) => i + 1));
    expect(codeOf(() => opened.read('b'))).toBe('ERR_FILE');
    fs.writeFileSync(file, rawGguf(withTensors(64, tensor('a', [16], 0))));
    expect(codeOf(() => opened.read('a'))).toBe('ERR_FILE_CHANGED');
    fs.rmSync(file);
    expect(codeOf(() => opened.read('a'))).toBe('ERR_FILE_CHANGED');
  });

  it('is read in windows, whatever lies across their edges', () => {
    const tokens = Array.from({ length: 30_000 }, (_, i) => `token ${i} ${'x'.repeat(i % 17)}`);
    const keys = [
      key(
        't',
        9,
        array(
          8,
          tokens.length,
          tokens.flatMap((token) => text(token)),
        ),
      ),
    ];
    const file = openGguf(write(rawGguf({ keys, tensors: [good], data_bytes: 32 })));
    expect(file.byteLength).toBeGreaterThan(3 * (256 << 10));
    expect(file.metadata.get('t')?.value).toEqual(tokens);
    expect(file.read('a').data[31]).toBe(32);
  });

  it('is read across the edge of a window, wherever a field has it', () => {
    const window_bytes = 256 << 10;
    const fill = Array<number>(window_bytes).fill(7);
    for (let before = 0; before < 40; before++) {
      const head = 4 + 4 + 8 + 8 + (8 + 1 + 4 + 4 + 8);
      const long = key('a', 9, array(0, window_bytes - head - before, fill.slice(head + before)));
      const keys = [long, key('b', 8, text('word')), key('c', 4, u32(77))];
      const { metadata } = openGguf(rawGguf({ keys, tensors: [good], data_bytes: 32 }));
      expect([metadata.get('b')?.value, metadata.get('c')?.value], String(before)).toEqual([
        'word',
        77,
      ]);
    }
  });

  it('only the library opens one', () => {
    const Made = GgufFile as unknown as new () => unknown;
    expect(codeOf(() => new Made())).toBe('ERR_TYPE');
  });
});

describe('an odd but valid file', () => {
  it.each<[string, RawGguf, Record<string, readonly number[]>]>([
    ['no keys, no tensors', {}, {}],
    ['version 2', { version: 2, ...withTensors(32, good) }, { a: [8] }],
    ['a scalar', withTensors(4, tensor('s', [], 0)), { s: [] }],
    ['the last tensor without padding', withTensors(34, tensor('q', [32], 8)), { q: [32] }],
    ['the last tensor with padding', withTensors(64, tensor('q', [32], 8)), { q: [32] }],
    ['dimensions the other way round', withTensors(96, tensor('m', [8, 3], 0)), { m: [3, 8] }],
    ['a name __proto__', withTensors(32, tensor('__proto__', [8], 0)), { ['__proto__']: [8] }],
    [
      'another alignment',
      {
        keys: [key('general.alignment', 4, u32(8))],
        tensors: [tensor('a', [3], 0), tensor('b', [2], 0, 16)],
        alignment: 8,
        data_bytes: 24,
      },
      { a: [3], b: [2] },
    ],
  ])('%s', (_, parts, shapes) => {
    const file = openGguf(rawGguf(parts));
    expect(file.names()).toEqual(Object.keys(shapes));
    for (const name of file.names()) expect(file.info(name)?.shape).toEqual(shapes[name]);
  });
});
