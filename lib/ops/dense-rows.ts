import { native } from '../core/binding.js';
import { checkShape, checkTensor } from '../core/check-tensor.js';
import { checkDType, type DType } from '../core/dtype.js';
import { fail } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import { checkInteger, checkSameDevice, readOptions, showShape } from '../core/validate.js';
import { type BaseWeight, checkWeight } from './base-weight.js';
import { shiftRows, zeroTermOf } from './zero-points.js';

/**
 * {@link denseRows} can begin at multiples of this: 1 for a dense weight; for a quantised one, the
 * distance between rows that begin a block of scales (with double quantisation, of scales of scales).
 * @param w [N, K]
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DISPOSED
 * @example
 * rowStep(quantize(w, { format: 'nf4', blocksize: 64 })); // 1 where 64 divides K
 */
export function rowStep(w: BaseWeight): number {
  const { weight } = checkWeight('rowStep', w);
  if (Tensor.is(weight)) return 1;
  return weight.rowStep;
}

/**
 * Some rows of a base weight as a new dense tensor: a piece of a weight that is too large to decode
 * whole.
 * @param w [N, K] dense or quantised
 * @param begin a multiple of {@link rowStep}
 * @param end up to N
 * @param options.dtype of the result; default f32
 * @returns [end − begin, K]
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
 * @example
 * for (let n = 0; n < N; n += 256) consume(denseRows(w4, n, Math.min(n + 256, N)));
 */
export function denseRows(
  w: BaseWeight,
  begin: number,
  end: number,
  options?: { dtype?: DType },
): Tensor {
  const op = 'denseRows';
  const { weight, handle, N, K } = checkWeight(op, w);
  const last = checkInteger(op, 'end', end, 0, N);
  const first = checkInteger(op, 'begin', begin, 0, last);
  const step = rowStep(weight);
  if (first % step !== 0) {
    fail('ERR_VALUE', op, 'begin', `a multiple of ${step} (rowStep)`, String(first));
  }
  const dtype = checkDType(op, 'dtype', readOptions(op, options, { dtype: true }).dtype ?? 'f32');
  const zeros = zeroTermOf(weight);
  const stored = zeros === undefined ? dtype : 'f32';
  const rows = Tensor.adopt(
    native(op, (raw) => raw.takeRows(handle, stored, first, last - first)),
    [last - first, K],
    stored,
    weight.device,
  );
  if (zeros === undefined) return rows;
  const shifted = shiftRows(rows, zeros, { dtype, first });
  rows.dispose();
  return shifted;
}

/**
 * Copies rows into a tensor, from row `begin` on: the counterpart of {@link denseRows}.
 * @param y [N, K] the tensor to write to
 * @param source [T, K] any dtype, rounded to that of y; it must not share y's memory
 * @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DEVICE, ERR_ALIAS, ERR_DISPOSED
 * @example
 * putRows(gradient, tile, n0); // rows n0 to n0 + T
 */
export function putRows(y: Tensor, source: Tensor, begin: number): void {
  const op = 'putRows';
  checkTensor(op, 'y', y);
  checkTensor(op, 'source', source);
  const [T = 0] = source.shape;
  const [N = 0, ...rest] = y.shape;
  checkShape(op, 'source', source, [T, ...rest]);
  checkSameDevice(op, 'source', source, y);
  if (T > N) fail('ERR_SHAPE', op, 'source', `of at most ${N} rows`, showShape(source.shape));
  const first = checkInteger(op, 'begin', begin, 0, N - T);
  const handles = [Tensor.handleOf(y, op, 'y'), Tensor.handleOf(source, op, 'source')] as const;
  native(op, (raw) => raw.putRows(...handles, first));
  Tensor.written(y);
}

/** Elements of a tile: 1 MB of f32. */
const TILE_ELEMENTS = 2 ** 18;

/** @internal The row tiles of a weight that is decoded tile by tile. */
export function rowTiles(w: BaseWeight): Array<[first: number, end: number]> {
  const [N = 0, K = 0] = w.shape;
  const step = rowStep(w);
  const rows = Math.max(Math.floor(TILE_ELEMENTS / Math.max(K * step, 1)), 1) * step;
  const tiles: Array<[number, number]> = [];
  for (let first = 0; first < N && K > 0; first += rows) {
    tiles.push([first, Math.min(first + rows, N)]);
  }
  return tiles;
}
