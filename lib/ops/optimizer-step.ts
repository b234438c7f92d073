import { type NativeHandle, native } from '../core/binding.js';
import { checkShape, checkTensor } from '../core/check-tensor.js';
import { fail, wrongType } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import {
  checkFinite,
  checkInteger,
  checkSameDevice,
  orDefault,
  readNumbers,
  readOptions,
} from '../core/validate.js';

/** The live tensors of a list, which is read once. */
function readTensors(op: string, operand: string, list: unknown): Tensor[] {
  if (!Array.isArray(list)) throw wrongType(op, operand, 'an array of tensors', list);
  const tensors: Tensor[] = [];
  for (let i = 0; i < list.length; i++) tensors.push(checkTensor(op, `${operand}[${i}]`, list[i]));
  return tensors;
}

/**
 * The Euclidean norm of all elements of all tensors, `(Σ g²)^½`, on the device: nothing waits for it.
 * Squares are exact, and their sum is in double, in an order that depends only on the sizes. The devices
 * `cpu` and `reference` give the same bits for any number of threads; a CUDA device sums in an order of its
 * own. The norm is not finite if an element is not finite, or if the norm is too large for f32.
 * @param tensors at least one; any shapes and dtypes, all on one device
 * @returns [1] f32
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const norm = globalNorm(gradients);
 */
export function globalNorm(tensors: readonly Tensor[]): Tensor {
  const op = 'globalNorm';
  const list = readTensors(op, 'tensors', tensors);
  const [first] = list;
  if (first === undefined) fail('ERR_SHAPE', op, 'tensors', 'at least one tensor', 'none');
  const handles = list.map((tensor, i) => {
    checkSameDevice(op, `tensors[${i}]`, tensor, first);
    return Tensor.handleOf(tensor, op, `tensors[${i}]`);
  });
  const norm = native(op, (raw) => raw.globalNorm(handles));
  return Tensor.adopt(norm, [1], 'f32', first.device);
}

/** How {@link adamwStep} works. */
export interface AdamWStepOptions {
  /** Learning rate: a number, or a tensor [1] f32 on the device, which is read when the step runs. */
  lr: number | Tensor;
  /**
   * The number of this step, from 1 to 2^24. Or a tensor [1] f32 with the number of steps done, from 0 on: the
   * call does the next step and adds one to it.
   */
  step: number | Tensor;
  /** Default [0.9, 0.999]. */
  betas?: readonly [beta1: number, beta2: number];
  /** Added to the root of v; default 1e-8. */
  eps?: number;
  /** One number for all parameters, or one for each; default 0.01. */
  weightDecay?: number | readonly number[];
  /** Factors of the learning rate, one for each parameter; default 1. */
  lrScale?: readonly number[];
  /** [1] f32, of {@link globalNorm}. If it is not finite, the step changes nothing. */
  norm?: Tensor;
  /** Gradients are multiplied by `min(1, maxNorm / (norm + 1e-6))`. Only with `norm`; default no limit. */
  maxNorm?: number;
}

/** A number as `check` wants it, for each parameter. */
function perParameter(
  op: string,
  name: string,
  given: unknown,
  count: number,
  otherwise: number,
): readonly number[] {
  const check = (operand: string, value: unknown): number => notNegative(op, operand, value);
  if (given === undefined) return new Array<number>(count).fill(otherwise);
  if (typeof given === 'number') return new Array<number>(count).fill(check(name, given));
  const numbers = readNumbers(op, name, given, check);
  if (numbers.length !== count) {
    fail('ERR_SHAPE', op, name, `${count} numbers, one for each parameter`, `${numbers.length}`);
  }
  return numbers;
}

/** Finite in f32. */
function notNegative(op: string, operand: string, value: unknown): number {
  const number = checkFinite(op, operand, value);
  if (number < 0 || !Number.isFinite(Math.fround(number))) {
    fail('ERR_VALUE', op, operand, 'finite in f32 and not negative', String(number));
  }
  return number;
}

/** One f32 on the device of the parameters. */
function checkScalar(op: string, operand: string, value: unknown, near: Tensor): Tensor {
  const tensor = checkTensor(op, operand, value);
  checkShape(op, operand, tensor, [1]);
  if (tensor.dtype !== 'f32') fail('ERR_DTYPE', op, operand, 'f32', tensor.dtype);
  checkSameDevice(op, operand, tensor, near);
  return tensor;
}

/** The second list of tensors beside the parameters. */
function checkBeside(
  op: string,
  operand: string,
  list: unknown,
  parameters: readonly Tensor[],
  f32: boolean,
): Tensor[] {
  const tensors = readTensors(op, operand, list);
  if (tensors.length !== parameters.length) {
    const expected = `${parameters.length} tensors, one for each parameter`;
    fail('ERR_SHAPE', op, operand, expected, `${tensors.length}`);
  }
  for (const [i, tensor] of tensors.entries()) {
    const parameter = parameters[i] as Tensor;
    checkShape(op, `${operand}[${i}]`, tensor, parameter.shape);
    checkSameDevice(op, `${operand}[${i}]`, tensor, parameter);
    if (f32 && tensor.dtype !== 'f32') {
      fail('ERR_DTYPE', op, `${operand}[${i}]`, 'f32', tensor.dtype);
    }
  }
  return tensors;
}

function checkBetas(op: string, betas: unknown): readonly [number, number] {
  const [beta1, beta2, ...more] = readNumbers(op, 'betas', betas, (operand, value) => {
    const beta = checkFinite(op, operand, value);
    if (!(beta >= 0 && beta < 1)) fail('ERR_VALUE', op, operand, 'in [0, 1)', String(beta));
    return beta;
  });
  if (beta1 === undefined || beta2 === undefined || more.length > 0) {
    fail('ERR_SHAPE', op, 'betas', 'two numbers', 'another count');
  }
  return [beta1, beta2];
}

/**
 * One step of AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, arXiv:1711.05101) over all
 * parameters at once, in place, with the formula of PyTorch. With g a gradient times the factor of `maxNorm`, and t the
 * number of the step:
 *
 *     m = β1 · m + (1 - β1) · g        v = β2 · v + (1 - β2) · g²        η = lr · lrScale
 *     p = p · (1 - η · weightDecay) - η / (1 - β1^t) · m / ((v / (1 - β2^t))^½ + eps)
 *
 * All in f32, each operation rounded once (`native/host_device/optimizer_step.h` states their order): the bits are the
 * same on every device and for any number of threads. A p of 16 bits is rounded once, to nearest.
 *
 * The norm, the rate and the counter are read on the device when the step runs, so nothing waits on the host, and a
 * stream that is being captured into a graph accepts the call. If `norm` is not finite, or `lr` on the device is
 * negative or not finite, the step changes nothing, and does not count. Read `norm` to see it. Without `norm` a
 * gradient that is not finite reaches the parameter.
 * @param parameters any dtype; updated
 * @param gradients any dtype; each of the shape of its parameter
 * @param m f32, first moments; updated. Zeros before the first step
 * @param v f32, second moments; updated. Zeros before the first step
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_VALUE, ERR_DEVICE, ERR_DISPOSED; ERR_ALIAS if a tensor that is updated
 * shares memory with another one
 * @example
 * const norm = globalNorm(gradients);
 * adamwStep(parameters, gradients, m, v, { lr: 1e-4, step, norm, maxNorm: 1 });
 */
export function adamwStep(
  parameters: readonly Tensor[],
  gradients: readonly Tensor[],
  m: readonly Tensor[],
  v: readonly Tensor[],
  options: AdamWStepOptions,
): void {
  const op = 'adamwStep';
  const ps = readTensors(op, 'parameters', parameters);
  const [first] = ps;
  if (first === undefined) fail('ERR_SHAPE', op, 'parameters', 'at least one tensor', 'none');
  for (const [i, p] of ps.entries()) checkSameDevice(op, `parameters[${i}]`, p, first);
  const lists = [
    ps,
    checkBeside(op, 'gradients', gradients, ps, false),
    checkBeside(op, 'm', m, ps, true),
    checkBeside(op, 'v', v, ps, true),
  ];
  const given = readOptions<AdamWStepOptions>(op, options, {
    lr: true,
    step: true,
    betas: true,
    eps: true,
    weightDecay: true,
    lrScale: true,
    norm: true,
    maxNorm: true,
  });
  const [beta1, beta2] = checkBetas(op, given.betas ?? [0.9, 0.999]);
  const eps = notNegative(op, 'eps', orDefault(given.eps, 1e-8));
  const decays = perParameter(op, 'weightDecay', given.weightDecay, ps.length, 0.01);
  if (typeof given.lrScale === 'number') {
    throw wrongType(op, 'lrScale', 'an array of numbers', given.lrScale);
  }
  const scales = perParameter(op, 'lrScale', given.lrScale, ps.length, 1);
  const lrAt = Tensor.is(given.lr) ? checkScalar(op, 'lr', given.lr, first) : null;
  const lr = lrAt === null ? notNegative(op, 'lr', given.lr) : 0;
  const done = Tensor.is(given.step) ? checkScalar(op, 'step', given.step, first) : null;
  const step = done === null ? checkInteger(op, 'step', given.step, 1, 2 ** 24) : 1;
  const norm = given.norm === undefined ? null : checkScalar(op, 'norm', given.norm, first);
  let maxNorm = Number.POSITIVE_INFINITY;
  if (given.maxNorm !== undefined) {
    maxNorm = notNegative(op, 'maxNorm', given.maxNorm);
    if (Math.fround(maxNorm) === 0) fail('ERR_VALUE', op, 'maxNorm', 'positive', `${maxNorm}`);
    if (norm === null) fail('ERR_VALUE', op, 'maxNorm', 'given together with norm', 'no norm');
  }
  const numbers = new Float64Array(6 + 2 * ps.length);
  numbers.set([beta1, beta2, eps, maxNorm, lr, step]);
  const handles = ps.flatMap((_, i) => {
    numbers.set([scales[i] as number, decays[i] as number], 6 + 2 * i);
    return lists.map((list) => Tensor.handleOf(list[i] as Tensor, op, `parameters[${i}]`));
  });
  const [lrHandle, doneHandle, normHandle] = [lrAt, done, norm].map((tensor) =>
    tensor === null ? null : Tensor.handleOf(tensor, op, 'lr, step and norm'),
  ) as [NativeHandle | null, NativeHandle | null, NativeHandle | null];
  native(op, (raw) =>
    raw.optimizerStep('adamw', handles, numbers, lrHandle, doneHandle, normHandle),
  );
}
