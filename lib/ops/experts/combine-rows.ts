import { native } from '../../core/binding.js';
import { checkTensor } from '../../core/check-tensor.js';
import { checkDType, type DType } from '../../core/dtype.js';
import { fail } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import {
  checkSameDevice,
  orDefault,
  readNames,
  readOptions,
  showShape,
} from '../../core/validate.js';
import { type ExpertRoute, routeHandles } from './expert-route.js';

/** The dimensions of a tensor folded to a matrix. */
export function folded(tensor: Tensor): [rows: number, cols: number] {
  const cols = tensor.shape.at(-1) ?? 1;
  return [tensor.shape.slice(0, -1).reduce((a, b) => a * b, 1), cols];
}

/** Checks for a matrix of so many rows on the route's device. @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE */
export function checkRouted(
  op: string,
  operand: string,
  value: unknown,
  rows: number,
  route: ExpertRoute,
  dims: string,
): Tensor {
  const tensor = checkTensor(op, operand, value);
  if (tensor.shape.length === 0 || folded(tensor)[0] !== rows) {
    fail('ERR_SHAPE', op, operand, `of shape ${dims}`, showShape(tensor.shape));
  }
  checkSameDevice(op, operand, tensor, route);
  return tensor;
}

function gatesOf(op: string, operand: string, gates: Tensor | undefined, route: ExpertRoute) {
  if (gates === undefined) return null;
  const { rows, k } = route;
  const dims = `[${rows}, k = ${k}]`;
  checkRouted(op, operand, gates, rows, route, dims);
  if (folded(gates)[1] !== k)
    fail('ERR_SHAPE', op, operand, `of shape ${dims}`, showShape(gates.shape));
  if (gates.dtype !== 'f32') fail('ERR_DTYPE', op, operand, 'f32', gates.dtype);
  return Tensor.handleOf(gates, op, operand);
}

/** How {@link combineRows} works. */
export interface CombineOptions {
  /** [rows, k] f32; default 1. */
  gates?: Tensor;
}

/**
 * What the experts of each row give, weighted and summed: with s the slot of row m and its j-th expert,
 *
 * `out[m] = Σⱼ gates[m, j] · y[s]`
 *
 * j ascending in f32, rounded once. A dropped slot adds nothing. The bits do not depend on threads or on the
 * batch, and are the same on `cpu` and CUDA devices.
 * @param y [slots, N], any dtype
 * @returns [rows, N], dtype of `y`
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_VALUE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const out = combineRows(y, route, { gates });
 */
export function combineRows(y: Tensor, route: ExpertRoute, options?: CombineOptions): Tensor {
  const op = 'combineRows';
  checkTensor(op, 'y', y);
  const handles = routeHandles(op, route);
  checkRouted(op, 'y', y, route.slots, route, `[slots = ${route.slots}, N]`);
  const { gates } = readOptions<CombineOptions>(op, options, { gates: true });
  const gatesHandle = gatesOf(op, 'gates', gates, route);
  const handle = Tensor.handleOf(y, op, 'y');
  const out = native(op, (raw) => raw.combineRows(handle, gatesHandle, ...handles));
  return Tensor.adopt(out, [route.rows, folded(y)[1]], y.dtype, y.device);
}

/** How {@link combineRowsBackward} works. */
export interface CombineBackwardOptions extends CombineOptions {
  /** Of the forward pass; needed for dGates. */
  y?: Tensor;
  /** Default both if `y` is given, else dy. */
  needs?: readonly ('dy' | 'dGates')[];
  /** Of dy; default that of `dOut`. */
  dtype?: DType;
}

/**
 * Gradients of {@link combineRows}: with s the slot of row m and its j-th expert,
 *
 * `dy[s] = gates[m, j] · dOut[m]`, rounded once, and `dGates[m, j] = Σₙ dOut[m, n] · y[s, n]`, summed in double
 *
 * Both are 0 for a dropped slot.
 * @param dOut [rows, N], any dtype
 * @returns dy [slots, N]; dGates [rows, k] f32
 * @throws as {@link combineRows}
 * @example
 * const { dy, dGates } = combineRowsBackward(dOut, route, { y, gates });
 */
export function combineRowsBackward(
  dOut: Tensor,
  route: ExpertRoute,
  options?: CombineBackwardOptions,
): { dy?: Tensor; dGates?: Tensor } {
  const op = 'combineRowsBackward';
  checkTensor(op, 'dOut', dOut);
  const handles = routeHandles(op, route);
  checkRouted(op, 'dOut', dOut, route.rows, route, `[rows = ${route.rows}, N]`);
  const given = readOptions<CombineBackwardOptions>(op, options, {
    gates: true,
    y: true,
    needs: true,
    dtype: true,
  });
  const { y, gates } = given;
  const standard = y === undefined ? (['dy'] as const) : (['dy', 'dGates'] as const);
  const needs = readNames(op, 'needs', orDefault(given.needs, standard), ['dy', 'dGates']);
  const [wantsDy, wantsDGates] = [needs.includes('dy'), needs.includes('dGates')];
  const N = folded(dOut)[1];
  if (y !== undefined) {
    checkRouted(op, 'y', y, route.slots, route, `[slots = ${route.slots}, N = ${N}]`);
    if (folded(y)[1] !== N) fail('ERR_SHAPE', op, 'y', `of ${N} columns`, showShape(y.shape));
  } else if (wantsDGates) {
    fail('ERR_VALUE', op, 'y', 'given, for dGates', 'none');
  }
  const dtype = checkDType(op, 'dtype', orDefault(given.dtype, dOut.dtype));
  const gatesHandle = gatesOf(op, 'gates', gates, route);
  const yHandle = y === undefined ? null : Tensor.handleOf(y, op, 'y');
  const handle = Tensor.handleOf(dOut, op, 'dOut');
  const [dy, dGates] = native(op, (raw) =>
    raw.combineRowsBackward(
      handle,
      yHandle,
      gatesHandle,
      ...handles,
      wantsDy ? dtype : null,
      wantsDGates,
    ),
  );
  const { device } = dOut;
  return {
    ...(dy === null ? {} : { dy: Tensor.adopt(dy, [route.slots, N], dtype, device) }),
    ...(dGates === null
      ? {}
      : { dGates: Tensor.adopt(dGates, [route.rows, route.k], 'f32', device) }),
  };
}
