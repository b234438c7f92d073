/** The LoRA layer on a host device: its kernels read and write the memory of TensorFlow.js' tensors. */

import type { Tensor as TfTensor } from '@tensorflow/tfjs';
import type { Device, QuantizedWeight, Tensor } from '../../index.js';
import {
  type BorrowedLora,
  type LoraWeight,
  loraBackwardBorrowed,
  loraForwardBorrowed,
} from '../../ops/borrowed.js';
import { tensorFrom, tensorInfoFrom, valuesOf } from './backend-memory.js';
import { gradientOp, type OpInputs } from './gradient-op.js';
import { isTfTensor } from './operands.js';
import { tensorflow } from './tensorflow.js';

/** A call whose operands have been checked. */
export interface BorrowedCall {
  readonly device: Device;
  readonly x: TfTensor;
  readonly w: QuantizedWeight | Tensor | TfTensor;
  readonly loraA: TfTensor;
  readonly loraB: TfTensor;
  readonly bias: TfTensor | Tensor | undefined;
  readonly M: number;
  readonly N: number;
  readonly r: number;
  readonly settings: {
    readonly loraAlpha: number;
    readonly rslora: boolean;
    readonly dropout: number;
  };
  readonly options: { readonly seed?: number };
  readonly recording: boolean;
}

const kOperands = ['x', 'loraA', 'loraB', 'w'] as const;
const kFactors = ['loraA', 'loraB', 'bias'] as const;

/** @param inputs the operands that have a gradient: x, loraA, loraB, bias */
export function borrowedLoraLinear(op: string, call: BorrowedCall, inputs: OpInputs): TfTensor {
  const { x, w, loraA, loraB, bias, M, N, r, settings, recording } = call;
  const pass: BorrowedLora = {
    device: call.device,
    M,
    r,
    scaling: settings.loraAlpha / (settings.rslora ? Math.sqrt(r) : r),
    dropout: settings.dropout,
    seed: call.options.seed ?? 0,
  };
  const h = new Float32Array(M * r);
  // Nothing keeps an operand without a gradient until the backward pass, so its values are copied.
  const kept: Partial<Record<string, Float32Array>> = {};
  const forward = () =>
    tensorInfoFrom([...x.shape.slice(0, -1), N], (y) => {
      const operands = {
        x: valuesOf(x),
        loraA: valuesOf(loraA),
        loraB: valuesOf(loraB),
        bias: isTfTensor(bias) ? valuesOf(bias) : bias?.readSync(),
      };
      loraForwardBorrowed(weightOf(w), pass, operands, h, y);
      if (!recording) return;
      for (const name of kOperands) {
        const tensor = call[name];
        if (name in inputs || !isTfTensor(tensor) || !needed(name, inputs)) continue;
        kept[name] = valuesOf(tensor).slice();
      }
    });
  const names = Object.keys(inputs);
  if (!recording || names.length === 0) {
    return tensorflow().engine().makeTensorFromTensorInfo(forward());
  }
  return gradientOp(op, inputs, forward, (dy, saved) => {
    const values = (name: string): Float32Array | undefined => {
      const tensor = saved[names.indexOf(name)];
      return tensor === undefined ? kept[name] : valuesOf(tensor);
    };
    const backward = (gradients: Parameters<typeof loraBackwardBorrowed>[3]) =>
      loraBackwardBorrowed(
        kept.w ?? weightOf(w),
        pass,
        {
          dy: valuesOf(dy),
          x: values('x'),
          loraA: values('loraA') as Float32Array,
          loraB: values('loraB') as Float32Array,
          h,
        },
        gradients,
      );
    // The gradients of the factors share a product, and one run computes them all.
    let factors: Partial<Record<string, Float32Array>> | undefined;
    const factor = (name: (typeof kFactors)[number]) => () => {
      if (factors === undefined) {
        const array = (of: string) =>
          of in inputs ? new Float32Array((inputs[of] as TfTensor).size) : undefined;
        factors = { loraA: array('loraA'), loraB: array('loraB'), bias: array('bias') };
        backward({ dLoraA: factors.loraA, dLoraB: factors.loraB, dBias: factors.bias });
      }
      const found = factors[name] as Float32Array;
      return tensorFrom((inputs[name] as TfTensor).shape, (target) => target.set(found));
    };
    const gradients: Record<string, () => TfTensor> = {};
    for (const name of kFactors) if (name in inputs) gradients[name] = factor(name);
    if ('x' in inputs) gradients.x = () => tensorFrom(x.shape, (dx) => backward({ dx }));
    return gradients;
  });
}

function weightOf(w: QuantizedWeight | Tensor | TfTensor): LoraWeight {
  return isTfTensor(w) ? valuesOf(w) : w;
}

/** Does the gradient of one of the inputs read this operand? */
function needed(name: (typeof kOperands)[number], inputs: OpInputs): boolean {
  if (name === 'x') return 'loraA' in inputs;
  if (name === 'w') return 'x' in inputs;
  return true;
}
