import { type NativeHandle, native } from '../core/binding.js';
import { checkTensor, lastDim } from '../core/check-tensor.js';
import { checkDType, type DType } from '../core/dtype.js';
import { fail, shown, wrongType } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import {
  checkFinite,
  checkSameDevice,
  orDefault,
  readOptions,
  showShape,
} from '../core/validate.js';
import { withLast } from './base-weight.js';

/** The functions of {@link mapTensor}. */
export const MAP_KINDS = [
  'reciprocal',
  'sqrt',
  'rsqrt',
  'exp',
  'log',
  'tanh',
  'sigmoid',
  'relu',
  'abs',
  'sign',
  'square',
  'sin',
  'cos',
] as const;
export type MapKind = (typeof MAP_KINDS)[number];

/** The operands of {@link multiplyAdd}. */
export interface MultiplyAddParts {
  /** [..., N] any dtype */
  a: Tensor;
  /** A factor: the shape of `a`, a row [N], a column [..., 1], or one value [1]; default 1. */
  b?: Tensor;
  /** A summand of the same shapes; default 0. */
  c?: Tensor;
  /** Factor of the product; default 1. */
  alpha?: number;
  /** Factor of the summand; default 1. */
  beta?: number;
  /** Dtype of the result; default that of `a`. */
  dtype?: DType;
}

/**
 * The handle of an operand that is broadcast to `a` [M, N]: [M, N], [M, 1], [1, N] or [1, 1] once
 * leading dimensions are folded.
 */
function broadcastOf(op: string, operand: string, value: unknown, a: Tensor): NativeHandle | null {
  if (value === undefined) return null;
  const tensor = checkTensor(op, operand, value);
  const N = lastDim(a);
  const { shape } = tensor;
  const cols = lastDim(tensor);
  const rows = shape.slice(0, -1).reduce((product, dim) => product * dim, 1);
  const leading = shape.slice(0, -1);
  const sameLeading =
    leading.length === a.shape.length - 1 && leading.every((dim, i) => dim === a.shape[i]);
  const folded = leading.length === 1 && rows === a.size / N;
  if (!(cols === N || cols === 1) || !(rows === 1 || sameLeading || folded)) {
    const column = showShape(withLast(a, 1));
    const expected = `of shape ${showShape(a.shape)}, [${N}], ${column} or [1]`;
    fail('ERR_SHAPE', op, operand, expected, showShape(shape));
  }
  checkSameDevice(op, operand, tensor, a);
  return Tensor.handleOf(tensor, op, operand);
}

/**
 * `y = alpha · a ⊙ b + beta · c`, element by element, in f32 and in that order, rounded once to the
 * dtype of the result. For gates, weighted sums, and scales of rows and columns.
 * @param parts `a` [..., N]; `b` and `c` of the same shape, or a row [N] for all rows, a column
 * [..., 1] for all columns, or one value [1]. Any dtypes.
 * @returns y, the shape of `a`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
 * @example
 * const gated = multiplyAdd({ a: h, b: gate }); // gate [r] or [M, 1]
 * const mean = multiplyAdd({ a: w1, c: w2, alpha: 0.5, beta: 0.5 });
 */
export function multiplyAdd(parts: MultiplyAddParts): Tensor {
  const op = 'multiplyAdd';
  if (parts === undefined) throw wrongType(op, 'parts', 'an object', parts);
  const given = readOptions(op, parts, {
    a: true,
    b: true,
    c: true,
    alpha: true,
    beta: true,
    dtype: true,
  });
  const a = checkTensor(op, 'a', given.a);
  const bHandle = broadcastOf(op, 'b', given.b, a);
  const cHandle = broadcastOf(op, 'c', given.c, a);
  const alpha = checkFinite(op, 'alpha', orDefault(given.alpha, 1));
  const beta = checkFinite(op, 'beta', orDefault(given.beta, 1));
  const dtype = checkDType(op, 'dtype', orDefault(given.dtype, a.dtype));
  const aHandle = Tensor.handleOf(a, op, 'a');
  return Tensor.adopt(
    native(op, (raw) => raw.multiplyAdd(aHandle, bHandle, cHandle, alpha, beta, dtype)),
    a.shape,
    dtype,
    a.device,
  );
}

/**
 * `y = f(a)`, element by element: within 0.501 units in the last place of f32, then rounded to the
 * dtype of the result. The bits are the same on every device except `reference`.
 * @param a any shape and dtype
 * @param kind one of {@link MAP_KINDS}; `relu` of NaN is NaN, `sign` keeps zeros and NaN
 * @param options.dtype of the result; default that of `a`
 * @returns y, the shape of `a`
 * @throws ERR_TYPE, ERR_VALUE, ERR_DTYPE, ERR_DISPOSED, ERR_OOM
 * @example
 * const norm = mapTensor(sumProduct(w, w, { axis: 1 }), 'sqrt');
 */
export function mapTensor(a: Tensor, kind: MapKind, options?: { dtype?: DType }): Tensor {
  const op = 'mapTensor';
  checkTensor(op, 'a', a);
  if (typeof kind !== 'string') throw wrongType(op, 'kind', 'a string', kind);
  if (!MAP_KINDS.includes(kind)) {
    fail('ERR_VALUE', op, 'kind', `one of ${MAP_KINDS.join(', ')}`, `"${String(kind)}"`);
  }
  const given = readOptions(op, options, { dtype: true });
  const dtype = checkDType(op, 'dtype', orDefault(given.dtype, a.dtype));
  const aHandle = Tensor.handleOf(a, op, 'a');
  return Tensor.adopt(
    native(op, (raw) => raw.mapTensor(aHandle, kind, dtype)),
    a.shape,
    dtype,
    a.device,
  );
}

/**
 * Sums of products: `out[n] = Σₘ a ⊙ b` over rows (axis 0), or `out[m] = Σₙ a ⊙ b` over columns
 * (axis 1); without `b`, sums of `a`. Accumulated in double, in an order that depends on the shape
 * only. For gradients of gates and scales, and norms of rows and columns.
 * @param a [..., N] any dtype; leading dimensions are folded to M
 * @param b the shape of `a`, or as in {@link multiplyAdd}; any dtype
 * @returns out [N] or [M], f32
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
 * @example
 * const dGate = sumProduct(dh2, h, { axis: 0 }); // of h2 = h ⊙ gate
 */
export function sumProduct(a: Tensor, b: Tensor | undefined, options: { axis: 0 | 1 }): Tensor {
  const op = 'sumProduct';
  checkTensor(op, 'a', a);
  const bHandle = broadcastOf(op, 'b', b, a);
  if (options === undefined) throw wrongType(op, 'options', 'an object', options);
  const { axis } = readOptions(op, options, { axis: true });
  if (typeof axis !== 'number') throw wrongType(op, 'axis', 'a number', axis);
  if (axis !== 0 && axis !== 1) fail('ERR_VALUE', op, 'axis', '0 or 1', shown(axis));
  const aHandle = Tensor.handleOf(a, op, 'a');
  const rows = a.shape.slice(0, -1).reduce((product, dim) => product * dim, 1);
  return Tensor.adopt(
    native(op, (raw) => raw.sumProduct(aHandle, bHandle, axis)),
    [axis === 0 ? lastDim(a) : rows],
    'f32',
    a.device,
  );
}
