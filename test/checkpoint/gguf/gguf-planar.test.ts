// Blocks of GGUF as planar weights: the bits that ggml decodes, the way back byte for byte, and what is refused.
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  type GgufBlockType,
  ggufBlockTypes,
  isBlockType,
} from '../../../lib/checkpoint/gguf/blocks/parts.js';
import type { PlanarWeight } from '../../../lib/checkpoint/planar/planar-weight.js';
import { LowrankError } from '../../../lib/core/errors.js';
import {
  GGUF_TYPES,
  type GgufTensor,
  ggufToPlanar,
  openGguf,
  planarToFloat32,
  planarToGguf,
} from '../../../lib/index.js';
import { caseIds, loadCase, numbersOf, readTensors } from '../../golden/case-file.js';
import { decodeGguf, GGUF_BLOCKS } from '../../oracle/formats/gguf.js';
import { generator } from '../fuzz.js';
import { planarValues } from './planar-values.js';

const kFolder = join(import.meta.dirname, '..', '..', 'golden', 'formats');

/** Blocks one behind the other, as a tensor of one row. */
const tensorOf = (type: GgufBlockType, data: Uint8Array<ArrayBuffer>): GgufTensor => ({
  type,
  shape: [(data.length / GGUF_TYPES[type].bytes) * GGUF_TYPES[type].elements],
  data,
});

/** Bytes of a block at which an f16 begins. */
const kHalves: Readonly<Record<GgufBlockType, readonly number[]>> = {
  Q4_0: [0],
  Q4_1: [0, 2],
  Q5_0: [0],
  Q5_1: [0, 2],
  Q8_0: [0],
  Q2_K: [80, 82],
  Q3_K: [108],
  Q4_K: [0, 2],
  Q5_K: [0, 2],
  Q6_K: [208],
  IQ4_NL: [0],
  IQ4_XS: [0],
  MXFP4: [],
  NVFP4: [],
  TQ2_0: [64],
};

/** Of NaN any will do. */
function expectBits(mine: Float32Array, wanted: ArrayLike<number>, what: string): void {
  expect(mine.length, what).toBe(wanted.length);
  const differs = mine.findIndex((value, i) => !Object.is(value, wanted[i]));
  if (differs >= 0) {
    throw new Error(`${what}[${differs}] is ${mine[differs]}, expected ${wanted[differs]}`);
  }
}

function expectSame(mine: Uint8Array, wanted: Uint8Array, what: string): void {
  const differs = mine.findIndex((byte, i) => byte !== wanted[i]);
  if (differs < 0 && mine.length === wanted.length) return;
  throw new Error(`${what}: byte ${differs} is ${mine[differs]}, expected ${wanted[differs]}`);
}

/** Reads a tensor, compares its values, and writes it back. */
function checkTensor(tensor: GgufTensor, wanted: ArrayLike<number>, what: string): void {
  const weight = ggufToPlanar(tensor);
  expectBits(planarValues(weight), wanted, what);
  expectBits(planarToFloat32(weight), wanted, what);
  const back = planarToGguf(weight, tensor.type as GgufBlockType);
  expectSame(back.tensor.data, tensor.data, what);
  expect(back.tensor.shape).toEqual([weight.rows, weight.columns]);
}

describe('recorded blocks', () => {
  it('are of every type', () => {
    const types = caseIds('formats/gguf').map((id) => loadCase(id).params.type);
    expect([...new Set(types)].sort()).toEqual([...ggufBlockTypes].sort());
    expect(Object.keys(GGUF_BLOCKS).sort()).toEqual([...ggufBlockTypes].sort());
  });

  it.each(caseIds('formats/gguf'))('%s', (id) => {
    const golden = loadCase(id);
    const type = golden.params.type as GgufBlockType;
    for (const [bytes, values] of [
      ['out.bytes', 'out.dequant'],
      ['in.random_bytes', 'out.random_dequant'],
    ] as const) {
      if (!golden.has(bytes)) continue;
      const data = Uint8Array.from(golden.tensor(bytes).bytes);
      const { shape } = golden.tensor(values);
      checkTensor({ type, shape, data }, golden.numbers(values), `${id} ${values}`);
    }
  });

  it.each(caseIds('formats/lora').filter((id) => id.includes('gguf_')))('%s', (id) => {
    const golden = loadCase(id);
    const type = (golden.params.format as string).replace('gguf:', '') as GgufBlockType;
    const data = Uint8Array.from(golden.tensor('base.lin.bytes').bytes);
    const { shape } = golden.tensor('base_dequant.lin.weight');
    checkTensor({ type, shape, data }, golden.numbers('base_dequant.lin.weight'), id);
  });

  it('of a file, with three dimensions too', () => {
    const file = openGguf(join(kFolder, 'gguf_file', 'mixed', 'model.gguf'));
    const values = readTensors('formats/gguf_file/mixed.safetensors');
    const seen = new Set<string>();
    for (const name of file.names()) {
      const tensor = file.read(name);
      const golden = values.get(`out.${name}`);
      if (!isBlockType(tensor.type) || golden === undefined) continue;
      seen.add(tensor.type);
      checkTensor(tensor, numbersOf(golden), name);
    }
    expect([...ggufBlockTypes].filter((type) => !seen.has(type))).toEqual(['TQ2_0']);
    expect(ggufToPlanar(file.read('three_dim'))).toMatchObject({ rows: 6, columns: 32 });
  });
});

describe.each(ggufBlockTypes)('%s', (type) => {
  const { bytes } = GGUF_TYPES[type];

  /** Both zeros of e2m1 are +0 in ggml; the oracle keeps the sign, and the sum of nothing does not. */
  const check = (data: Uint8Array<ArrayBuffer>, what: string): void => {
    const weight = ggufToPlanar(tensorOf(type, data));
    const mine = planarValues(weight);
    const wanted = decodeGguf(type, data);
    const same = (a: number, b: number): boolean =>
      Object.is(a, b) || (a === b && type.endsWith('FP4'));
    const differs = mine.findIndex((value, i) => !same(value, wanted[i] as number));
    if (differs >= 0) {
      throw new Error(`${what}: ${differs} is ${mine[differs]}, expected ${wanted[differs]}`);
    }
    expectSame(planarToGguf(weight, type).tensor.data, data, what);
  };

  it('random blocks decode as the oracle says, and are written back', () => {
    const random = generator(7);
    for (let i = 0; i < 40; i++) {
      const data = Uint8Array.from({ length: bytes * (1 + random(4)) }, () => random(256));
      check(data, `random ${i}`);
    }
  });

  it('every value of every byte', () => {
    const blocks = Uint8Array.from(
      { length: 256 * bytes },
      (_, i) => (Math.floor(i / bytes) + 37 * (i % bytes)) % 256,
    );
    check(blocks, 'bytes');
  });

  it('every f16, NaN and infinities too', () => {
    const places = kHalves[type];
    const random = generator(13);
    // Every sixteenth of large blocks: all exponents with each sign, and fractions of all kinds.
    const step = bytes > 36 ? 16 : 1;
    for (const at of places) {
      for (let from = 0; from < 65_536; from += 4096 * step) {
        const data = Uint8Array.from({ length: 4096 * bytes }, () => random(256));
        for (let i = 0; i < 4096; i++) {
          const bits = from + i * step + (step === 1 ? 0 : i % step);
          data[i * bytes + at] = bits & 255;
          data[i * bytes + at + 1] = bits >> 8;
        }
        const weight = ggufToPlanar(tensorOf(type, data));
        expectSame(planarToGguf(weight, type).tensor.data, data, `f16 at ${at}`);
        // Decoding is checked of both ends, and of a share of the others.
        const picked = [0, 1, 1023, 1024, 2047, 2048, 4094, 4095];
        for (let i = 64; i < 4096; i += 64) picked.push(i - 1, i);
        const some = picked.flatMap((i) => [...data.subarray(i * bytes, (i + 1) * bytes)]);
        check(Uint8Array.from(some), `f16 at ${at} from ${from}`);
      }
    }
  });
});

describe('the second scale of NVFP4', () => {
  const random = generator(17);
  const blocks = (count: number): GgufTensor => ({
    type: 'NVFP4',
    shape: [count / 2, 128],
    data: Uint8Array.from({ length: 36 * count }, () => random(127)),
  });
  const factors = (...values: number[]): GgufTensor => ({
    type: 'F32',
    shape: [values.length],
    data: new Uint8Array(Float32Array.from(values).buffer),
  });

  it('multiplies the scales of groups first', () => {
    const tensor = blocks(4);
    const factor = Math.fround(0.1);
    const scale = factors(factor);
    const weight = ggufToPlanar(tensor, scale);
    const unscaled = ggufToPlanar(tensor);
    const mine = planarValues(weight);
    mine.forEach((value, i) => {
      const s = unscaled.scale.values;
      const own = s.dtype === 'u8' ? (s.table[s.data[Math.floor(i / 16)] as number] as number) : 0;
      const level = weight.levels[weight.codes[i] as number] as number;
      expect(value).toBe(Math.fround(level * Math.fround(own * factor)));
    });
    expect(planarToGguf(weight, 'NVFP4')).toEqual({ tensor, scale });
  });

  it('may be one an expert', () => {
    const { type, data } = blocks(12);
    const scale = factors(2, Number.NaN, -0.5);
    const weight = ggufToPlanar({ type, shape: [3, 2, 128], data }, scale);
    const unscaled = planarValues(ggufToPlanar({ type, shape: [6, 128], data }));
    const of = [2, Number.NaN, -0.5];
    planarValues(weight).forEach((value, i) => {
      const wanted = (unscaled[i] as number) * (of[Math.floor(i / 256)] as number);
      expect(value + 0).toEqual(wanted + 0);
    });
    expect(planarToGguf(weight, 'NVFP4').scale).toEqual(scale);
  });

  it('is refused where it does not fit', () => {
    const refuse = (tensor: GgufTensor, scale: GgufTensor) => () => ggufToPlanar(tensor, scale);
    expect(refuse(blocks(4), factors(1, 2, 3))).toThrow(
      'ggufToPlanar: scale must be one number, or a divisor of 2 rows, got 3',
    );
    expect(refuse(blocks(4), { ...factors(1), type: 'F16' })).toThrow('scale must be F32, got F16');
    expect(refuse(tensorOf('Q4_0', new Uint8Array(18)), factors(1))).toThrow(
      'tensor must be NVFP4 beside a scale, got Q4_0',
    );
    expect(refuse(blocks(4), { ...factors(1), shape: [2] })).toThrow('must be 8 bytes');
  });
});

describe('what is refused', () => {
  const weight = ggufToPlanar(tensorOf('Q4_K', new Uint8Array(288)));
  const outer = weight.scale.outer as NonNullable<typeof weight.scale.outer>;
  const codeOf = (body: () => unknown): [string, string] => {
    try {
      body();
    } catch (error) {
      if (error instanceof LowrankError) return [error.code, error.message];
      throw error;
    }
    throw new Error('nothing was thrown');
  };

  it.each<[string, GgufTensor, string, string]>([
    [
      'a type without blocks',
      { type: 'F32', shape: [1], data: new Uint8Array(4) },
      'ERR_DTYPE',
      'of Q4_0, ',
    ],
    [
      'a row that blocks do not divide',
      { type: 'Q4_0', shape: [2, 16], data: new Uint8Array(18) },
      'ERR_SHAPE',
      'rows of a multiple of 32 elements in Q4_0, got 16',
    ],
    [
      'other bytes',
      { type: 'Q4_0', shape: [2, 32], data: new Uint8Array(35) },
      'ERR_SHAPE',
      '36 bytes for Q4_0[2, 32], got 35 bytes',
    ],
    ['no dimension', { type: 'Q4_0', shape: [], data: new Uint8Array() }, 'ERR_SHAPE', 'got 1'],
    ['a dimension of 0', { type: 'Q4_0', shape: [0, 32], data: new Uint8Array() }, 'ERR_SHAPE', ''],
  ])('%s', (_, tensor, code, text) => {
    const [got, message] = codeOf(() => ggufToPlanar(tensor));
    expect(got).toBe(code);
    expect(message).toContain(text);
  });

  it.each<[string, Partial<PlanarWeight>, string, string]>([
    ['other groups', { grid: { kind: 'tiles', rows: 1, columns: 64 } }, 'ERR_SHAPE', 'scale'],
    ['flat groups', { grid: { kind: 'flat', span: 32 } }, 'ERR_FORMAT', 'grid'],
    ['other levels', { levels: weight.levels.map((level) => -level) }, 'ERR_FORMAT', 'levels'],
    [
      'other bits',
      { bits: 5, levels: new Float32Array(32) },
      'ERR_FORMAT',
      'other levels of 5 bits',
    ],
    ['a code without a level', { codes: weight.codes.map(() => 16) }, 'ERR_VALUE', 'codes must'],
    ['fewer codes', { codes: weight.codes.subarray(1) }, 'ERR_SHAPE', 'got Uint8Array of 511'],
    ['a row that blocks do not divide', { rows: 4, columns: 128 }, 'ERR_SHAPE', 'got 128'],
    ['no rows', { rows: 0, codes: new Uint8Array() }, 'ERR_SHAPE', 'rows must be'],
    ['half a row', { rows: 0.5 }, 'ERR_SHAPE', 'got 0.5'],
    [
      'zero-points',
      { min: undefined as never, zero: { dtype: 'u8', data: new Uint8Array(16) } },
      'ERR_FORMAT',
      'zero must be absent for Q4_K',
    ],
    ['no minimum', { min: undefined as never }, 'ERR_FORMAT', 'min must be a plane for Q4_K'],
    [
      'another span',
      { scale: { ...weight.scale, outer: { ...outer, span: 4 } } },
      'ERR_SHAPE',
      'scale.outer',
    ],
    ['an offset', { scale: { ...weight.scale, offset: 1 } }, 'ERR_FORMAT', 'scale must be'],
    [
      'scales of f32',
      { scale: { values: { dtype: 'f32', data: new Float32Array(16) } } },
      'ERR_FORMAT',
      'scale must be integers of 16 groups times f16 of 2 blocks for Q4_K, got 16 of f32',
    ],
    [
      'a scale without an integer',
      {
        min: {
          ...weight.min,
          values: { ...weight.scale.values, data: new Uint8Array(16).fill(64) } as never,
        },
      },
      'ERR_FORMAT',
      'min must be',
    ],
  ])('%s', (_, change, code, text) => {
    const [got, message] = codeOf(() => planarToGguf({ ...weight, ...change }, 'Q4_K'));
    expect(got).toBe(code);
    expect(message).toContain(text);
  });

  it('another type than that of the weight', () => {
    for (const type of ggufBlockTypes) {
      if (type === 'Q4_K') continue;
      expect(codeOf(() => planarToGguf(weight, type))[0], type).toMatch(/ERR_(FORMAT|SHAPE)/);
    }
    const q4 = ggufToPlanar(tensorOf('Q4_0', new Uint8Array(18 * 8)));
    expect(codeOf(() => planarToGguf(q4, 'IQ4_NL'))[1]).toContain('levels must be those of 4 bits');
    expect(codeOf(() => planarToGguf(weight, 'F32' as never))[0]).toBe('ERR_DTYPE');
  });
});
