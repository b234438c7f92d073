import { describe, expect, it } from 'vitest';
import {
  type BitsandbytesState,
  formatBitsandbytes,
  type ParsedBitsandbytes,
  parseBitsandbytes,
} from '../../lib/checkpoint/bitsandbytes/bitsandbytes.js';
import type { RawTensor } from '../../lib/checkpoint/raw-tensor.js';
import { codeOf } from './raw-file.js';

type State = Record<string, RawTensor>;
const kStateKey = 'weight.quant_state.bitsandbytes__nf4';
const kNested = {
  nested_blocksize: 256,
  nested_dtype: 'float32',
  nested_offset: 0.25,
};

const f32 = (values: ArrayLike<number>): RawTensor => ({
  dtype: 'F32',
  shape: [values.length],
  data: Float32Array.from(values),
});
const u8 = (values: ArrayLike<number>): RawTensor => ({
  dtype: 'U8',
  shape: [values.length],
  data: Uint8Array.from(values),
});
const text = (json: string): RawTensor => u8(new TextEncoder().encode(json));
const ramp = (n: number) => Array.from({ length: n }, (_, i) => (i - (n - 1) / 2) / (n / 2));

/** 10 x 13 = 130 elements: three blocks of 64, the last of two elements. */
function plain(json: Record<string, unknown> = {}): State {
  const fields = { quant_type: 'nf4', blocksize: 64, dtype: 'bfloat16', shape: [10, 13], ...json };
  return {
    weight: { dtype: 'U8', shape: [65, 1], data: new Uint8Array(65).fill(0x7a) },
    'weight.absmax': f32([1, 2, 3]),
    'weight.quant_map': f32(ramp(16)),
    [kStateKey]: text(JSON.stringify(fields)),
  };
}

function nested(json: Record<string, unknown> = {}): State {
  return {
    ...plain({ ...kNested, ...json }),
    'weight.absmax': u8([0, 128, 255]),
    'weight.nested_absmax': f32([0.5]),
    'weight.nested_quant_map': f32(ramp(256)),
  };
}

const set = (key: string, tensor: RawTensor | undefined, base = plain()): State => {
  const state = { ...base };
  if (tensor === undefined) delete state[key];
  else state[key] = tensor;
  return state;
};
const map = (change: (values: number[]) => void): State => {
  const values = ramp(16);
  change(values);
  return set('weight.quant_map', f32(values));
};

/** Class -> a state of it; every one must be refused with ERR_FORMAT. */
const malformed: Record<string, () => State> = {
  'no quant_state': () => set(kStateKey, undefined),
  'two quant_states': () => ({
    ...plain(),
    'weight.quant_state.bitsandbytes__fp4': plain()[kStateKey] as RawTensor,
  }),
  'quant_state of another kind': () => {
    const { [kStateKey]: state, ...rest } = plain();
    return { ...rest, 'weight.quant_state.bitsandbytes__int8': state as RawTensor };
  },
  'key says fp4, JSON says nf4': () => {
    const { [kStateKey]: state, ...rest } = plain();
    return { ...rest, 'weight.quant_state.bitsandbytes__fp4': state as RawTensor };
  },
  'key and table say fp4, JSON says nf4': () => {
    const { [kStateKey]: state, ...rest } = plain();
    const magnitudes = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1];
    const table = f32([...magnitudes, ...magnitudes.map((value) => -value)]);
    const key = 'weight.quant_state.bitsandbytes__fp4';
    return { ...rest, 'weight.quant_map': table, [key]: state as RawTensor };
  },
  'quant_state not U8': () =>
    set(kStateKey, { dtype: 'I8', shape: [2], data: new Int8Array([0x7b, 0x7d]) }),
  'JSON truncated': () => set(kStateKey, text('{"quant_type": "nf4", "blocksize":')),
  'JSON with NaN': () => set(kStateKey, text('{"quant_type": "nf4", "blocksize": NaN}')),
  'JSON an array': () => set(kStateKey, text('[]')),
  'JSON null': () => set(kStateKey, text('null')),
  'JSON empty': () => set(kStateKey, text('')),
  'JSON not UTF-8': () => set(kStateKey, u8([0x7b, 0xff, 0x7d])),
  'JSON of 1 MB': () => set(kStateKey, text(`{"a":"${'x'.repeat(1e6)}"}`)),
  'unknown quant_type': () => plain({ quant_type: 'int4' }),
  'quant_type __proto__': () => plain({ quant_type: '__proto__' }),
  'unknown field': () => plain({ '\u001b[2J': 1 }),
  'blocksize 0': () => plain({ blocksize: 0 }),
  'blocksize 1': () => plain({ blocksize: 1 }),
  'blocksize 3': () => plain({ blocksize: 3 }),
  'blocksize -64': () => plain({ blocksize: -64 }),
  'blocksize 2^31': () => plain({ blocksize: 2 ** 31 }),
  'blocksize 65.5': () => plain({ blocksize: 65.5 }),
  'blocksize "64"': () => plain({ blocksize: '64' }),
  'blocksize missing': () => plain({ blocksize: undefined }),
  'dtype os': () => plain({ dtype: 'os' }),
  'dtype float13': () => plain({ dtype: 'float13' }),
  'dtype __class__': () => plain({ dtype: '__class__' }),
  'shape null': () => plain({ shape: null }),
  'shape empty': () => plain({ shape: [] }),
  'shape negative': () => plain({ shape: [-10, -13] }),
  'shape fractional': () => plain({ shape: [10.5, 13] }),
  'shape of text': () => plain({ shape: ['10', '13'] }),
  'shape does not fit the codes': () => plain({ shape: [10, 14] }),
  'shape overflows': () => plain({ shape: [2 ** 30, 2 ** 30] }),
  'shape wraps': () => plain({ shape: [2 ** 32, 2 ** 32] }),
  'shape [0, huge, huge]': () => ({
    ...plain({ shape: [0, 2 ** 52, 2 ** 52] }),
    weight: u8([]),
    'weight.absmax': f32([]),
  }),
  'rank 17': () => plain({ shape: new Array(17).fill(1) }),
  'absmax missing': () => set('weight.absmax', undefined),
  'absmax too short': () => set('weight.absmax', f32([1, 2])),
  'absmax too long': () => set('weight.absmax', f32([1, 2, 3, 4])),
  'absmax NaN': () => set('weight.absmax', f32([1, Number.NaN, 3])),
  'absmax infinite': () => set('weight.absmax', f32([1, 2, Number.POSITIVE_INFINITY])),
  'absmax negative': () => set('weight.absmax', f32([1, -2, 3])),
  'absmax U8 without nesting': () => set('weight.absmax', u8([1, 2, 3])),
  'codebook missing': () => set('weight.quant_map', undefined),
  'codebook of 15': () => set('weight.quant_map', f32(ramp(15))),
  'codebook of 256': () => set('weight.quant_map', f32(ramp(256))),
  'codebook NaN': () => map((values) => (values[3] = Number.NaN)),
  'codebook unsorted': () => map((values) => values.reverse()),
  'codebook with equal values': () => map((values) => (values[3] = values[2] as number)),
  'codebook above 1': () => map((values) => (values[15] = 1.5)),
  'weight missing': () => set('weight', undefined),
  'weight I8': () => set('weight', { dtype: 'I8', shape: [65, 1], data: new Int8Array(65) }),
  'weight F64': () => set('weight', { dtype: 'F64', shape: [8], data: new Float64Array(8) }),
  'weight one byte short': () => set('weight', u8(new Array(64).fill(0))),
  'weight one byte long': () => set('weight', u8(new Array(66).fill(0))),
  'data shorter than the shape': () =>
    set('weight', { dtype: 'U8', shape: [65, 1], data: new Uint8Array(64) }),
  'nested: absmax missing': () => set('weight.nested_absmax', undefined, nested()),
  'nested: quant_map missing': () => set('weight.nested_quant_map', undefined, nested()),
  'nested: blocksize missing': () => nested({ nested_blocksize: undefined }),
  'nested: blocksize 3': () => nested({ nested_blocksize: 3 }),
  'nested: dtype missing': () => nested({ nested_dtype: undefined }),
  'nested: dtype float64': () => nested({ nested_dtype: 'float64' }),
  'nested: offset missing': () => nested({ nested_offset: undefined }),
  'nested: offset null (NaN)': () => nested({ nested_offset: Number.NaN }),
  'nested: offset beyond f32': () => nested({ nested_offset: 1e300 }),
  'nested: offset text': () => nested({ nested_offset: '0.25' }),
  'nested: absmax too long': () => set('weight.nested_absmax', f32([1, 1]), nested()),
  'nested: absmax negative': () => set('weight.nested_absmax', f32([-1]), nested()),
  'nested: codes too short': () => set('weight.absmax', u8([1, 2]), nested()),
  'nested: absmax F32': () => set('weight.absmax', f32([1, 2, 3]), nested()),
  'nested: map of 16': () => set('weight.nested_quant_map', f32(ramp(16)), nested()),
  'nested: map unsorted': () => set('weight.nested_quant_map', f32(ramp(256).reverse()), nested()),
  'nested: map NaN': () =>
    set('weight.nested_quant_map', f32(ramp(256).fill(Number.NaN, 9, 10)), nested()),
  'nested tensors without nested fields': () =>
    set(kStateKey, plain()[kStateKey], { ...nested(), 'weight.absmax': f32([1, 2, 3]) }),
  'inherited keys only': () => Object.create(plain()) as State,
};

describe('hostile bitsandbytes states', () => {
  it.each(Object.keys(malformed))('refuses: %s', (name) => {
    expect(codeOf(() => parseBitsandbytes(malformed[name]?.() as State))).toBe('ERR_FORMAT');
  });

  it('accepts the states that the others are made from', () => {
    for (const state of [
      plain(),
      nested(),
      plain({ dtype: 'float16' }),
      { ...plain(), bias: f32([1]) },
    ]) {
      expect(codeOf(() => parseBitsandbytes(state))).toBe('no error');
    }
    expect(parseBitsandbytes(nested()).absmax).toMatchObject({
      offset: 0.25,
      nestedBlocksize: 256,
    });
  });

  it('accepts an odd number of elements and none at all', () => {
    const odd = {
      ...plain({ shape: [3, 3] }),
      weight: u8([1, 2, 3, 4, 5]),
      'weight.absmax': f32([1]),
    };
    expect(parseBitsandbytes(odd).codes).toEqual(new Uint8Array([1, 2, 3, 4, 5]));
    const none = { ...plain({ shape: [0, 3] }), weight: u8([]), 'weight.absmax': f32([]) };
    expect(parseBitsandbytes(none).codes).toHaveLength(0);
  });

  it('copies: neither direction shares memory', () => {
    const state = plain();
    const parsed = parseBitsandbytes(state);
    (state.weight as RawTensor).data.fill(0 as never);
    expect(parsed.codes[0]).toBe(0x7a);
    const written = formatBitsandbytes(parsed);
    parsed.codes.fill(1);
    expect((written.weight as RawTensor).data[0]).toBe(0x7a);
  });

  it('writes back what it read', () => {
    for (const state of [plain(), nested()] as BitsandbytesState[]) {
      const parsed = parseBitsandbytes(state);
      expect(parseBitsandbytes(formatBitsandbytes(parsed))).toEqual(parsed);
    }
  });

  it('does not write what it would not read', () => {
    const parsed = parseBitsandbytes(plain());
    const bad: Partial<ParsedBitsandbytes>[] = [
      { blocksize: 48 },
      { shape: [10, 14] },
      { shape: [-1] },
      { codes: new Uint8Array(64) },
      { absmax: new Float32Array(2) },
      { codebook: new Float32Array(15) },
      { format: 'int4' as never },
      { dtype: 'f64' as never },
      { quantStorage: 'F32' },
    ];
    for (const change of bad) {
      expect([change, codeOf(() => formatBitsandbytes({ ...parsed, ...change }))]).toEqual([
        change,
        'ERR_FORMAT',
      ]);
    }
  });
});
