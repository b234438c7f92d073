// Weights quantised to GGUF: ggml's bytes where it rounds, less than its error where it searches.
import { describe, expect, it } from 'vitest';
import { ggufBlockTypes } from '../../../lib/checkpoint/gguf/blocks/parts.js';
import { halfBits, halfValue } from '../../../lib/checkpoint/gguf/quantize/half.js';
import {
  GGUF_TYPES,
  type GgufBlockType,
  LowrankError,
  type QuantizeToGgufOptions,
  quantizeToGguf,
} from '../../../lib/index.js';
import { caseIds, loadCase } from '../../golden/case-file.js';
import { RuleBook } from '../../golden/rules.js';
import { decodeBits, encodeBits } from '../../oracle/dtypes.js';
import { decodeGguf } from '../../oracle/formats/gguf.js';
import { encodeGguf as encodeByOracle } from '../../oracle/formats/gguf-encode.js';
import { generator } from '../fuzz.js';

const kRounding = ['Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'MXFP4', 'TQ2_0'] as const;
/** The golden rule allows 1.05 of ggml's error; the search stays below it. */
const kOfPeer = 0.98;

/** Codes 0 to 15 in the first group of a block of NVFP4, and code 2, which is 1, everywhere. */
const kAllCodes = Array.from({ length: 32 }, (_, i) => (i < 8 ? i + 16 * (i + 8) : 0));
const kTwos = Array.from({ length: 32 }, () => 0x22);

/** Weights of a normal distribution, roughly, some of them large. */
function weights(count: number, seed: number, spread = 0.1): Float32Array {
  const random = generator(seed);
  return Float32Array.from({ length: count }, () => {
    let sum = 0;
    for (let i = 0; i < 6; i++) sum += random(1 << 20) / (1 << 20) - 0.5;
    return sum * spread * (random(100) === 0 ? 6 : 1);
  });
}

function meanSquare(w: Float32Array, decoded: Float32Array, p?: Float32Array): number {
  const { length } = p ?? w;
  const squares = w.reduce((sum, value, i) => {
    return sum + (p?.[i % length] ?? 1) * (value - (decoded[i] as number)) ** 2;
  }, 0);
  return squares / w.length;
}

describe('recorded weights', () => {
  it.each(caseIds('formats/gguf'))('%s', (id) => {
    const golden = loadCase(id);
    const rule = golden.rules.find(({ tensor }) => tensor === 'out.bytes');
    const type = golden.params.type as GgufBlockType;
    const w = Float32Array.from(golden.numbers('in.w'));
    const { shape } = golden.tensor('in.w');
    if (rule === undefined) {
      const importance = Float32Array.from(golden.numbers('in.importance'));
      const { data } = quantizeToGguf(w, shape, type, { importance });
      const error = Math.sqrt(meanSquare(w, decodeGguf(type, data), importance));
      const peer = golden.params.peerWeightedRmsErr as number;
      expect(error / peer).toBeLessThan(kOfPeer);
      return;
    }
    const tensor = quantizeToGguf(w, shape, type);
    expect(tensor).toMatchObject({ type, shape });
    const searches = rule.rule === 'quantised';
    const mine = searches ? decodeGguf(type, tensor.data) : tensor.data;
    if (searches) {
      const error = Math.sqrt(meanSquare(w, mine as Float32Array));
      expect(error / (rule.peerRmsErr as number)).toBeLessThan(kOfPeer);
    }
    expect(searches).toBe(!(kRounding as readonly string[]).includes(type));
    new RuleBook(golden).apply(rule, mine);
  });
});

describe('f16', () => {
  it('has the bits of the oracle', () => {
    const random = generator(3);
    const bits = new Uint32Array(1);
    const value = new Float32Array(bits.buffer);
    const wrong: number[] = [];
    for (let i = 0; i < 20_000; i++) {
      bits[0] = random(2 ** 32);
      // Two thirds around the range of f16: ties, subnormals, the ends.
      if (i % 3 > 0) bits[0] = (random(2) << 31) | ((0x32 + random(0x18)) << 24) | random(1 << 24);
      if (i % 3 === 2) bits[0] = (bits[0] as number) & 0xfffff000;
      const [x] = value as unknown as [number];
      if (!Number.isNaN(x) && halfBits(x) !== encodeBits('f16', x)) wrong.push(x);
    }
    expect(halfBits(Number.NaN) & 0x7c00).toBe(0x7c00);
    for (let half = 0; half < 65_536; half++) {
      if ((half & 0x7c00) === 0x7c00) continue;
      if (!Object.is(halfValue(half), decodeBits('f16', half))) wrong.push(half);
    }
    expect(wrong).toEqual([]);
  });
});

/** Least and largest weight of a block with a scale of 1. */
const kEnds: Readonly<Record<(typeof kRounding)[number], readonly [number, number]>> = {
  Q4_0: [-8, 7],
  Q4_1: [0, 15],
  Q5_0: [-16, 15],
  Q5_1: [0, 31],
  Q8_0: [-127, 126],
  MXFP4: [-6, 6],
  TQ2_0: [-1, 1],
};

describe.each(kRounding)('%s', (type) => {
  it('rounds ties as the oracle does', () => {
    const { elements } = GGUF_TYPES[type];
    const [least, most] = kEnds[type];
    const random = generator(2);
    const w = Float32Array.from({ length: 64 * elements }, (_, i) => {
      if (i % elements < 2) return i % elements === 0 ? least : most;
      return least + random(4 * (most - least) + 1) / 4;
    });
    const { data } = quantizeToGguf(w, [64, elements], type);
    expect([...data]).toEqual([...encodeByOracle(type, w)]);
  });

  it('gives the bytes of the oracle', () => {
    const { elements } = GGUF_TYPES[type];
    for (let seed = 0; seed < 30; seed++) {
      const w = weights(elements * 4, seed, 10 ** ((seed % 8) - 4));
      if (seed % 3 === 0) w.fill(0, elements, 2 * elements);
      if (seed % 3 === 1) w.fill(w[0] as number, 0, elements);
      const { data } = quantizeToGguf(w, [4, elements], type);
      expect([...data]).toEqual([...encodeByOracle(type, w)]);
    }
  });
});

describe('the scales of NVFP4', () => {
  /** Decoded blocks whose groups have these bytes for scales. */
  const decoded = (byte: number, codes: readonly number[]): Float32Array =>
    decodeGguf('NVFP4', Uint8Array.of(byte, 0, 0, 0, ...codes)).subarray(0, 16);

  it('are the best of those next to a sixth of the largest weight', () => {
    const bytes = Array.from({ length: 127 }, (_, byte) => byte);
    const scales = bytes.map((byte) => decoded(byte, kTwos)[0] as number);
    const w = weights(64 * 32, 41);
    const mine = decodeGguf('NVFP4', quantizeToGguf(w, [32, 64], 'NVFP4').data);
    for (let from = 0; from < w.length; from += 16) {
      const group = w.subarray(from, from + 16);
      const wanted = Math.max(...group.map(Math.abs)) / 6;
      const off = (byte: number): number => Math.abs((scales[byte] as number) - wanted);
      const nearest = [...bytes].sort((a, b) => off(a) - off(b)).slice(0, 3);
      const errors = nearest.map((byte) => {
        const levels = decoded(byte, kAllCodes);
        const best = group.map((value) => Math.min(...levels.map((v) => Math.abs(v - value))));
        return meanSquare(best, new Float32Array(16));
      });
      const error = meanSquare(group, mine.subarray(from, from + 16));
      expect(error).toBeLessThanOrEqual(Math.min(...errors) * (1 + 1e-6));
    }
  });
});

describe.each(ggufBlockTypes)('%s', (type) => {
  const { elements } = GGUF_TYPES[type];

  it('quantises its own values again without a loss', () => {
    const w = weights(elements * 8, 5);
    const shape = [8, elements];
    const once = decodeGguf(type, quantizeToGguf(w, shape, type).data);
    const twice = decodeGguf(type, quantizeToGguf(once, shape, type).data);
    const lost = Math.sqrt(meanSquare(once, twice) / meanSquare(w, once));
    // Groups with a minimum, or without their largest level, have other scales that are nearly as good.
    expect(lost).toBeLessThan(/[245]_K|NVFP4/.test(type) ? 0.1 : 1e-3);
  });

  it('blocks of zeros, of one number, and of one other number', () => {
    const zeros = quantizeToGguf(new Float32Array(elements), [elements], type).data;
    expect([...decodeGguf(type, zeros)].every((value) => value === 0)).toBe(true);
    for (const value of [1, -1, 3e-5, -0.375]) {
      const same = new Float32Array(elements).fill(value);
      const decoded = decodeGguf(type, quantizeToGguf(same, [elements], type).data);
      const worst = Math.max(...decoded.map((each) => Math.abs(each - value)));
      // MXFP4's scale is a power of two, and the least one of NVFP4 is 2 ** -9.
      const room = type === 'MXFP4' ? 0.25 : type === 'NVFP4' ? 0.04 : 0.02;
      if (type !== 'NVFP4' || Math.abs(value) > 0.1) {
        expect(worst, `${value}`).toBeLessThanOrEqual(room * Math.abs(value));
      }
      const spike = new Float32Array(elements);
      spike[elements - 3] = value;
      const back = decodeGguf(type, quantizeToGguf(spike, [elements], type).data);
      // IQ4 has no level 0, and -127 is 127 times as far as the nearest one.
      const rest = Math.max(...back.map((each, i) => (i === elements - 3 ? 0 : Math.abs(each))));
      expect(rest, `${value}`).toBeLessThanOrEqual(0.02 * Math.abs(value));
    }
  });

  it('does not depend on the blocks around', () => {
    const w = weights(elements * 6, 9);
    const whole = quantizeToGguf(w, [2, 3 * elements], type);
    const parts = Array.from({ length: 6 }, (_, i) => {
      return [
        ...quantizeToGguf(w.subarray(i * elements, (i + 1) * elements), [elements], type).data,
      ];
    });
    expect([...whole.data]).toEqual(parts.flat());
  });

  it('weighs columns by their importance', () => {
    const [rows, K] = [6, 2 * elements];
    const w = weights(rows * K, 21);
    const importance = weights(K, 22).map((value) => 100 * value * value);
    const errorWith = (options: QuantizeToGgufOptions): number =>
      meanSquare(w, decodeGguf(type, quantizeToGguf(w, [rows, K], type, options).data), importance);
    const [plain, weighted] = [errorWith({}), errorWith({ importance })];
    if (['Q8_0', 'MXFP4', 'TQ2_0'].includes(type)) expect(weighted).toBe(plain);
    else expect(weighted).toBeLessThan(0.99 * plain);
    // All the same, and none at all, are the search without weights.
    const [ones, zeros] = [new Float32Array(K).fill(1), new Float32Array(K)];
    expect(errorWith({ importance: zeros })).toBe(errorWith({ importance: ones }));
  });

  it('search is no worse than rounding', () => {
    if (!['Q4_0', 'Q4_1', 'Q5_0', 'Q5_1'].includes(type)) return;
    const w = weights(elements * 16, 33);
    const importance = new Float32Array(elements).fill(1);
    const errorWith = (options: QuantizeToGgufOptions): number =>
      meanSquare(w, decodeGguf(type, quantizeToGguf(w, [16, elements], type, options).data));
    expect(errorWith({ importance })).toBeLessThan(errorWith({}));
  });
});

describe('what is refused', () => {
  const w = weights(512, 1);
  const importance = new Float32Array(256).fill(1);
  const changed = (values: Float32Array, at: number, value: number): Float32Array => {
    const copy = Float32Array.from(values);
    copy[at] = value;
    return copy;
  };
  it.each<[string, () => unknown, string, string]>([
    ['no values', () => quantizeToGguf([1] as never, [1], 'Q4_0'), 'ERR_TYPE', 'a Float32Array'],
    ['no shape', () => quantizeToGguf(w, 512 as never, 'Q4_0'), 'ERR_TYPE', 'shape must be'],
    ['no type', () => quantizeToGguf(w, [2, 256], 'F16' as never), 'ERR_DTYPE', 'got "F16"'],
    ['a type of code', () => quantizeToGguf(w, [2, 256], null as never), 'ERR_DTYPE', 'got null'],
    ['no options', () => quantizeToGguf(w, [2, 256], 'Q4_0', 1 as never), 'ERR_TYPE', 'options'],
    [
      'a row that blocks do not divide',
      () => quantizeToGguf(w, [4, 128], 'Q4_K'),
      'ERR_SHAPE',
      'shape must be one with rows of a multiple of 256 elements in Q4_K, got 128',
    ],
    ['another number', () => quantizeToGguf(w, [256], 'Q4_K'), 'ERR_SHAPE', 'got 512'],
    [
      'a NaN',
      () => quantizeToGguf(changed(w, 300, Number.NaN), [2, 256], 'Q4_K'),
      'ERR_NON_FINITE',
      'quantizeToGguf: values[300] must be finite, got NaN',
    ],
    [
      'a weight beyond f16',
      () => quantizeToGguf(changed(w, 300, 1e30), [2, 256], 'Q4_0'),
      'ERR_VALUE',
      'values of a block of Q4_0 must be small enough for a scale in f16, got larger ones from 288 on',
    ],
    [
      'a minimum beyond f16',
      () => quantizeToGguf(changed(w, 300, -1e6), [2, 256], 'Q4_1'),
      'ERR_VALUE',
      'larger ones from 288 on',
    ],
    [
      'importances of rows',
      () => quantizeToGguf(w, [2, 256], 'Q4_K', { importance: new Float32Array(2) }),
      'ERR_SHAPE',
      'importance must be 256 long, one a column, got 2',
    ],
    [
      'a list of importances',
      () => quantizeToGguf(w, [2, 256], 'Q4_K', { importance: [1] as never }),
      'ERR_TYPE',
      'importance must be a Float32Array',
    ],
    [
      'a negative importance',
      () => quantizeToGguf(w, [2, 256], 'Q4_K', { importance: changed(importance, 7, -1) }),
      'ERR_VALUE',
      'importance[7] must be finite and at least 0, got -1',
    ],
  ])('%s', (_, body, code, text) => {
    try {
      body();
    } catch (error) {
      expect((error as LowrankError).code).toBe(code);
      expect((error as Error).message).toContain(text);
      return;
    }
    throw new LowrankError('ERR_VALUE', 'nothing was thrown');
  });
});
