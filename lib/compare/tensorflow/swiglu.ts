import type { Tensor } from '@tensorflow/tfjs';
import { tensorFrom, valuesOf } from '../../tfjs/ops/backend-memory.js';
import { customOp } from './custom-op.js';
import { exp } from './exp.js';

/**
 * The gate of a Llama MLP.
 *
 *   y = gate · σ(gate) · up
 *   d_gate = dy · up · σ · (1 + gate · (1 − σ)),  d_up = dy · gate · σ
 *
 * @param gate [M, inner]
 * @param up [M, inner]
 * @returns [M, inner]
 */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  const forward = () => {
    // Kept for the backward pass: an exponential costs more than reading it back.
    const sigma = tensorFrom(gate.shape, (out) => {
      const g = valuesOf(gate);
      for (let i = 0; i < out.length; i++) out[i] = 1 / (1 + exp(-(g[i] as number)));
    });
    const value = tensorFrom(gate.shape, (y) => {
      const g = valuesOf(gate);
      const u = valuesOf(up);
      const s = valuesOf(sigma);
      for (let i = 0; i < y.length; i++) {
        y[i] = (g[i] as number) * (s[i] as number) * (u[i] as number);
      }
    });
    return { value, saved: [gate, up, sigma] };
  };
  return customOp([gate, up], forward, (dy, saved) => {
    const [gateSaved, upSaved, sigma] = saved as [Tensor, Tensor, Tensor];
    const dGate = tensorFrom(dy.shape, (out) => {
      const g = valuesOf(gateSaved);
      const u = valuesOf(upSaved);
      const s = valuesOf(sigma);
      const d = valuesOf(dy);
      for (let i = 0; i < out.length; i++) {
        const si = s[i] as number;
        out[i] = (d[i] as number) * (u[i] as number) * si * (1 + (g[i] as number) * (1 - si));
      }
    });
    const dUp = tensorFrom(dy.shape, (out) => {
      const g = valuesOf(gateSaved);
      const s = valuesOf(sigma);
      const d = valuesOf(dy);
      for (let i = 0; i < out.length; i++) {
        out[i] = (d[i] as number) * (g[i] as number) * (s[i] as number);
      }
    });
    return [dGate, dUp];
  });
}
