import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import {
  type BitsandbytesState,
  formatBitsandbytes,
  isNestedAbsmax,
  joinBitsandbytes,
  type ParsedBitsandbytes,
  parseBitsandbytes,
  splitBitsandbytes,
} from '../../lib/checkpoint/bitsandbytes/bitsandbytes.js';
import { formatRowInt8, parseRowInt8 } from '../../lib/checkpoint/bitsandbytes/row-int8-state.js';
import { pythonFloatRepr, pythonJson } from '../../lib/checkpoint/python-json.js';
import { bytesOf, type RawTensor, rawToFloat32 } from '../../lib/checkpoint/raw-tensor.js';
import { encodeSafetensors, readSafetensors } from '../../lib/checkpoint/safetensors.js';
import { codeOf } from './raw-file.js';

const kGolden = fileURLToPath(new URL('../golden/quant/', import.meta.url));
const golden = (name: string) =>
  new Uint8Array(fs.readFileSync(path.join(kGolden, `${name}.safetensors`)));

/** One f32 rounding per operation, as the definition has it. */
function dequantise(parsed: ParsedBitsandbytes): Float32Array {
  const { codes, codebook, absmax, blocksize, shape } = parsed;
  const values = new Float32Array(shape.reduce((product, dim) => product * dim, 1));
  for (let i = 0; i < values.length; i++) {
    const byte = codes[i >> 1] as number;
    const code = i % 2 === 0 ? byte >> 4 : byte & 15;
    const block = Math.floor(i / blocksize);
    let scale: number;
    if (isNestedAbsmax(absmax)) {
      const level = absmax.absmaxCodebook[absmax.absmax8bit[block] as number] as number;
      const nested = absmax.nestedAbsmax[Math.floor(block / absmax.nestedBlocksize)] as number;
      scale = Math.fround(Math.fround(level * nested) + Math.fround(absmax.offset));
    } else {
      scale = absmax[block] as number;
    }
    values[i] = (codebook[code] as number) * scale;
  }
  return values;
}

function toBf16(value: number): number {
  const bits = new Uint32Array(new Float32Array([value]).buffer)[0] as number;
  const rounded = (bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000;
  return new Float32Array(new Uint32Array([rounded]).buffer)[0] as number;
}

describe('checkpoints that bitsandbytes wrote', () => {
  it.each([
    ['state_dict_nf4_dq', 'nf4', 'bf16', true],
    ['state_dict_fp4', 'fp4', 'f32', false],
    ['state_dict_nf4_dq_storage_bf16', 'nf4', 'bf16', true],
  ] as const)(
    '%s: parses, dequantises exactly and is written back byte for byte',
    (name, format, dtype, nested) => {
      const file = golden(name);
      const { tensors } = readSafetensors(file);
      const split = splitBitsandbytes(tensors);
      expect([...split.layers.keys()].sort()).toEqual(['fc1', 'fc2']);
      expect([...split.rest.keys()]).toEqual(['fc1.bias']);
      const expected = readSafetensors(golden(`${name}.expected`)).tensors;
      const written = new Map<string, BitsandbytesState>();
      for (const [layer, state] of split.layers) {
        const parsed = parseBitsandbytes(state);
        expect(parsed).toMatchObject({ format, dtype, blocksize: 64 });
        expect(isNestedAbsmax(parsed.absmax)).toBe(nested);
        const reference = expected.get(`out.${layer}.weight`) as RawTensor;
        expect(parsed.shape).toEqual(reference.shape);
        const values = dequantise(parsed);
        const rounded = dtype === 'bf16' ? values.map(toBf16) : values;
        // The peer's own tolerance: equal as numbers, so that -0 is 0.
        const unsigned = (zeros: Float32Array) => zeros.map((value) => value + 0);
        expect(unsigned(rounded)).toEqual(unsigned(rawToFloat32(reference)));
        written.set(layer, formatBitsandbytes(parsed));
      }
      const joined = joinBitsandbytes({ layers: written, rest: split.rest });
      expect(encodeSafetensors(joined)).toEqual(file);
    },
  );

  it('keeps the keys in the order of the peer', () => {
    const { layers } = splitBitsandbytes(readSafetensors(golden('state_dict_nf4_dq')).tensors);
    const parsed = parseBitsandbytes(layers.get('fc1') as BitsandbytesState);
    expect(Object.keys(formatBitsandbytes(parsed))).toEqual([
      'weight',
      'weight.absmax',
      'weight.quant_map',
      'weight.nested_absmax',
      'weight.nested_quant_map',
      'weight.quant_state.bitsandbytes__nf4',
    ]);
  });

  it('reads the same codes under every storage dtype', () => {
    const { tensors } = readSafetensors(golden('q4_quant_storage'));
    const { layers } = splitBitsandbytes(readSafetensors(golden('state_dict_nf4_dq')).tensors);
    const base = parseBitsandbytes(layers.get('fc1') as BitsandbytesState);
    const codes = bytesOf((tensors.get('out.packed_u8') as RawTensor).data);
    for (const storage of ['U8', 'BF16', 'F16', 'F32'] as const) {
      const weight = tensors.get(`out.packed_${storage.toLowerCase()}`) as RawTensor;
      const state = formatBitsandbytes({
        ...base,
        shape: [384],
        codes,
        absmax: new Float32Array(6).fill(1),
        quantStorage: storage,
      });
      expect(state.weight?.shape).toEqual(weight.shape);
      expect(bytesOf(state.weight?.data as Uint8Array)).toEqual(bytesOf(weight.data));
      const parsed = parseBitsandbytes({ ...state, weight });
      expect(parsed.codes).toEqual(codes);
      expect(parsed.quantStorage).toBe(storage);
    }
  });
});

describe('int8 layers', () => {
  const layer = (): Record<string, RawTensor> => ({
    weight: { dtype: 'I8', shape: [2, 3], data: new Int8Array([1, -2, 127, 0, 5, -127]) },
    SCB: { dtype: 'F32', shape: [2], data: new Float32Array([0.5, 2]) },
    weight_format: { dtype: 'U8', shape: [], data: new Uint8Array(1) },
  });

  it('parses and is written back', () => {
    const parsed = parseRowInt8(layer());
    expect(parsed).toEqual({
      rows: { codes: layer().weight?.data, absmax: layer().SCB?.data },
      shape: [2, 3],
    });
    expect(formatRowInt8(parsed.rows, parsed.shape)).toEqual(layer());
    const { weight_format, ...older } = layer();
    expect(weight_format).toBeDefined();
    expect(parseRowInt8(older)).toEqual(parsed);
  });

  it.each<[string, (state: Record<string, RawTensor>) => void]>([
    ['no weight', (s) => delete s.weight],
    ['no SCB', (s) => delete s.SCB],
    [
      'weight of rank 1',
      (s) => {
        s.weight = { dtype: 'I8', shape: [6], data: new Int8Array(6) };
      },
    ],
    [
      'weight U8',
      (s) => {
        s.weight = { dtype: 'U8', shape: [2, 3], data: new Uint8Array(6) };
      },
    ],
    [
      'SCB too long',
      (s) => {
        s.SCB = { dtype: 'F32', shape: [3], data: new Float32Array(3) };
      },
    ],
    [
      'SCB NaN',
      (s) => {
        s.SCB = { dtype: 'F32', shape: [2], data: new Float32Array([1, Number.NaN]) };
      },
    ],
    [
      'SCB negative',
      (s) => {
        s.SCB = { dtype: 'F32', shape: [2], data: new Float32Array([1, -1]) };
      },
    ],
    [
      'another layout',
      (s) => {
        s.weight_format = { dtype: 'U8', shape: [], data: new Uint8Array([2]) };
      },
    ],
    [
      'two layouts',
      (s) => {
        s.weight_format = { dtype: 'U8', shape: [2], data: new Uint8Array(2) };
      },
    ],
  ])('refuses: %s', (_, damage) => {
    const state = layer();
    damage(state);
    expect(codeOf(() => parseRowInt8(state))).toBe('ERR_FORMAT');
  });
});

describe('Python text', () => {
  it('writes floats as repr does', () => {
    const pairs: [number, string][] = [
      [0, '0.0'],
      [-0, '-0.0'],
      [1, '1.0'],
      [-2.5, '-2.5'],
      [0.0001, '0.0001'],
      [0.00001, '1e-05'],
      [1.5e-7, '1.5e-07'],
      [1e15, '1000000000000000.0'],
      [1e16, '1e+16'],
      [1.25e100, '1.25e+100'],
      [5e-324, '5e-324'],
      [0.2098490446805954, '0.2098490446805954'],
      [123456789012345680, '1.2345678901234568e+17'],
    ];
    for (const [value, text] of pairs) expect(pythonFloatRepr(value)).toBe(text);
  });

  it('writes JSON as json.dumps does', () => {
    const value = new Map([
      ['a', [1, null, true]],
      ['ä"\u{1f600}', new Map()],
    ] as [string, never][]);
    expect(pythonJson(value)).toBe('{"a": [1, null, true], "\\u00e4\\"\\ud83d\\ude00": {}}');
    expect(pythonJson(new Map([['a', [1, 2]]]), 2)).toBe('{\n  "a": [\n    1,\n    2\n  ]\n}');
  });
});
