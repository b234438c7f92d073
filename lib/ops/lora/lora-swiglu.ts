import { type NativeHandle, native } from '../../core/binding.js';
import { checkShape, checkTensor } from '../../core/check-tensor.js';
import { fail, notConstructed, wrongType } from '../../core/errors.js';
import { scope, track } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { checkSameDevice, readOptions, showShape } from '../../core/validate.js';
import { withLast } from '../base-weight.js';
import { checkTraining } from '../dropout.js';
import { swiglu, swigluBackward } from '../swiglu.js';
import { zeroTermOf } from '../zero-points.js';
import type { LoraGradients } from './lora-linear.js';
import {
  backwardMany,
  type LoraBackwardManyOptions,
  LoraManySaved,
  type LoraProjection,
  oneByOne,
  type Part,
  partOf,
  savedOf,
} from './lora-many.js';

/** State for {@link loraBackwardSwiglu}. */
export class LoraSwigluSaved implements Disposable {
  /** [..., N], if it was a training step. */
  readonly gate: Tensor | undefined;
  /** [..., N], if it was a training step. */
  readonly up: Tensor | undefined;
  /** The states of both projections, gate first. */
  readonly projections: LoraManySaved;
  #disposed = false;

  /** @internal */
  constructor(projections: LoraManySaved, gate: Tensor | undefined, up: Tensor | undefined) {
    if (!LoraManySaved.is(projections)) {
      throw notConstructed('LoraSwigluSaved', 'loraForwardSwiglu');
    }
    this.projections = projections;
    this.gate = gate;
    this.up = up;
    track(this);
  }

  /** Is this a saved state of this library? False for a proxy or an imitation. */
  static is(value: unknown): value is LoraSwigluSaved {
    return typeof value === 'object' && value !== null && #disposed in value;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Frees the saved state. A second call does nothing. */
  dispose(): void {
    this.#disposed = true;
    this.gate?.dispose();
    this.up?.dispose();
    this.projections.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * The first half of a SwiGLU feed-forward layer in one call: gate and up, two linear layers over the
 * same x, each with its own weight and optional adapter, and
 *
 * `y = silu(gate(x)) ⊙ up(x)`, `silu(g) = g · σ(g)`
 *
 * with the bits of {@link loraForwardMany} followed by {@link swiglu}: gate and up are rounded to the
 * dtype of x before the product. With `training: false` neither is kept: on `cpu`, if no weight has
 * zero-points, y is computed block by block and neither takes extra memory; on `cuda` both are in the
 * workspace.
 * @param x [..., K] f32, bf16 or f16
 * @param gate the projection whose result goes through SiLU, [N, K]
 * @param up the projection that is multiplied by it, [N, K]
 * @param options.training default true. `false` turns dropout off and saves nothing
 * @returns `y` [..., N], dtype of `x`, and the state for {@link loraBackwardSwiglu}: gate, up, and
 * what {@link loraForward} saves for each
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_UNSUPPORTED, ERR_DISPOSED,
 * ERR_OOM; then nothing is computed
 * @example
 * const { y, saved } = loraForwardSwiglu(x, { w: wGate, adapter: loraGate }, { w: wUp, adapter: loraUp });
 * const out = matmul(y, wDown);
 * const { dx, gradients: [dGate, dUp] } = loraBackwardSwiglu(matmulInputGrad(dOut, wDown), saved);
 */
export function loraForwardSwiglu(
  x: Tensor,
  gate: LoraProjection,
  up: LoraProjection,
  options?: { training?: boolean },
): { y: Tensor; saved: LoraSwigluSaved } {
  const op = 'loraForwardSwiglu';
  checkTensor(op, 'x', x);
  const training = checkTraining(op, readOptions(op, options, { training: true }).training);
  const g = partOf(`${op}, gate`, x, gate, training);
  const u = partOf(`${op}, up`, x, up, training);
  if (u.N !== g.N) fail('ERR_SHAPE', op, 'up.w', `of shape [N = ${g.N}, K]`, showShape(u.w.shape));
  if ([g, u].some(({ w }) => zeroTermOf(w) !== undefined)) return inTurn(x, [gate, up], training);
  const xHandle = Tensor.handleOf(x, op, 'x');
  const [raw, gateX, upX] = native(op, (binding) => {
    const hold = ({ adapted }: Part) => (adapted?.call.keepX ? binding.share(xHandle) : null);
    return [binding.loraForwardSwiglu(xHandle, g.args, u.args, training), hold(g), hold(u)];
  });
  const [yHandle, gateH, upH, gateY, upY] = raw;
  const adopt = (handle: NativeHandle): Tensor =>
    Tensor.adopt(handle, withLast(x, g.N), x.dtype, x.device);
  const y = adopt(yHandle);
  const projections = [savedOf(g, x, y, gateH, gateX), savedOf(u, x, y, upH, upX)];
  const kept = [gateY, upY].map((handle) => (handle === null ? undefined : adopt(handle)));
  return { y, saved: new LoraSwigluSaved(new LoraManySaved(projections), kept[0], kept[1]) };
}

/** One op after another, if a weight has zero-points. */
function inTurn(
  x: Tensor,
  projections: readonly [LoraProjection, LoraProjection],
  training: boolean,
): { y: Tensor; saved: LoraSwigluSaved } {
  return scope(() => {
    const { ys, saved } = oneByOne(x, projections, training);
    const [gate, up] = ys as [Tensor, Tensor];
    const y = swiglu(gate, up);
    return {
      y,
      saved: training
        ? new LoraSwigluSaved(saved, gate, up)
        : new LoraSwigluSaved(saved, undefined, undefined),
    };
  });
}

/**
 * Gradients of {@link loraForwardSwiglu}: {@link swigluBackward} gives those of gate and up, and
 * {@link loraBackwardMany} turns them into `dx` and the gradients of each projection, bit for bit.
 * @param dy [..., N], dtype of `x`
 * @param saved from a forward pass with `training`; freed afterwards unless `keep`
 * @returns `dx` [..., K] and the gradients of gate and up, empty without an adapter
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
 * @example
 * const { y, saved } = loraForwardSwiglu(x, { w: wGate, adapter }, { w: wUp });
 * const { dx, gradients: [gate, up] } = loraBackwardSwiglu(dy, saved);
 */
export function loraBackwardSwiglu(
  dy: Tensor,
  saved: LoraSwigluSaved,
  options?: LoraBackwardManyOptions,
): { dx?: Tensor; gradients: [gate: LoraGradients, up: LoraGradients] } {
  const op = 'loraBackwardSwiglu';
  checkTensor(op, 'dy', dy);
  if (!LoraSwigluSaved.is(saved)) {
    throw wrongType(op, 'saved', 'the saved state of loraForwardSwiglu', saved);
  }
  if (saved.disposed) fail('ERR_DISPOSED', op, 'saved', 'live saved state', 'a disposed one');
  const { gate, up, projections } = saved;
  if (gate === undefined || up === undefined) {
    fail('ERR_VALUE', op, 'saved', 'of a training step', 'one with training: false');
  }
  checkTensor(op, 'saved.gate', gate);
  checkTensor(op, 'saved.up', up);
  checkShape(op, 'dy', dy, gate.shape);
  checkSameDevice(op, 'dy', dy, gate);
  if (dy.dtype !== gate.dtype) fail('ERR_DTYPE', op, 'dy', `${gate.dtype}, as x was`, dy.dtype);
  const given = readOptions(op, options, { needs: true, accumulateInto: true, keep: true });
  const { dGate, dUp } = swigluBackward(dy, gate, up);
  try {
    const { dx, gradients } = backwardMany(
      op,
      [dGate, dUp],
      projections,
      { ...given, keep: true },
      (i) => (i === 0 ? 'gate' : 'up'),
    );
    if (given.keep !== true) saved.dispose();
    const [ofGate = {}, ofUp = {}] = gradients;
    return { ...(dx === undefined ? {} : { dx }), gradients: [ofGate, ofUp] };
  } finally {
    dGate.dispose();
    dUp.dispose();
  }
}
