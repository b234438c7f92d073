/** Forward and backward of one linear layer with a low-rank adapter, in float64. */
import {
  abs,
  add,
  addRow,
  type Bounded,
  columnSums,
  hadamard,
  type Matrix,
  matmul64,
  matmulInputGrad64,
  scaled,
  times,
  timesTransposed,
  transpose,
} from './linear.js';

export interface LoraInputs {
  readonly x: Matrix; // [M, K]
  readonly w: Matrix; // [N, K]
  readonly bias?: Matrix | undefined; // [1, N]
  readonly loraA: Matrix; // [r, K]
  readonly loraB: Matrix; // [N, r]
  readonly loraBias?: Matrix | undefined; // [1, N]
  readonly scaling: number;
  /** [M, K]: 0 where dropped, 1 / (1 - p) where kept. */
  readonly gate?: Matrix | undefined;
}

export interface LoraGradients {
  readonly dx: Bounded; // [M, K]
  readonly dLoraA: Bounded; // [r, K]
  readonly dLoraB: Bounded; // [N, r]
  readonly dBias: Bounded; // [1, N]
  readonly dLoraBias: Bounded; // [1, N]
}

const gated = (inputs: LoraInputs): Matrix =>
  inputs.gate === undefined ? inputs.x : hadamard(inputs.gate, inputs.x);

/** h = (gate ⊙ x) · loraAᵀ */
export function loraShrink64(inputs: LoraInputs): Bounded {
  return matmul64(gated(inputs), inputs.loraA);
}

/** y = x · wᵀ + bias + scaling · (h · loraBᵀ + loraBias) */
export function loraForward64(inputs: LoraInputs): Bounded {
  const { x, w, bias, loraB, loraBias, scaling } = inputs;
  const base = matmul64(x, w, bias);
  const h = loraShrink64(inputs);
  let value = add(base.value, scaled(timesTransposed(h.value, loraB), scaling));
  let p = add(base.p, scaled(timesTransposed(h.p, abs(loraB)), Math.abs(scaling)));
  if (loraBias !== undefined) {
    value = addRow(value, scaled(loraBias, scaling));
    p = addRow(p, abs(scaled(loraBias, scaling)));
  }
  return { value, p };
}

/** All gradients of Σ y ⊙ dy. */
export function loraBackward64(inputs: LoraInputs, dy: Matrix): LoraGradients {
  const { w, loraA, loraB, scaling, gate } = inputs;
  const size = Math.abs(scaling);
  const dh = scaled(times(dy, loraB), scaling);
  const dhP = scaled(times(abs(dy), abs(loraB)), size);
  const h = loraShrink64(inputs);
  const seen = gated(inputs);
  const base = matmulInputGrad64(dy, w);
  let through = times(dh, loraA);
  let throughP = times(dhP, abs(loraA));
  if (gate !== undefined) {
    through = hadamard(gate, through);
    throughP = hadamard(abs(gate), throughP);
  }
  const bias = columnSums(dy);
  const biasP = columnSums(abs(dy));
  return {
    dx: { value: add(base.value, through), p: add(base.p, throughP) },
    dLoraA: { value: times(transpose(dh), seen), p: times(transpose(dhP), abs(seen)) },
    dLoraB: {
      value: scaled(times(transpose(dy), h.value), scaling),
      p: scaled(times(transpose(abs(dy)), h.p), size),
    },
    dBias: { value: bias, p: biasP },
    dLoraBias: { value: scaled(bias, scaling), p: scaled(biasP, size) },
  };
}
