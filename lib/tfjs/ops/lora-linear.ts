/**
 * A linear layer with LoRA as one differentiable TensorFlow.js op.
 *
 *   y = x · dequant(w)ᵀ + scaling · (x · lora_aᵀ) · lora_bᵀ + bias
 *
 * Forward and backward run in the library's kernels. w is never dequantised as a whole and has no
 * gradient. On a host device the kernels work on the memory of TensorFlow.js (borrowed-lora.ts). For other devices, the
 * operands are copied, and the state for the backward pass is kept there while a gradient is being recorded.
 */

import type { Tensor as TfTensor } from '@tensorflow/tfjs';
import { fail } from '../../core/errors.js';
import {
  type Device,
  defaultDevice,
  LoraAdapter,
  type LoraGradients,
  type LoraSaved,
  loraBackward,
  loraForward,
  type QuantizedWeight,
  Tensor,
} from '../../index.js';
import { isHostDevice, takesBorrowed } from '../../ops/borrowed.js';
import { tensorFrom, valuesOf } from './backend-memory.js';
import { borrowedLoraLinear } from './borrowed-lora.js';
import { requireFirstOrder } from './gradient-op.js';
import { isTfTensor, requireBias, requireLinearShapes, requireTfFloat } from './operands.js';
import { isRecording, keepState, releaseState } from './saved-states.js';
import { tensorflow } from './tensorflow.js';

const kOp = 'tfjs.loraLinear';

/** An operand of {@link loraLinear} that may be excluded from the gradient. */
export type LoraLinearInput = 'x' | 'loraA' | 'loraB' | 'bias';

/** Options of {@link loraLinear}. */
export interface LoraLinearOptions {
  /** scaling = loraAlpha / r (rslora: / sqrt(r)). Default: r, so that scaling is 1. */
  readonly loraAlpha?: number;
  /** The scaling itself, instead of loraAlpha. */
  readonly scaling?: number;
  /** Rank-stabilised scaling. Default: false. */
  readonly rslora?: boolean;
  /** [N], added to y; differentiable if it is a TensorFlow.js tensor. */
  readonly bias?: TfTensor | Tensor;
  /** Probability of dropping an element of the adapter's input, in [0, 1). Default: 0. */
  readonly dropout?: number;
  /** Seed of the dropout mask; required with dropout > 0, and must differ between steps and layers. */
  readonly seed?: number;
  /** Is dropout applied? Default: while a gradient is being recorded. */
  readonly training?: boolean;
  /** Operands that need no gradient: nothing is computed or saved for them. */
  readonly freeze?: readonly LoraLinearInput[];
  /** The device to compute on, if w is a TensorFlow.js tensor. Default: the default device. */
  readonly device?: Device;
}

/**
 * A linear layer with LoRA, differentiable in TensorFlow.js.
 *
 *   y = x · wᵀ + scaling · (x · loraAᵀ) · loraBᵀ + bias
 *
 * @param x [..., K] float32
 * @param w [N, K], frozen: a quantised weight, a tensor of this library (convert once with
 *   `fromTfjs`), or a TensorFlow.js tensor (copied at every call)
 * @param loraA [r, K] float32
 * @param loraB [N, r] float32
 * @returns y [..., N] float32, on the current backend
 * @throws LowrankError `ERR_SHAPE`, `ERR_VALUE` (options), `ERR_DISPOSED` (w), `ERR_UNSUPPORTED`
 *   (second-order gradients) · TypeError `ERR_TYPE`
 * @example
 * const w = quantize(Tensor.from(values, [n, k]), { format: 'nf4' });
 * const { value, grads } = tf.variableGrads(() =>
 *   tf.mean(tf.square(loraLinear(x, w, loraA, loraB, { loraAlpha: 16 }))) as tf.Scalar);
 */
export function loraLinear(
  x: TfTensor,
  w: QuantizedWeight | Tensor | TfTensor,
  loraA: TfTensor,
  loraB: TfTensor,
  options: LoraLinearOptions = {},
): TfTensor {
  requireTfFloat(kOp, 'x', x);
  requireTfFloat(kOp, 'loraA', loraA);
  requireTfFloat(kOp, 'loraB', loraB);
  const { r, K, N } = requireLoraShapes(x, w, loraA, loraB);
  const bias = options.bias;
  if (bias !== undefined) requireBias(kOp, bias, N);
  const recording = isRecording();
  const settings = adapterSettings(options, r, recording);

  const named: [LoraLinearInput, TfTensor][] = [
    ['x', x],
    ['loraA', loraA],
    ['loraB', loraB],
  ];
  if (isTfTensor(bias)) named.push(['bias', bias]);
  const differentiable = named.filter(([name]) => options.freeze?.includes(name) !== true);
  const wants = new Set(differentiable.map(([name]) => name));

  const call: Call = { x, w, loraA, loraB, M: x.size / K, K, N, settings, wants, options };
  const device = deviceOf(call);
  if (isTfTensor(w) ? isHostDevice(device) : takesBorrowed(w)) {
    const borrowed = { ...call, device, r, bias, recording };
    return borrowedLoraLinear(kOp, borrowed, Object.fromEntries(differentiable));
  }
  if (!recording || wants.size === 0) return forward(call, false).value;
  const op = tensorflow().customGrad(() => {
    const { value, state } = forward(call, true);
    keepState(state);
    return { value, gradFunc: (dy: TfTensor) => backward(dy, state, call, differentiable) };
  });
  return op(...differentiable.map(([, tensor]) => tensor));
}

export interface AdapterSettings {
  readonly loraAlpha: number;
  readonly rslora: boolean;
  readonly dropout: number;
}

interface Call {
  readonly x: TfTensor;
  readonly w: QuantizedWeight | Tensor | TfTensor;
  readonly loraA: TfTensor;
  readonly loraB: TfTensor;
  readonly M: number;
  readonly K: number;
  readonly N: number;
  readonly settings: AdapterSettings;
  readonly wants: ReadonlySet<LoraLinearInput>;
  readonly options: LoraLinearOptions;
}

function deviceOf({ w, options }: Call): Device {
  return isTfTensor(w) ? (options.device ?? defaultDevice()) : w.device;
}

/** The state of a forward pass: its saved state, and the operands that the backward pass reads again. */
class PassState {
  saved: LoraSaved | undefined;
  private readonly owned: { dispose(): void }[] = [];

  own<T extends { dispose(): void }>(value: T): T {
    this.owned.push(value);
    return value;
  }

  dispose(): void {
    this.saved?.dispose();
    for (const value of this.owned) value.dispose();
  }
}

function forward(call: Call, keep: boolean): { value: TfTensor; state: PassState } {
  const { x, w, loraA, loraB, M, K, N, settings, wants, options } = call;
  const { bias, seed } = options;
  const device = deviceOf(call);
  const copyIn = (tensor: TfTensor, shape: readonly number[] = tensor.shape) =>
    Tensor.from(valuesOf(tensor), shape, { device });
  const state = new PassState();
  let finished = false;
  const passing: Tensor[] = [];
  const pass = (tensor: Tensor): Tensor => {
    passing.push(tensor);
    return tensor;
  };
  try {
    const adapter = new LoraAdapter({
      loraA: state.own(copyIn(loraA)),
      loraB: state.own(copyIn(loraB)),
      ...settings,
      trainA: wants.has('loraA'),
      trainB: wants.has('loraB'),
    });
    const weight = isTfTensor(w) ? state.own(copyIn(w)) : w;
    const { y, saved } = loraForward(pass(copyIn(x, [M, K])), weight, adapter, {
      ...(bias === undefined ? {} : { bias: isTfTensor(bias) ? pass(copyIn(bias)) : bias }),
      ...(seed === undefined ? {} : { seed }),
      training: keep || settings.dropout > 0,
    });
    pass(y);
    state.saved = saved;
    const shape = [...x.shape.slice(0, -1), N];
    const value = tensorFrom(shape, (target) => y.readInto(target));
    finished = true;
    return { value, state };
  } finally {
    for (const tensor of passing) tensor.dispose();
    if (!finished || !keep) state.dispose();
  }
}

const kGradientOf = { x: 'dx', loraA: 'dLoraA', loraB: 'dLoraB', bias: 'dBias' } as const;

function backward(
  dy: TfTensor,
  state: PassState,
  { M, N }: Call,
  differentiable: readonly (readonly [LoraLinearInput, TfTensor])[],
): TfTensor[] {
  requireFirstOrder(kOp);
  const { saved } = state;
  if (saved === undefined || saved.disposed) {
    fail(
      'ERR_DISPOSED',
      kOp,
      'the gradient',
      'taken once, before its tape is gone',
      'a later call',
    );
  }
  const dyIn = Tensor.from(valuesOf(dy), [M, N], { device: saved.adapter.loraA.device });
  let gradients: LoraGradients;
  try {
    const needs = differentiable.map(([name]) => kGradientOf[name]);
    gradients = loraBackward(dyIn, saved, { needs });
  } finally {
    dyIn.dispose();
    releaseState(state);
    state.dispose();
  }
  try {
    return differentiable.map(([name, tensor]) => {
      const gradient = gradients[kGradientOf[name]];
      if (gradient === undefined) throw new TypeError(`${kOp}: no gradient of ${name}`);
      return tensorFrom(tensor.shape, (target) => gradient.readInto(target));
    });
  } finally {
    for (const gradient of Object.values(gradients)) gradient?.dispose();
  }
}

/** Checks the shapes of the four operands; see {@link loraLinear}. */
function requireLoraShapes(
  x: TfTensor,
  w: QuantizedWeight | Tensor | TfTensor,
  loraA: TfTensor,
  loraB: TfTensor,
): { r: number; K: number; N: number } {
  const { K, N } = requireLinearShapes(kOp, x, w);
  const r = loraA.shape[0] ?? 0;
  if (loraA.shape.length !== 2 || loraA.shape[1] !== K || r < 1) {
    fail(
      'ERR_SHAPE',
      kOp,
      'loraA',
      `[r, ${K}] with r of at least 1`,
      `[${loraA.shape.join(', ')}]`,
    );
  }
  if (loraB.shape.length !== 2 || loraB.shape[0] !== N || loraB.shape[1] !== r) {
    fail('ERR_SHAPE', kOp, 'loraB', `[${N}, ${r}]`, `[${loraB.shape.join(', ')}]`);
  }
  return { r, K, N };
}

function adapterSettings(
  options: LoraLinearOptions,
  r: number,
  recording: boolean,
): AdapterSettings {
  const { scaling, loraAlpha, rslora = false, dropout = 0 } = options;
  if (scaling !== undefined && (loraAlpha !== undefined || rslora)) {
    fail('ERR_VALUE', kOp, 'options', 'either scaling or loraAlpha and rslora', 'both');
  }
  if (!(dropout >= 0 && dropout < 1)) {
    fail('ERR_VALUE', kOp, 'dropout', 'in [0, 1)', String(dropout));
  }
  const active = dropout > 0 && (options.training ?? recording);
  if (active && options.seed === undefined) {
    fail('ERR_VALUE', kOp, 'seed', 'given with dropout', 'undefined');
  }
  return {
    loraAlpha: scaling === undefined ? (loraAlpha ?? r) : scaling * r,
    rslora,
    dropout: active ? dropout : 0,
  };
}
