// Layers whose fields contradict each other: one typed error that names both, and nothing larger than the tensors hold.
import { describe, expect, it } from 'vitest';
import {
  type LayerTensors,
  LowrankError,
  type QuantizationConfig,
  quantizedLayers,
  readQuantizedLayer,
} from '../../../lib/index.js';
import { layerCases } from './cases.js';

const cases = layerCases(quantizedLayers);
type Raw = LayerTensors[string];
type Dtype = Raw['dtype'];

const kBytes: Partial<Record<Dtype, number>> = { F64: 8, I64: 8, F32: 4, I32: 4, F16: 2, BF16: 2 };
/** A tensor of zeros. */
const zeros = (dtype: Dtype, ...shape: number[]): Raw => ({
  dtype,
  shape,
  data: new Uint8Array(shape.reduce((size, dim) => size * dim, kBytes[dtype] ?? 1)),
});
const int32 = (...values: number[]): Raw => ({
  dtype: 'I32',
  shape: [values.length],
  data: Int32Array.from(values),
});
const scalar = (value: number): Raw => ({ ...int32(value), shape: [] });
const int64 = (...values: number[]): Raw => ({
  dtype: 'I64',
  shape: [values.length],
  data: BigInt64Array.from(values, BigInt),
});
const text = (value: string): Raw => {
  const data = new TextEncoder().encode(value);
  return { dtype: 'U8', shape: [data.length], data };
};

interface Row {
  readonly of: string;
  readonly set?: Readonly<Record<string, Raw | undefined>>;
  readonly config?: QuantizationConfig;
  readonly code: LowrankError['code'];
  readonly says: readonly string[];
}

const row = (
  of: string,
  set: Row['set'],
  code: Row['code'],
  says: readonly string[],
  config?: QuantizationConfig,
): Row => ({
  of,
  ...(set === undefined ? {} : { set }),
  code,
  says,
  ...(config === undefined ? {} : { config }),
});

const kGptq = 'gptq/w4_g32_asym_v1'; // N = 32, K = 96, 3 groups
const kOrdered = 'gptq/w4_g64_sym_v1_actorder'; // N = 32, K = 128
const kAwq = 'awq/w4_g32'; // N = 96, K = 96
const kGemv = 'awq/w4_gemv'; // N = 32, K = 128, groups of 64
const kHqq = 'hqq/w4_g64_axis1'; // N = 32, K = 128
const kHqq3 = 'hqq/w3_g64_axis1'; // N = 24, K = 128
const kPacked = 'compressed_tensors/w4a16_asym_g32'; // N = 24, K = 96
const kPackedOrder = 'compressed_tensors/w4a16_actorder'; // N = 16, K = 128
const kInt = 'compressed_tensors/w8a8_channel'; // N = 20, K = 100
const kTiles = 'fp8/block128_ragged'; // N = 130, K = 132
const kRows = 'fp8/channel_f32'; // N = 33, K = 100
const kOss = 'mx/gptoss_decode'; // [2, 6, 3, 16]
const kMx = 'mx/mxfp4_floor'; // N = 22, K = 64
const kModelopt = 'nvfp4/modelopt'; // N = 10, K = 96
const kCtNv = 'nvfp4/compressed_tensors_f32'; // N = 14, K = 64
const kBnb = 'folder/bnb_nf4, model.layers.0.self_attn.q_proj';
const kState = 'weight.quant_state.bitsandbytes__nf4';

const rows: readonly Row[] = [
  // GPTQ
  row(kGptq, { g_idx: int32(...new Array<number>(96).fill(3)) }, 'ERR_FORMAT', [
    'g_idx',
    '0 to 2',
    '3 at 0',
  ]),
  row(kGptq, { g_idx: int32(...new Array<number>(96).fill(-1)) }, 'ERR_FORMAT', [
    'g_idx',
    '-1 at 0',
  ]),
  row(kGptq, { g_idx: int32(0, 1, 2) }, 'ERR_SHAPE', ['g_idx', '[96]', 'qweight', '[3]']),
  row(kGptq, { g_idx: zeros('I64', 96) }, 'ERR_DTYPE', ['g_idx', 'I32', 'I64']),
  row(kGptq, { qzeros: undefined }, 'ERR_FORMAT', ['qzeros', 'only', '"qweight"']),
  row(kGptq, { scales: zeros('F16', 3, 31) }, 'ERR_SHAPE', [
    'scales',
    'qweight [12, 32]',
    '[3, 31]',
  ]),
  row(kGptq, { scales: zeros('I32', 3, 32) }, 'ERR_DTYPE', ['scales', 'F16', 'I32']),
  row(kGptq, { scales: zeros('F16', 3, 0) }, 'ERR_SHAPE', ['scales', 'at least 1', '[3, 0]']),
  row(kGptq, { qzeros: zeros('I32', 2, 4) }, 'ERR_SHAPE', ['qzeros', 'scales [3, 32]', '[2, 4]']),
  row(kGptq, { qzeros: zeros('I32', 3, 5) }, 'ERR_SHAPE', [
    'qzeros',
    '2, 3, 4 or 8 bits',
    '[3, 5]',
  ]),
  row(kGptq, { qzeros: zeros('I32', 3, 3) }, 'ERR_FORMAT', [
    'bits in the config',
    '3, as qzeros',
    'got 4',
  ]),
  row(kGptq, { weight_scale: zeros('F32', 1) }, 'ERR_FORMAT', ['weight_scale', 'absent', 'gptq']),
  row(kGptq, undefined, 'ERR_FORMAT', ['bits in the config', '4, as qzeros [3, 4]', 'got 8'], {
    bits: 8,
  }),
  row(kGptq, undefined, 'ERR_FORMAT', ['bits in the config', 'integer', '"four"'], {
    bits: 'four',
  }),
  row(kGptq, undefined, 'ERR_FORMAT', ['group_size', '32, as g_idx', 'got 64'], { group_size: 64 }),
  row(kGptq, undefined, 'ERR_FORMAT', ['group_size', 'got 0'], { group_size: 0 }),
  row(kGptq, { g_idx: undefined }, 'ERR_FORMAT', ['group_size', '3 groups', 'got 16'], {
    group_size: 16,
  }),
  row(kGptq, undefined, 'ERR_FORMAT', ['checkpoint_format', 'gptq_v2', 'gptq_v3'], {
    checkpoint_format: 'gptq_v3',
  }),
  row(kOrdered, undefined, 'ERR_FORMAT', ['g_idx', 'desc_act: false', 'another order'], {
    desc_act: false,
  }),
  row(kOrdered, { g_idx: undefined }, 'ERR_FORMAT', ['g_idx', 'desc_act', 'none']),
  row(kOrdered, undefined, 'ERR_FORMAT', ['group_size', '2 groups', 'got 32'], { group_size: 32 }),
  row(kGptq, undefined, 'ERR_FORMAT', ['quant_method', 'gptq', '"awq"'], { quant_method: 'awq' }),
  row(
    kGptq,
    undefined,
    'ERR_FORMAT',
    ['quant_method', 'gptq', '"compressed-tensors" with format "pack-quantized"'],
    { quant_method: 'compressed-tensors', format: 'pack-quantized' },
  ),
  // AWQ
  row(kAwq, { scales: zeros('F16', 3, 95) }, 'ERR_SHAPE', [
    'scales',
    '[3, 96]',
    'qweight [96, 12]',
  ]),
  row(kAwq, { scales: zeros('F16', 5, 96), qzeros: zeros('I32', 5, 12) }, 'ERR_SHAPE', [
    'scales',
    'K = 96',
    '5 groups',
  ]),
  row(kAwq, { qzeros: zeros('I32', 3, 11) }, 'ERR_SHAPE', ['qzeros', '[3, 12]', 'scales [3, 96]']),
  row(kAwq, undefined, 'ERR_FORMAT', ['group_size', '32, as scales [3, 96]', 'got 64'], {
    group_size: 64,
  }),
  row(kAwq, undefined, 'ERR_FORMAT', ['bits in the config', '4', 'got 3'], { bits: 3 }),
  row(kAwq, undefined, 'ERR_FORMAT', ['version', 'gemm or gemv', 'other'], { version: 'other' }),
  row(kAwq, undefined, 'ERR_FORMAT', ['quant_method', 'awq', '"gptq"'], { quant_method: 'gptq' }),
  row(kGemv, undefined, 'ERR_FORMAT', ['group_size', 'padded', 'none'], { group_size: null }),
  row(kGemv, undefined, 'ERR_FORMAT', ['group_size', '128 columns', 'got 48'], { group_size: 48 }),
  row(kGemv, { qzeros: zeros('I32', 32, 3) }, 'ERR_SHAPE', ['qzeros', '[32, 2]', '2 groups of 64']),
  row(
    kGemv,
    { scales: { ...zeros('F16', 32, 16), data: new Uint16Array(512).fill(1) } },
    'ERR_FORMAT',
    ['scales', 'padding', '1 at 2'],
  ),
  row(kGemv, undefined, 'ERR_SHAPE', ['scales', '[32, 128]', 'version gemm'], { version: 'gemm' }),
  // HQQ
  row(kHqq, { shape: int64(32, 2 ** 40) }, 'ERR_SHAPE', ['W_q', 'bytes', 'U8[32, 64]']),
  row(kHqq, { shape: int64(0, 128) }, 'ERR_SHAPE', ['shape', 'positive', '[0, 128]']),
  row(kHqq, { shape: int64(-32, 128) }, 'ERR_SHAPE', ['shape', 'positive', '[-32, 128]']),
  row(kHqq, { shape: int64(32, 128, 1) }, 'ERR_SHAPE', ['shape', '[2]', '[3]']),
  row(kHqq, { nbits: scalar(5) }, 'ERR_FORMAT', ['nbits', '1, 2, 3, 4 or 8', 'got 5']),
  row(kHqq, { nbits: scalar(8) }, 'ERR_SHAPE', ['W_q', '4096 bytes', '8 bits', 'U8[32, 64]']),
  row(kHqq, { nbits: scalar(3) }, 'ERR_DTYPE', ['W_q', 'I32', 'U8']),
  row(kHqq, { nbits: int32(4, 4) }, 'ERR_SHAPE', ['nbits', 'one value', '[2]']),
  row(kHqq, { axis: scalar(2) }, 'ERR_FORMAT', ['axis', '0 or 1', 'got 2']),
  row(kHqq, { axis: scalar(0) }, 'ERR_SHAPE', ['scale', '[1, 64]', 'axis 0', '[64, 1]']),
  row(kHqq, { group_size: scalar(0) }, 'ERR_FORMAT', [
    'group_size',
    'divisor of the 4096',
    'got 0',
  ]),
  row(kHqq, { group_size: scalar(48) }, 'ERR_FORMAT', [
    'group_size',
    'divisor of the 4096',
    'got 48',
  ]),
  row(kHqq, { group_size: scalar(32) }, 'ERR_SHAPE', ['scale', '[128, 1]', '[64, 1]']),
  row(kHqq, { zero: zeros('F16', 64, 2) }, 'ERR_SHAPE', ['zero', '[64, 1]', '[64, 2]']),
  row(kHqq, { zero: zeros('U8', 64, 1) }, 'ERR_DTYPE', ['zero', 'F16', 'U8']),
  row(kHqq, { axis: undefined }, 'ERR_FORMAT', ['axis', 'a tensor']),
  row(kHqq, { quant_scale: scalar(1) }, 'ERR_UNSUPPORTED', [
    'quant_scale',
    'quantise the model again',
  ]),
  row(
    kHqq3,
    { W_q: { ...zeros('I32', 5, 64), data: new Int32Array(320).fill(2 ** 30 - 1) } },
    'ERR_FORMAT',
    ['W_q', 'padding', 'got 7'],
  ),
  row(
    kHqq3,
    { W_q: { ...zeros('I32', 5, 64), data: new Int32Array(320).fill(2 ** 30) } },
    'ERR_FORMAT',
    ['W_q', 'below 2^30'],
  ),
  // compressed-tensors, integers
  row(kPacked, { weight_shape: int64(23, 96) }, 'ERR_SHAPE', [
    'weight_shape',
    '[24, K]',
    'weight_packed [24, 12]',
    '[23, 96]',
  ]),
  row(kPacked, { weight_shape: int64(24, 0) }, 'ERR_SHAPE', ['weight_shape', '[24, 0]']),
  row(kPacked, { weight_shape: int64(24, 2 ** 50) }, 'ERR_SHAPE', [
    'weight_packed',
    'K = 1125899906842624',
    '[24, 12]',
  ]),
  row(kPacked, { weight_shape: int64(24, 128) }, 'ERR_FORMAT', [
    'num_bits',
    '3, as weight_packed [24, 12]',
    'got 4',
  ]),
  row(kPacked, { weight_shape: undefined }, 'ERR_FORMAT', ['weight_shape', 'a tensor']),
  row(kPacked, { weight_scale: zeros('BF16', 24, 4) }, 'ERR_SHAPE', [
    'weight_scale',
    '[24, 3]',
    'groups of 32',
    '[24, 4]',
  ]),
  row(kPacked, { weight_zero_point: zeros('I32', 3, 4) }, 'ERR_SHAPE', [
    'weight_zero_point',
    '[3, 3]',
    'weight_scale [24, 3]',
  ]),
  row(kPacked, { weight_zero_point: zeros('I8', 24, 3) }, 'ERR_DTYPE', [
    'weight_zero_point',
    'I32',
    'I8',
  ]),
  row(kPacked, { weight_zero_point: undefined }, 'ERR_FORMAT', [
    'weight_zero_point',
    'symmetric: false',
    'none',
  ]),
  row(kPackedOrder, { weight_g_idx: undefined }, 'ERR_FORMAT', [
    'weight_g_idx',
    'actorder: group',
    'none',
  ]),
  row(kPackedOrder, { weight_g_idx: int32(...new Array<number>(128).fill(4)) }, 'ERR_FORMAT', [
    'weight_g_idx',
    '0 to 3',
    '4 at 0',
  ]),
  row(kPackedOrder, { weight_g_idx: int32(...new Array<number>(127).fill(-1), 4) }, 'ERR_FORMAT', [
    'weight_g_idx',
    '0 to 3',
    'or -1 for none',
    'got 4 at 127',
  ]),
  row(kPackedOrder, { weight_g_idx: zeros('I32', 127) }, 'ERR_SHAPE', [
    'weight_g_idx',
    '[128]',
    'K = 128',
    '[127]',
  ]),
  row(
    'compressed_tensors/w8a16_channel',
    { weight_packed: { ...zeros('I32', 17, 18), data: new Int32Array(306).fill(-1) } },
    'ERR_FORMAT',
    ['weight_packed', 'padding', '255 at'],
  ),
  row(kInt, { weight_scale: zeros('BF16', 20, 3) }, 'ERR_SHAPE', [
    'weight_scale',
    '[20, 1]',
    'channel',
    '[20, 3]',
  ]),
  row(kInt, { weight_zero_point: zeros('I8', 19, 1) }, 'ERR_SHAPE', [
    'weight_zero_point',
    '[20, 1]',
    '[19, 1]',
  ]),
  row(kInt, { weight: zeros('BF16', 20, 100) }, 'ERR_FORMAT', ['known layout', 'weight BF16']),
  // FP8
  row(kTiles, undefined, 'ERR_FORMAT', ['weight_scale_inv', 'powers of two', 'scale_fmt ue8m0'], {
    scale_fmt: 'ue8m0',
  }),
  row(
    kTiles,
    { weight_scale_inv: zeros('F32', 2, 2) },
    'ERR_FORMAT',
    ['powers of two', 'got 0 at 0'],
    {
      scale_fmt: 'ue8m0',
    },
  ),
  row(kTiles, { weight_scale_inv: zeros('F32', 1, 2) }, 'ERR_SHAPE', [
    'weight_scale_inv',
    '[2, 2]',
    '128 x 128',
    '[1, 2]',
  ]),
  row(kTiles, undefined, 'ERR_SHAPE', ['weight_scale_inv', '[3, 3]', '64 x 64', '[2, 2]'], {
    weight_block_size: [64, 64],
  }),
  row(kTiles, undefined, 'ERR_FORMAT', ['weight_block_size', 'two positive', '0'], {
    weight_block_size: 0,
  }),
  row(kTiles, undefined, 'ERR_FORMAT', ['weight_block_size', 'two positive', 'list'], {
    weight_block_size: [128, 0],
  }),
  row(kTiles, undefined, 'ERR_FORMAT', ['fmt in the config', 'F8_E4M3', '"e5m2"'], { fmt: 'e5m2' }),
  row(kTiles, { weight_scale: zeros('F32', 1) }, 'ERR_FORMAT', ['weight_scale', 'absent', 'fp8']),
  row(kTiles, { weight_scale_inv: zeros('I32', 2, 2) }, 'ERR_DTYPE', [
    'weight_scale_inv',
    'F32',
    'I32',
  ]),
  row(kRows, { weight_scale: zeros('F32', 32, 1) }, 'ERR_SHAPE', [
    'weight_scale',
    '[33, 1]',
    'channel',
    '[32, 1]',
  ]),
  row(kRows, { weight: zeros('F8_E4M3', 33, 0) }, 'ERR_SHAPE', ['weight', 'at least 1', '[33, 0]']),
  row(kRows, { weight: zeros('F8_E4M3', 3300) }, 'ERR_SHAPE', [
    'weight',
    'two dimensions',
    '[3300]',
  ]),
  // MXFP4 and NVFP4
  row(kOss, { _scales: zeros('U8', 2, 6, 2) }, 'ERR_SHAPE', [
    '_scales',
    '[2, 6, 3]',
    '_blocks [2, 6, 3, 16]',
  ]),
  row(kOss, { _blocks: zeros('U8', 2, 6, 3, 8) }, 'ERR_SHAPE', [
    '_blocks',
    'K / 32, 16',
    '[2, 6, 3, 8]',
  ]),
  row(kOss, { _scales: undefined }, 'ERR_FORMAT', ['_scales', 'only "_blocks"']),
  row(kMx, { weight_scale: zeros('U8', 22, 3) }, 'ERR_SHAPE', [
    'weight_scale',
    '[22, 2]',
    'weight_packed [22, 32]',
  ]),
  row(kMx, { weight_packed: zeros('U8', 22, 31) }, 'ERR_SHAPE', [
    'weight_packed',
    '16 bytes',
    '[22, 31]',
  ]),
  row(
    kModelopt,
    { weight_scale_2: { dtype: 'F32', shape: [], data: Float32Array.of(Number.NaN) } },
    'ERR_FORMAT',
    ['weight_scale_2', 'finite', 'NaN'],
  ),
  row(kModelopt, { weight_scale_2: zeros('F32', 2) }, 'ERR_SHAPE', [
    'weight_scale_2',
    '[1]',
    '[2]',
  ]),
  row(kModelopt, { weight_scale_2: zeros('BF16', 1) }, 'ERR_DTYPE', [
    'weight_scale_2',
    'F32',
    'BF16',
  ]),
  row(kModelopt, { weight_scale: zeros('F8_E4M3', 10, 5) }, 'ERR_SHAPE', [
    'weight_scale',
    '[10, 6]',
    'weight [10, 48]',
  ]),
  row(kModelopt, { weight: zeros('U8', 10, 47) }, 'ERR_SHAPE', ['weight', '8 bytes', '[10, 47]']),
  row(kModelopt, undefined, 'ERR_FORMAT', ['group_size', '16', 'got 32'], { group_size: 32 }),
  row(kModelopt, undefined, 'ERR_FORMAT', ['quant_method', 'modelopt-nvfp4', '"fp8"'], {
    quant_method: 'fp8',
  }),
  row(kCtNv, { weight_global_scale: undefined }, 'ERR_FORMAT', [
    'weight_packed U8',
    'known layout',
  ]),
  row(kCtNv, { weight_scale: zeros('U8', 14, 4) }, 'ERR_DTYPE', ['weight_scale', 'F8_E4M3', 'U8']),
  // bitsandbytes
  row(kBnb, { 'weight.absmax': zeros('U8', 63) }, 'ERR_FORMAT', ['weight.absmax', '64', '63']),
  row(kBnb, { weight: zeros('U8', 2047, 1) }, 'ERR_FORMAT', ['weight', '2048 bytes', '2047']),
  row(kBnb, { [kState]: text('{"quant_type": "nf4"}') }, 'ERR_FORMAT', ['quant_state', 'got']),
  row(kBnb, undefined, 'ERR_FORMAT', ['bnb_4bit_quant_type', 'nf4', '"fp4"'], {
    bnb_4bit_quant_type: 'fp4',
  }),
  // What is no tensor, and what is not read
  row(kGptq, { scales: { ...zeros('F16', 3, 32), data: new Uint8Array(7) } }, 'ERR_SHAPE', [
    'scales',
    '192 bytes',
    '7 bytes',
  ]),
  row(kGptq, { qweight: undefined }, 'ERR_FORMAT', ['known layout', 'qzeros I32']),
  ...['eetq', 'AQLM', 'vptq', 'quip', 'spqr', 'higgs', 'torchao', 'auto-round'].map(
    (quant_method) =>
      row(
        kGptq,
        undefined,
        'ERR_UNSUPPORTED',
        [quant_method, 'not read because', 'take the model in'],
        { quant_method },
      ),
  ),
  row(kPacked, undefined, 'ERR_UNSUPPORTED', ['format', 'marlin-24'], { format: 'marlin-24' }),
  row(kPacked, undefined, 'ERR_UNSUPPORTED', ['sparse-24-bitmask'], {
    format: 'sparse-24-bitmask',
  }),
  row(kGptq, undefined, 'ERR_UNSUPPORTED', ['checkpoint_format', 'marlin'], {
    checkpoint_format: 'marlin',
  }),
  row(kAwq, undefined, 'ERR_UNSUPPORTED', ['version', 'gemv_fast'], { version: 'gemv_fast' }),
  row(kTiles, undefined, 'ERR_UNSUPPORTED', ['fmt', 'e4m3fnuz'], { fmt: 'e4m3fnuz' }),
];

function caseOf(id: string) {
  const found = cases.find((golden) => golden.id === `formats/${id}`);
  if (found === undefined) throw new Error(`no case ${id}`);
  return found;
}

describe('layers that contradict themselves', () => {
  it.each(rows.map((entry, i) => ({ ...entry, i })))(
    '$i $of: $says',
    ({ of, set, config, code, says }) => {
      const golden = caseOf(of);
      const merged = Object.entries({ ...golden.tensors, ...set });
      const tensors = Object.fromEntries(merged.filter(([, tensor]) => tensor !== undefined));
      let caught: unknown;
      try {
        readQuantizedLayer(tensors as LayerTensors, { ...golden.config, ...config }, 'a.layer');
      } catch (error) {
        caught = error;
      }
      expect(caught).toBeInstanceOf(LowrankError);
      const { message, code: actual } = caught as LowrankError;
      expect(`${actual} ${message}`).toContain(`${code} `);
      for (const part of says) expect(message).toContain(part);
      // The next call works.
      readQuantizedLayer(golden.tensors, golden.config);
    },
  );

  it('rejects what is no layer by type', () => {
    for (const wrong of [null, 3, [], 'x']) {
      expect(() => readQuantizedLayer(wrong as never)).toThrow(TypeError);
      expect(() => readQuantizedLayer({}, wrong as never)).toThrow(TypeError);
      expect(() => quantizedLayers(wrong as never)).toThrow(TypeError);
      expect(() => quantizedLayers(new Map([['x', wrong]]) as never)).toThrow(TypeError);
    }
    expect(() => readQuantizedLayer({})).toThrow('known layout');
    expect(() => readQuantizedLayer({ qweight: {} } as never)).toThrow(LowrankError);
    expect(() => readQuantizedLayer({}, {}, 3 as never)).toThrow(TypeError);
  });
});
