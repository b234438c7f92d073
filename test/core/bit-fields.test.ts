// Codes in bits against the definition, one bit at a time.
import { describe, expect, it } from 'vitest';
import { nibbles, streams } from '../../lib/checkpoint/codecs/packing.js';
import { optionalNative } from '../../lib/core/binding.js';
import {
  type Field,
  type Fields,
  firstFrom,
  readFields,
  readFieldsBy,
  readFieldsHere,
  writeFields,
} from '../../lib/core/bit-fields.js';
import { LowrankError } from '../../lib/core/errors.js';
import { generator } from '../checkpoint/fuzz.js';

const bitOf = (bytes: Uint8Array, at: number): number =>
  Math.floor((bytes[Math.floor(at / 8)] as number) / 2 ** (at % 8)) % 2;

const pick = (value: number | ArrayLike<number>, i: number): number =>
  typeof value === 'number' ? value : (value[i] as number);

/** Every bit of every code: where it lies, and where it goes. */
function bitsOf({ rows, columns, fields }: Fields) {
  const found: { element: number; at: number; to: number }[] = [];
  for (const { base, rows: r, columns: c, bits, shift } of fields) {
    for (let element = 0; element < rows * columns; element++) {
      const [n, k] = [Math.floor(element / columns), element % columns];
      const inner = k % c.at.length;
      const start =
        base +
        (r.at[n % r.at.length] as number) +
        r.stride * Math.floor(n / r.at.length) +
        (c.at[inner] as number) +
        c.stride * Math.floor(k / c.at.length);
      for (let bit = 0; bit < pick(bits, inner); bit++) {
        found.push({ element, at: start + bit, to: pick(shift, inner) + bit });
      }
    }
  }
  return found;
}

function expected(bytes: Uint8Array, layout: Fields): number[] {
  const codes = new Array<number>(layout.rows * layout.columns).fill(0);
  for (const { element, at, to } of bitsOf(layout)) {
    codes[element] = (codes[element] as number) + bitOf(bytes, at) * 2 ** to;
  }
  return codes.map((code) => code ^ (layout.flip ?? 0));
}

/** Fields that do not overlap: places of `width` bits, dealt out to the elements of a run at random. */
function randomLayout(random: (below: number) => number): { layout: Fields; bytes: number } {
  const bits = 1 + random(8);
  const run = 1 + random(9);
  const [rows, columns] = [1 + random(5), 1 + random(200)];
  const places = Array.from({ length: run }, (_, i) => i * bits);
  for (let i = run - 1; i > 0; i--) {
    const j = random(i + 1);
    [places[i], places[j]] = [places[j] as number, places[i] as number];
  }
  const stride = run * bits + random(3);
  const pitch = Math.ceil(columns / run) * stride + random(20);
  const base = random(30);
  // Some codes have their upper bits behind all rows, or have none.
  const split = Array.from({ length: run }, () => random(bits + 1));
  const two = random(2) === 0;
  const low: Field = {
    base,
    rows: { at: [0], stride: pitch },
    columns: { at: places, stride },
    bits: two ? split : bits,
    shift: 0,
  };
  const high: Field = {
    ...low,
    base: base + rows * pitch,
    bits: split.map((length) => bits - length),
    shift: split,
  };
  const fields = two ? [low, high] : [low];
  const layout = { rows, columns, fields, ...(random(2) === 0 ? { flip: 2 ** (bits - 1) } : {}) };
  return { layout, bytes: Math.ceil((base + fields.length * rows * pitch + 8) / 8) };
}

const addon = optionalNative() as NonNullable<ReturnType<typeof optionalNative>>;

describe('fields of codes', () => {
  it('reads and writes random layouts as the definition says', () => {
    const random = generator(7);
    for (let i = 0; i < 200; i++) {
      const { layout, bytes } = randomLayout(random);
      const file = Uint8Array.from({ length: bytes }, () => random(256));
      const codes = readFields(file, layout);
      expect([...codes]).toEqual(expected(file, layout));
      expect(readFieldsHere(file, layout)).toEqual(codes);
      expect(readFieldsBy(addon, file, layout)).toEqual(codes);
      const back = new Uint8Array(bytes);
      writeFields(codes, layout, back);
      const own = new Uint8Array(bytes);
      for (const { at } of bitsOf(layout)) {
        own[at >> 3] = (own[at >> 3] as number) | (bitOf(file, at) << (at % 8));
      }
      expect(back).toEqual(own);
    }
  });

  it('takes places inside a byte for rows too, as layouts that pack along the rows have', () => {
    const bytes = Uint8Array.of(0x21, 0x43, 0x65, 0x87);
    const layout: Fields = {
      rows: 4,
      columns: 2,
      fields: [
        {
          base: 0,
          rows: { at: [4, 0], stride: 8 },
          columns: { at: [0], stride: 16 },
          bits: 4,
          shift: 0,
        },
      ],
    };
    expect([...readFields(bytes, layout)]).toEqual([2, 6, 1, 5, 4, 8, 3, 7]);
    const back = new Uint8Array(4);
    writeFields(Uint8Array.of(2, 6, 1, 5, 4, 8, 3, 7), layout, back);
    expect(back).toEqual(bytes);
  });

  it('rejects a layout beyond the bytes before it allocates', () => {
    const field: Field = {
      base: 0,
      rows: { at: [0], stride: 16 },
      columns: { at: [0, 4], stride: 8 },
      bits: 4,
      shift: 0,
    };
    const layout = { rows: 2, columns: 4, fields: [field] };
    expect(readFields(new Uint8Array(4), layout)).toHaveLength(8);
    const wrong: [Fields, string][] = [
      [layout, 'bits of [2, 4] inside 3 bytes, got bits 0 to 32'],
      [{ ...layout, columns: 2 ** 40 }, 'bits 0 to 4398046511120'],
      [{ ...layout, rows: 2 ** 40 }, 'inside 3 bytes'],
      [{ ...layout, fields: [{ ...field, base: -1, bits: 1 }] }, 'bits -1 to'],
    ];
    for (const [bad, text] of wrong) {
      for (const call of [
        () => readFields(new Uint8Array(3), bad),
        () => writeFields(new Uint8Array(8), bad, new Uint8Array(3)),
      ]) {
        expect(call).toThrow(LowrankError);
        expect(call).toThrow(text);
      }
    }
  });

  it('reads nothing where there is nothing', () => {
    expect(readFields(new Uint8Array(0), { rows: 3, columns: 2, fields: [], flip: 5 })).toEqual(
      new Uint8Array(6).fill(5),
    );
  });

  it('has the same codes from the addon as in JavaScript, on several threads', () => {
    const random = generator(3);
    const [N, K] = [1040, 1056];
    const gptq = streams({ rows: N, columns: K, bits: 4, rowPitch: 32, wordPitch: 32 * N });
    const awq: Fields = {
      rows: N,
      columns: K,
      fields: [
        {
          base: 0,
          rows: { at: [0, 16, 4, 20, 8, 24, 12, 28], stride: 32 },
          columns: { at: [0], stride: N * 4 },
          bits: 4,
          shift: 0,
        },
      ],
    };
    const parts = (bits: number): Fields => ({
      rows: 8 / bits,
      columns: (N * K * bits) / 8,
      fields: [
        {
          base: 0,
          rows: { at: Array.from({ length: 8 / bits }, (_, i) => 8 - bits - bits * i), stride: 0 },
          columns: { at: [0], stride: 8 },
          bits,
          shift: 0,
        },
      ],
    });
    const layouts: [string, Fields, number][] = [
      ['nibbles', nibbles(N, K, 'low'), (N * K) / 2],
      ['gptq', gptq, (N * K) / 2],
      [
        'gptq of 3 bits',
        streams({ rows: N, columns: K, bits: 3, rowPitch: 32, wordPitch: 32 * N }),
        (N * K * 3) / 8,
      ],
      ['awq', awq, (N * K) / 2],
      ['hqq of 2 bits', parts(2), (N * K) / 4],
      ['bytes', streams({ rows: N, columns: K, bits: 8, rowPitch: 8 * K, flip: 128 }), N * K],
      ['an odd pitch', streams({ rows: N, columns: K, bits: 5, rowPitch: 5 * K + 3 }), N * K],
    ];
    for (const [name, layout, bytes] of layouts) {
      const file = Uint8Array.from({ length: bytes }, () => random(256));
      const here = readFieldsHere(file, layout);
      for (const threads of [1, 2, 5]) {
        const with_ = { ...addon, threads: () => threads };
        const same = Buffer.compare(readFieldsBy(with_ as typeof addon, file, layout), here);
        expect(same, `${name}, ${threads} threads`).toBe(0);
      }
      expect(Buffer.compare(readFields(file, layout), here), name).toBe(0);
    }
  });

  it('the addon refuses sizes that leave its memory, whatever lib has checked', () => {
    const good = {
      bytes: new Uint8Array(4),
      codes: new Uint8Array(8),
      sizes: Float64Array.of(2, 4, 0, 16, 2, 1),
      rowAt: Float64Array.of(0),
      byte: Uint32Array.of(0, 0, 1, 1),
      bit: Uint8Array.of(0, 4, 0, 4),
      mask: Uint8Array.of(15, 15, 15, 15),
      shift: new Uint8Array(4),
    };
    const read = (part: Partial<Record<keyof typeof good, unknown>>) => {
      const { bytes, codes, sizes, rowAt, byte, bit, mask, shift } = {
        ...good,
        ...part,
      } as typeof good;
      addon.readFields(bytes, codes, sizes, rowAt, byte, bit, mask, shift);
      return [...codes];
    };
    expect(read({ bytes: Uint8Array.of(0x21, 0x43, 0x65, 0x87) })).toEqual([
      1, 2, 3, 4, 5, 6, 7, 8,
    ]);
    const sizes = (...numbers: number[]) => ({ sizes: Float64Array.from(numbers) });
    const wrong = [
      { bytes: new Uint8Array(3) },
      { codes: new Uint8Array(7) },
      { byte: Uint32Array.of(0, 0, 1, 2 ** 32 - 1) },
      { byte: new Uint32Array(0) },
      { rowAt: new Float64Array(0) },
      { rowAt: Float64Array.of(-1) },
      { rowAt: Float64Array.of(1e300) },
      { bit: Uint8Array.of(0, 4, 0, 200) },
      { mask: new Uint8Array(3) },
      sizes(2, 4, 0, 16, 2),
      sizes(2, 4, Number.NaN, 16, 2, 1),
      sizes(2, 4, -8, 16, 2, 1),
      sizes(2, 4, 0, 2 ** 60, 2, 1),
      sizes(2 ** 40, 4, 0, 16, 2, 1),
      sizes(0, 4, 0, 16, 2, 1),
      sizes(1, 8, 0, 16, 2 ** 45, 1),
    ];
    for (const part of wrong) {
      expect(() => read(part), JSON.stringify(part)).toThrow(
        expect.objectContaining({ code: 'ERR_SHAPE' }),
      );
    }
    for (const part of [
      { bytes: [1] },
      { codes: new Float32Array(8) },
      { byte: new Uint8Array(4) },
    ]) {
      expect(() => read(part)).toThrow(expect.objectContaining({ code: 'ERR_TYPE' }));
    }
    expect(() => addon.packPairs(new Uint8Array(4), new Uint8Array(3), 1)).toThrow(
      expect.objectContaining({ code: 'ERR_SHAPE' }),
    );
    const pairs = new Uint8Array(600_000);
    addon.packPairs(
      Uint8Array.from({ length: 1_200_000 }, (_, i) => i % 13),
      pairs,
      4,
    );
    expect(pairs.every((byte, i) => byte === (((2 * i) % 13) << 4) + ((2 * i + 1) % 13))).toBe(
      true,
    );
  });

  it('finds the first code that is too large', () => {
    const codes = new Uint8Array(10_000).fill(7);
    expect(firstFrom(codes, 8)).toBe(-1);
    codes[9_999] = 200;
    codes[5_000] = 8;
    expect(firstFrom(codes, 8)).toBe(5_000);
    expect(firstFrom(new Uint8Array(0), 0)).toBe(-1);
  });
});
