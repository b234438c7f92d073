/** Integers of compressed-tensors: packed along K in words of 32 bits, or a byte each. */
import { type OracleDType, roundHalfEven, roundTo } from '../dtypes.js';
import { transposeBytes, unpackStream } from './bits.js';
import { type Grid, rowGroups, scaled } from './scaled.js';
import { type DiskTensor, dim, numbersOf } from './tensors.js';

export interface IntegerTensors {
  readonly weight_packed?: DiskTensor; // I32 [N, ceil(K · bits / 32)]
  readonly weight?: DiskTensor; // I8 [N, K]
  readonly weight_scale: DiskTensor; // [N, groups]
  readonly weight_zero_point?: DiskTensor; // I32 [ceil(N · bits / 32), groups], or I8 [N, groups]
  readonly weight_shape?: DiskTensor; // I64 [2]
  readonly weight_g_idx?: DiskTensor; // I32 [K]
}

export interface IntegerConfig {
  readonly num_bits: number;
  readonly group_size?: number | null;
}

const f32 = Math.fround;

/** Signed codes of a stream, which stores them plus half their range. */
const signed = (bytes: Uint8Array, rows: number, bits: number, count: number): Int8Array =>
  Int8Array.from(unpackStream(bytes, rows, bits, count), (code) => code - 2 ** (bits - 1));

/** Codes [N, K]. */
export function integerCodes(tensors: IntegerTensors, { num_bits }: IntegerConfig): Int8Array {
  const { weight_packed, weight, weight_shape } = tensors;
  if (weight !== undefined) return new Int8Array(weight.bytes.buffer);
  const [N, K] = numbersOf(weight_shape as DiskTensor) as unknown as [number, number];
  return signed((weight_packed as DiskTensor).bytes, N, num_bits, K);
}

/** Zero-points [N, groups]. */
export function integerZeros(
  zeros: DiskTensor,
  scale: DiskTensor,
  { num_bits }: IntegerConfig,
): Int8Array {
  if (zeros.dtype === 'I8') return new Int8Array(zeros.bytes.buffer);
  const [N, groups] = [dim(scale, 0), dim(scale, 1)];
  const columns = transposeBytes(zeros.bytes, dim(zeros, 0), groups, 4);
  const codes = signed(columns, groups, num_bits, N);
  return new Int8Array(transposeBytes(new Uint8Array(codes.buffer), groups, N).buffer);
}

/** Scales, zero-points where there are any, and K. */
function grids(tensors: IntegerTensors, config: IntegerConfig, K: number) {
  const { weight_scale, weight_zero_point, weight_g_idx } = tensors;
  const span = config.group_size ?? K;
  const order = weight_g_idx === undefined ? undefined : numbersOf(weight_g_idx);
  const pitch = dim(weight_scale, 1);
  const grid = (values: ArrayLike<number>): Grid => rowGroups(values, pitch, span, order);
  const scale = grid(numbersOf(weight_scale));
  if (weight_zero_point === undefined) return { scale };
  const zero = grid(integerZeros(weight_zero_point, weight_scale, config));
  return { scale, zero };
}

/** scale · (code - zero). */
export function decodeIntegers(tensors: IntegerTensors, config: IntegerConfig): Float32Array {
  const codes = integerCodes(tensors, config);
  const K = codes.length / dim(tensors.weight_scale, 0);
  const { scale, zero } = grids(tensors, config, K);
  return scaled(codes, K, scale, zero);
}

/** round(w / scale + zero) in the dtype of w, within the codes' range. */
export function encodeIntegers(
  w: ArrayLike<number>,
  K: number,
  tensors: IntegerTensors,
  config: IntegerConfig,
  dtype: OracleDType,
): Int8Array {
  const { scale, zero } = grids(tensors, config, K);
  const half = 2 ** (config.num_bits - 1);
  return Int8Array.from(w as ArrayLike<number>, (value, i) => {
    const [n, k] = [Math.floor(i / K), i % K];
    const ratio = roundTo(dtype, f32(value / scale(n, k)));
    const code = roundHalfEven(roundTo(dtype, ratio + (zero?.(n, k) ?? 0)));
    return Math.min(Math.max(code, -half), half - 1);
  });
}
