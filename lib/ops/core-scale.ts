import { native } from '../core/binding.js';
import { checkShape, checkTensor, checkVector, lastDim } from '../core/check-tensor.js';
import { fail, notConstructed, wrongType } from '../core/errors.js';
import { scope, track } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { checkSameDevice, readOptions, showShape } from '../core/validate.js';
import { multiplyAdd, sumProduct } from './elementwise.js';
import { matmul, matmulInputGrad } from './matmul.js';
import { weightGrad } from './weight-grad.js';

/** The stage between shrink and expand: at least one of the three, each in f32. */
export interface CoreParts {
  /** [r]: scales the input. */
  dIn?: Tensor;
  /** [r], a diagonal; or a matrix [p, r], applied as `v = u · coreᵀ`. */
  core?: Tensor;
  /** [r], or [p] after a matrix: scales the output. */
  dOut?: Tensor;
}

/** The gradients of {@link coreScale}: of `h`, and of the parts that were given. */
export interface CoreGradients {
  dh: Tensor;
  dDIn?: Tensor;
  dCore?: Tensor;
  dDOut?: Tensor;
}

/**
 * State for the backward pass of {@link coreScale}. It holds its tensors until
 * {@link coreScaleBackward} or {@link CoreSaved.dispose}, even if the caller disposes `h` at once.
 * The parts belong to the caller.
 */
export class CoreSaved implements Disposable {
  readonly parts: Readonly<CoreParts>;
  /** The input. */
  readonly h: Tensor;
  /** The input after `dIn`, if given. */
  readonly u: Tensor | undefined;
  /** The output before `dOut`, if there is a `dOut` after a core. */
  readonly v: Tensor | undefined;
  readonly shape: readonly number[];
  #disposed = false;

  /** @internal */
  constructor(
    parts: Readonly<CoreParts>,
    h: Tensor,
    u: Tensor | undefined,
    v: Tensor | undefined,
    shape: readonly number[],
  ) {
    if (!Tensor.is(h)) throw notConstructed('CoreSaved', 'coreScale');
    this.parts = parts;
    this.h = h;
    this.u = u;
    this.v = v;
    this.shape = shape;
    track(this);
  }

  /** Is this a saved state of this library? False for a proxy or an imitation. */
  static is(value: unknown): value is CoreSaved {
    return typeof value === 'object' && value !== null && #disposed in value;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Frees the saved state. A second call does nothing. */
  dispose(): void {
    this.#disposed = true;
    this.h.dispose();
    this.u?.dispose();
    this.v?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function checkF32(op: string, operand: string, value: unknown, near?: Tensor): Tensor {
  const tensor = checkTensor(op, operand, value);
  if (tensor.dtype !== 'f32') fail('ERR_DTYPE', op, operand, 'f32', tensor.dtype);
  if (near !== undefined) checkSameDevice(op, operand, tensor, near);
  return tensor;
}

const isMatrix = (core: Tensor | undefined): core is Tensor => core?.shape.length === 2;

/** Checks the parts against r, the last dimension of h. */
function checkParts(op: string, given: CoreParts, h: Tensor): Readonly<CoreParts> {
  const { dIn, core, dOut } = given;
  if (dIn === undefined && core === undefined && dOut === undefined) {
    fail('ERR_VALUE', op, 'parts', 'at least one of dIn, core and dOut', 'none');
  }
  const r = lastDim(h);
  let width = r;
  if (dIn !== undefined) checkVector(op, 'dIn', checkF32(op, 'dIn', dIn, h), r);
  if (core !== undefined) {
    checkF32(op, 'core', core, h);
    const { shape } = core;
    if (shape.length > 2 || shape.at(-1) !== r) {
      fail('ERR_SHAPE', op, 'core', `of shape [${r}] or [p, ${r}]`, showShape(shape));
    }
    if (isMatrix(core)) width = shape[0] as number;
  }
  if (dOut !== undefined) checkVector(op, 'dOut', checkF32(op, 'dOut', dOut, h), width);
  return Object.freeze({
    ...(dIn === undefined ? {} : { dIn }),
    ...(core === undefined ? {} : { core }),
    ...(dOut === undefined ? {} : { dOut }),
  });
}

/**
 * A core between shrink and expand: `h2 = C(h ⊙ dIn) ⊙ dOut`. C multiplies by a diagonal,
 * `u ⊙ core`, or by a matrix, `u · coreᵀ`: row i of the matrix gives element i of h2. For the
 * column vector hᵀ this is core · hᵀ, so `loraB · core · loraA` is the update of w.
 * @param h [..., r] f32, as {@link loraShrink} returns it
 * @param parts `dIn` [r], `core` [r] or [p, r], `dOut` [r] (or [p]); f32, at least one
 * @returns `h2` [..., r] (or [..., p]) f32, and what {@link coreScaleBackward} needs
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
 * @example
 * const h = loraShrink(x, loraA);
 * const { h2, saved } = coreScale(h, { core }); // LoRA-XS, MoSLoRA
 * const y = loraExpand(x, w4, h2, loraB, { scaling });
 */
export function coreScale(h: Tensor, parts: CoreParts): { h2: Tensor; saved: CoreSaved } {
  const op = 'coreScale';
  checkF32(op, 'h', h);
  if (h.shape.length === 0) fail('ERR_SHAPE', op, 'h', 'of shape [..., r]', showShape([]));
  if (parts === undefined) throw wrongType(op, 'parts', 'an object', parts);
  const checked = checkParts(op, readOptions(op, parts, { dIn: true, core: true, dOut: true }), h);
  const { dIn, core, dOut } = checked;
  return scope(() => {
    const hHandle = Tensor.handleOf(h, op, 'h');
    const held = Tensor.adopt(
      native(op, (raw) => raw.share(hHandle)),
      h.shape,
      h.dtype,
      h.device,
    );
    const u = dIn === undefined ? h : multiplyAdd({ a: h, b: dIn });
    const v =
      core === undefined ? u : isMatrix(core) ? matmul(u, core) : multiplyAdd({ a: u, b: core });
    const h2 = dOut === undefined ? v : multiplyAdd({ a: v, b: dOut });
    const saved = new CoreSaved(
      checked,
      held,
      u === h || u === h2 ? undefined : u,
      v === u || v === h2 ? undefined : v,
      h2.shape,
    );
    return { h2, saved };
  });
}

/**
 * Gradients of {@link coreScale}. With `u = h ⊙ dIn`, `v = C(u)`, `dv = dh2 ⊙ dOut`:
 *
 * - `dDOut = Σₘ dh2 ⊙ v` · `dCore = Σₘ dv ⊙ u`, or `dvᵀ · u` of a matrix
 * - `du = dv ⊙ core`, or `dv · core` · `dDIn = Σₘ du ⊙ h` · `dh = du ⊙ dIn`
 * @param dh2 the shape of `h2`, f32
 * @param saved from the forward pass; freed afterwards unless `keep`
 * @returns `dh` [..., r], and one gradient for each part that was given, in its shape ([r] for a
 *   vector); f32
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
 * @example
 * const { dh, dCore } = coreScaleBackward(dh2, saved);
 */
export function coreScaleBackward(
  dh2: Tensor,
  saved: CoreSaved,
  options?: { keep?: boolean },
): CoreGradients {
  const op = 'coreScaleBackward';
  checkF32(op, 'dh2', dh2);
  if (!CoreSaved.is(saved)) throw wrongType(op, 'saved', 'the saved state of coreScale', saved);
  if (saved.disposed) fail('ERR_DISPOSED', op, 'saved', 'live saved state', 'a disposed one');
  checkShape(op, 'dh2', dh2, saved.shape);
  const { h, parts } = saved;
  const { dIn, core, dOut } = parts;
  checkSameDevice(op, 'dh2', dh2, h);
  const { keep } = readOptions(op, options, { keep: true });
  const gradients = scope((): CoreGradients => {
    const u = dIn === undefined ? h : saved.u;
    const v = core === undefined ? u : saved.v;
    const dv = dOut === undefined ? dh2 : multiplyAdd({ a: dh2, b: dOut });
    const dDOut = dOut === undefined ? {} : { dDOut: sumProduct(dh2, v, { axis: 0 }) };
    const dCore =
      core === undefined
        ? {}
        : { dCore: isMatrix(core) ? weightGrad(dv, u as Tensor) : sumProduct(dv, u, { axis: 0 }) };
    const du =
      core === undefined
        ? dv
        : isMatrix(core)
          ? matmulInputGrad(dv, core)
          : multiplyAdd({ a: dv, b: core });
    const dDIn = dIn === undefined ? {} : { dDIn: sumProduct(du, h, { axis: 0 }) };
    const dh = dIn === undefined ? du : multiplyAdd({ a: du, b: dIn });
    return { dh, ...dDIn, ...dCore, ...dDOut };
  });
  if (keep !== true) saved.dispose();
  return gradients;
}
