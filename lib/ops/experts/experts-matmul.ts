import { native } from '../../core/binding.js';
import type { ExpertsLora } from '../../core/binding-model.js';
import { checkMixes, checkTensor } from '../../core/check-tensor.js';
import { fail, wrongType } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import {
  checkFinite,
  checkSameDevice,
  orDefault,
  ownFields,
  readNames,
  readOptions,
  refuseField,
  showShape,
} from '../../core/validate.js';
import { type BaseWeight, checkWeight } from '../base-weight.js';
import { zeroTermOf } from '../zero-points.js';
import { checkRouted, combineRows, folded } from './combine-rows.js';
import { type ExpertRoute, routeHandles } from './expert-route.js';

/** LoRA of experts: each has factors of its own, or all share one. */
export interface ExpertsLoraFactors {
  /** [E, r, K], or [1, r, K] for all experts. */
  readonly loraA: Tensor;
  /** [E, N, r], or [1, N, r] for all experts. */
  readonly loraB: Tensor;
  /** lora_alpha / r, or / √r. */
  readonly scaling: number;
}

/** What both passes take. */
export interface ExpertsShape {
  /** Default true: row m of x goes to its k experts. `false`: x has a row for each slot, in their order. */
  gather?: boolean;
  lora?: ExpertsLoraFactors;
}

/** How {@link expertsMatmul} works. */
export interface ExpertsOptions extends ExpertsShape {
  /** [E, N], any dtype. */
  bias?: Tensor;
}

/** What {@link expertsMatmul} returns. */
export interface ExpertsResult {
  /** [slots, N], dtype of x. */
  y: Tensor;
  /** [slots, r] f32: the rows of x times loraAᵀ; only with `lora`. */
  h?: Tensor;
}

/** Operands of one call, checked. */
interface Call {
  readonly weight: BaseWeight;
  readonly handle: ReturnType<typeof checkWeight>['handle'];
  readonly N: number;
  readonly K: number;
  readonly gather: boolean;
  readonly lora: ExpertsLoraFactors | undefined;
  readonly args: ExpertsLora;
}

function checkFactor(
  op: string,
  name: 'loraA' | 'loraB',
  value: unknown,
  [E, rows, cols]: readonly [number, number | undefined, number | undefined],
  near: Tensor,
): Tensor {
  const tensor = checkTensor(op, `lora.${name}`, value);
  const [experts, a, b] = tensor.shape;
  const fits =
    tensor.shape.length === 3 &&
    (experts === E || experts === 1) &&
    (rows ?? a) === a &&
    (cols ?? b) === b;
  if (!fits) {
    const form =
      name === 'loraA'
        ? `r, K = ${cols}`
        : `N = ${rows}, r${cols === undefined ? '' : ` = ${cols}`}`;
    const expected = `of shape [${E}, ${form}] or [1, ${form}]`;
    fail('ERR_SHAPE', op, `lora.${name}`, expected, showShape(tensor.shape));
  }
  checkSameDevice(op, `lora.${name}`, tensor, near);
  checkMixes(op, `lora.${name}`, tensor, near);
  return tensor;
}

function checkLora(op: string, lora: unknown, E: number, N: number, K: number, near: Tensor) {
  if (lora === undefined) return undefined;
  if (typeof lora !== 'object' || lora === null) {
    throw wrongType(op, 'lora', 'an object of loraA, loraB and scaling', lora);
  }
  const own = ownFields(op, lora as ExpertsLoraFactors);
  const known = ['loraA', 'loraB', 'scaling'];
  for (const name of Object.keys(own)) if (!known.includes(name)) refuseField(op, name, known);
  const loraA = checkFactor(op, 'loraA', own.loraA, [E, undefined, K], near);
  const loraB = checkFactor(op, 'loraB', own.loraB, [E, N, loraA.shape[1]], near);
  return { loraA, loraB, scaling: checkFinite(op, 'lora.scaling', own.scaling) };
}

function checkCall(
  op: string,
  operand: 'x' | 'dy',
  value: Tensor,
  w: BaseWeight,
  route: ExpertRoute,
  given: Partial<ExpertsShape>,
): Call {
  const { weight, handle, N: rows, K } = checkWeight(op, w);
  const { experts: E, slots } = route;
  if (rows % E !== 0) {
    fail('ERR_SHAPE', op, 'w', `[E · N, K] of E = ${E} experts`, showShape(weight.shape));
  }
  const N = rows / E;
  const gather: unknown = orDefault(given.gather, true);
  if (typeof gather !== 'boolean') throw wrongType(op, 'gather', 'a boolean', gather);
  const [count, name] = gather && operand === 'x' ? [route.rows, 'rows'] : [slots, 'slots'];
  const cols = operand === 'x' ? K : N;
  const dims = `[${name} = ${count}, ${operand === 'x' ? 'K' : 'N'} = ${cols}]`;
  checkRouted(op, operand, value, count, route, dims);
  if (folded(value)[1] !== cols) {
    fail('ERR_SHAPE', op, operand, `of shape ${dims}`, showShape(value.shape));
  }
  checkSameDevice(op, 'w', weight, value);
  if (weight instanceof Tensor) checkMixes(op, 'w', weight, value);
  if (zeroTermOf(weight) !== undefined) {
    fail(
      'ERR_UNSUPPORTED',
      op,
      'w',
      'without zeroPoints (QuantizedWeight.fromPlanes holds offsets)',
      'a weight with them',
    );
  }
  const lora = checkLora(op, given.lora, E, N, K, value);
  return {
    weight,
    handle,
    N,
    K,
    gather,
    lora,
    args: [
      gather,
      lora === undefined ? null : Tensor.handleOf(lora.loraA, op, 'lora.loraA'),
      lora === undefined ? null : Tensor.handleOf(lora.loraB, op, 'lora.loraB'),
      lora?.scaling ?? 0,
    ],
  };
}

/**
 * The products of every expert with its own rows: w holds the weights of E experts one below another, and w_e is its rows
 * e · N to e · N + N - 1. For a slot s of expert e, with x_s the row of x that it stands for:
 *
 * `y[s] = x_s · w_eᵀ + bias_e + scaling · (x_s · loraA_eᵀ) · loraB_eᵀ`
 *
 * and 0 for a dropped slot. A quantised weight is decoded as in {@link matmul}, and the adapter's term is that of
 * {@link loraForward}: on `cpu` a slot has their bits for its row and its expert. On every device its bits do not depend
 * on the other rows. An expert of a
 * blockwise format must begin with a block of scales, N · K a multiple of the blocksize (with double quantisation of 256
 * blocks).
 * @param x [rows, K], or [slots, K] with `gather: false`; f32, bf16 or f16
 * @param w [E · N, K], dense or quantised, frozen
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_VALUE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM, ERR_UNSUPPORTED (a weight with
 *   zeroPoints)
 * @example
 * const { y: both } = expertsMatmul(x, gateUp, route);
 * const { y } = expertsMatmul(inner, down, route, { gather: false });
 */
export function expertsMatmul(
  x: Tensor,
  w: BaseWeight,
  route: ExpertRoute,
  options?: ExpertsOptions,
): ExpertsResult {
  const op = 'expertsMatmul';
  checkTensor(op, 'x', x);
  const handles = routeHandles(op, route);
  const given = readOptions<ExpertsOptions>(op, options, { gather: true, lora: true, bias: true });
  const call = checkCall(op, 'x', x, w, route, given);
  const { N, lora } = call;
  const { bias } = given;
  if (bias !== undefined) {
    checkTensor(op, 'bias', bias);
    checkSameDevice(op, 'bias', bias, x);
    const [E, cols] = bias.shape;
    if (bias.shape.length !== 2 || E !== route.experts || cols !== N) {
      fail('ERR_SHAPE', op, 'bias', `of shape [${route.experts}, ${N}]`, showShape(bias.shape));
    }
  }
  const biasHandle = bias === undefined ? null : Tensor.handleOf(bias, op, 'bias');
  const xHandle = Tensor.handleOf(x, op, 'x');
  const [y, h] = native(op, (raw) =>
    raw.expertsMatmul(xHandle, call.handle, biasHandle, ...handles, ...call.args),
  );
  const { dtype, device } = x;
  const r = lora?.loraA.shape[1] ?? 0;
  return {
    y: Tensor.adopt(y, [route.slots, N], dtype, device),
    ...(h === null ? {} : { h: Tensor.adopt(h, [route.slots, r], 'f32', device) }),
  };
}

/** A gradient of {@link expertsMatmul}. */
export type ExpertsGradient = 'dx' | 'dLoraA' | 'dLoraB';

/** How {@link expertsMatmulBackward} works. */
export interface ExpertsBackwardOptions extends ExpertsShape {
  /** Of the forward pass; needed for dLoraA. */
  x?: Tensor;
  /** Of the forward pass; needed for dLoraB. */
  h?: Tensor;
  /** Default dx, and of the factors those whose x or h is given. */
  needs?: readonly ExpertsGradient[];
}

/**
 * Gradients of {@link expertsMatmul} with a frozen base. For a slot s of expert e, with `dh_s = scaling · dy[s] · loraB_e`:
 *
 * - `dx_s = dy[s] · w_e + dh_s · loraA_e`; with `gather`, dx[m] is the sum of those of its slots, as {@link combineRows}
 *   adds them
 * - `dLoraA_e = Σₛ dh_sᵀ · x_s` and `dLoraB_e = scaling · Σₛ dy[s]ᵀ · h[s]` over the slots of e, or of all experts for a
 *   factor that they share; 0 for an expert without slots
 * @param dy [slots, N], dtype of x
 * @returns dx [rows, K], or [slots, K] with `gather: false`; each gradient of a factor in its shape and dtype
 * @throws as {@link expertsMatmul}; ERR_VALUE where a gradient is wanted without what it needs
 * @example
 * const { dx, dLoraA, dLoraB } = expertsMatmulBackward(dy, w, route, { lora, x, h });
 */
export function expertsMatmulBackward(
  dy: Tensor,
  w: BaseWeight,
  route: ExpertRoute,
  options?: ExpertsBackwardOptions,
): { dx?: Tensor; dLoraA?: Tensor; dLoraB?: Tensor } {
  const op = 'expertsMatmulBackward';
  checkTensor(op, 'dy', dy);
  const handles = routeHandles(op, route);
  const given = readOptions<ExpertsBackwardOptions>(op, options, {
    gather: true,
    lora: true,
    x: true,
    h: true,
    needs: true,
  });
  const call = checkCall(op, 'dy', dy, w, route, given);
  const { K, gather, lora } = call;
  const { x, h } = given;
  const known = ['dx', 'dLoraA', 'dLoraB'] as const;
  const kept: Readonly<Record<ExpertsGradient, boolean>> = {
    dx: true,
    dLoraA: lora !== undefined && x !== undefined,
    dLoraB: lora !== undefined && h !== undefined,
  };
  const standard = known.filter((name) => kept[name]);
  const needs = readNames(op, 'needs', orDefault(given.needs, standard), known);
  const lacks = (name: ExpertsGradient) => needs.includes(name) && !kept[name];
  if (lacks('dLoraA')) fail('ERR_VALUE', op, 'x and lora', 'given, for dLoraA', 'none');
  if (lacks('dLoraB')) fail('ERR_VALUE', op, 'h and lora', 'given, for dLoraB', 'none');
  if (x !== undefined) {
    const [count, name] = gather ? [route.rows, 'rows'] : [route.slots, 'slots'];
    const dims = `[${name} = ${count}, K = ${K}]`;
    checkRouted(op, 'x', x, count, route, dims);
    if (folded(x)[1] !== K) fail('ERR_SHAPE', op, 'x', `of shape ${dims}`, showShape(x.shape));
    if (x.dtype !== dy.dtype) fail('ERR_DTYPE', op, 'x', `${dy.dtype}, as dy`, x.dtype);
  }
  if (h !== undefined && lora !== undefined) {
    const [r] = lora.loraA.shape.slice(1);
    checkRouted(op, 'h', h, route.slots, route, `[slots = ${route.slots}, r = ${r}]`);
    if (folded(h)[1] !== r) fail('ERR_SHAPE', op, 'h', `of ${r} columns`, showShape(h.shape));
    if (h.dtype !== 'f32') fail('ERR_DTYPE', op, 'h', 'f32', h.dtype);
  }
  const wanted = [
    needs.includes('dx') ? dy.dtype : null,
    needs.includes('dLoraA') ? (lora as ExpertsLoraFactors).loraA.dtype : null,
    needs.includes('dLoraB') ? (lora as ExpertsLoraFactors).loraB.dtype : null,
  ];
  const handleOf = (name: string, value: Tensor | undefined) =>
    value === undefined ? null : Tensor.handleOf(value, op, name);
  const [dyHandle, xHandle, hHandle] = [
    Tensor.handleOf(dy, op, 'dy'),
    handleOf('x', x),
    handleOf('h', h),
  ];
  const [dx, dLoraA, dLoraB] = native(op, (raw) =>
    raw.expertsMatmulBackward(
      dyHandle,
      call.handle,
      xHandle,
      ...handles,
      ...call.args,
      hHandle,
      wanted,
    ),
  );
  const { dtype, device } = dy;
  const factor = (name: 'loraA' | 'loraB', made: typeof dLoraA) => {
    if (made === null || lora === undefined) return {};
    const like = lora[name];
    const gradient = Tensor.adopt(made, like.shape, like.dtype, device);
    return name === 'loraA' ? { dLoraA: gradient } : { dLoraB: gradient };
  };
  const slots = dx === null ? undefined : Tensor.adopt(dx, [route.slots, K], dtype, device);
  return {
    ...(slots === undefined ? {} : { dx: gather ? gathered(slots, route) : slots }),
    ...factor('loraA', dLoraA),
    ...factor('loraB', dLoraB),
  };
}

/** The sum of the gradients of a row's slots. */
function gathered(slots: Tensor, route: ExpertRoute): Tensor {
  using own = slots;
  return combineRows(own, route);
}
