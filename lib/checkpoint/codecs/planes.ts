/** Planes out of the tensors of a layer, and back. */
import { fail } from '../../core/errors.js';
import { e8m0Table, integerLevels, sameLevels } from '../planar/levels.js';
import type { PlanarWeight, PlaneValues, ScalePlane } from '../planar/planar-weight.js';
import { bytesOf, type RawData, type RawDType, type RawTensor } from '../raw-tensor.js';

export const kFloats: readonly RawDType[] = ['F32', 'F16', 'BF16'];
/** Scales that are powers of two, by either dtype that files give their bytes. */
export const kE8m0: readonly RawDType[] = ['F8_E8M0', 'U8'];

/** [rows, columns] as [columns, rows], in new memory. */
export function transposed<T extends Uint8Array | Uint16Array | Int32Array | Float32Array>(
  data: T,
  rows: number,
  columns: number,
): T {
  const result = data.slice() as T;
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      result[j * rows + i] = data[i * columns + j] as number;
    }
  }
  return result;
}

/** The numbers of a tensor of {@link kFloats}, copied; bytes of other dtypes are powers of two. */
export function planeValues({ dtype, data }: RawTensor): PlaneValues {
  const bytes = bytesOf(data).slice();
  if (dtype === 'F32') return { dtype: 'f32', data: new Float32Array(bytes.buffer) };
  if (dtype === 'F16') return { dtype: 'f16', data: new Uint16Array(bytes.buffer) };
  if (dtype === 'BF16') return { dtype: 'bf16', data: new Uint16Array(bytes.buffer) };
  return { dtype: 'u8', data: bytes, table: e8m0Table };
}

/** A plane of [rows, columns] as one of [columns, rows]. */
export function transposedValues(plane: PlaneValues, rows: number, columns: number): PlaneValues {
  switch (plane.dtype) {
    case 'f32':
      return { dtype: 'f32', data: transposed(plane.data, rows, columns) };
    case 'u8':
      return { ...plane, data: transposed(plane.data, rows, columns) };
    default:
      return { dtype: plane.dtype, data: transposed(plane.data, rows, columns) };
  }
}

const kDTypes = { f32: 'F32', f16: 'F16', bf16: 'BF16' } as const;

/** A tensor of planes; those of bytes are powers of two, and `bytes` is their dtype. */
export function tensorOfPlane(
  values: PlaneValues,
  shape: readonly number[],
  bytes: RawDType = 'U8',
): RawTensor {
  const dtype = values.dtype === 'u8' ? bytes : kDTypes[values.dtype];
  return { dtype, shape: [...shape], data: values.data.slice() };
}

export function rawTensor(dtype: RawDType, shape: readonly number[], data: RawData): RawTensor {
  return { dtype, shape: [...shape], data };
}

/** Words of 32 bits over bytes. */
export const wordsOf = (bytes: Uint8Array<ArrayBuffer>): Int32Array => new Int32Array(bytes.buffer);

/** An I32 tensor, copied. */
export const integersOf = ({ data }: RawTensor): Int32Array =>
  new Int32Array(bytesOf(data).slice().buffer);

/** A layout cannot hold a weight. */
export function unfit(op: string, operand: string, expected: string, actual: string): never {
  return fail('ERR_FORMAT', op, `weight.${operand}`, expected, actual);
}

/** @throws ERR_FORMAT unless the codes stand for `levels`, which `what` names */
export function requireLevels(
  op: string,
  weight: PlanarWeight,
  levels: Float32Array,
  what: string,
): void {
  if (!sameLevels(weight.levels, levels)) unfit(op, 'levels', what, 'other levels');
}

/** Scales as they are, without factors of their own. @throws ERR_FORMAT */
export function plainScales(op: string, { values, outer, offset }: ScalePlane): PlaneValues {
  if (outer !== undefined || offset !== undefined) {
    unfit(op, 'scale', 'without factors or an offset in this layout', 'one with them');
  }
  return values;
}

/** @throws ERR_FORMAT unless scales are numbers of a float dtype */
export function floatScales(
  op: string,
  weight: PlanarWeight,
): Exclude<PlaneValues, { dtype: 'u8' }> {
  const values = plainScales(op, weight.scale);
  return values.dtype === 'u8'
    ? unfit(op, 'scale', 'f32, f16 or bf16', 'bytes of a table')
    : values;
}

/** @throws ERR_FORMAT unless scales are plain powers of two */
export function powerScales(op: string, weight: PlanarWeight): Uint8Array {
  const values = plainScales(op, weight.scale);
  if (values.dtype !== 'u8' || !sameLevels(values.table, e8m0Table)) {
    return unfit(op, 'scale', 'bytes of e8m0', values.dtype === 'u8' ? 'bytes' : values.dtype);
  }
  return values.data;
}

/** @throws ERR_FORMAT if the weight has minima */
export function requireNoMinima(op: string, { min }: PlanarWeight): void {
  if (min !== undefined) unfit(op, 'min', 'absent in this layout', 'minima');
}

/** @throws ERR_FORMAT if the weight has zero-points or minima */
export function requireNoOffsets(op: string, weight: PlanarWeight): void {
  requireNoMinima(op, weight);
  if (weight.zero !== undefined) unfit(op, 'zero', 'absent in this layout', 'zero-points');
}

/**
 * The integer zero-points of a weight of plain codes: an entry's own, plus what all levels are lowered by.
 * @param entries of the grid
 * @throws ERR_FORMAT if they are fractions, or do not fit the codes
 */
export function integerZeros(op: string, weight: PlanarWeight, entries: number): Uint8Array {
  const { bits, levels, zero } = weight;
  requireNoMinima(op, weight);
  const bias = 0 - (levels[0] as number);
  requireLevels(op, weight, integerLevels(bits, bias), 'consecutive integers');
  if (zero !== undefined && zero.dtype !== 'u8') {
    return unfit(op, 'zero', 'u8, as this layout has integers', zero.dtype);
  }
  const zeros = zero?.data ?? new Uint8Array(entries);
  const range = zeros.reduce((most, z) => Math.max(most, z), 0) + bias;
  const least = zeros.reduce((value, z) => Math.min(value, z), 255) + bias;
  if (least < 0 || range >= 2 ** bits) {
    unfit(op, 'zero', `0 to ${2 ** bits - 1} for ${bits} bits`, `${least} to ${range}`);
  }
  return zeros.map((z) => z + bias);
}
