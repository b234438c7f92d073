/**
 * Converts features to attention heads and back, with rotary embeddings on the way.
 *
 *   x [B·T, H·d]  <->  heads [B, H, T, d]
 */

import type { Tensor } from '@tensorflow/tfjs';
import type { LlamaConfig } from '../../model/llama-config.js';
import { rotaryFrequencies } from '../../model/rotary.js';
import { tensorFrom, valuesOf } from '../../tfjs/ops/backend-memory.js';
import { customOp } from './custom-op.js';

/** cos and sin of every angle, [T, d / 2] each. */
export interface RotaryTable {
  readonly cos: Float32Array;
  readonly sin: Float32Array;
}

/** Sizes of one attention input. */
export interface HeadShape {
  readonly B: number;
  readonly T: number;
  readonly H: number;
  /** Head dimension. */
  readonly d: number;
}

/**
 * The rotary angles of positions 0 to T - 1: angle = position · f_i, f_i = theta^(-2i/d), stretched
 * by the model's rope scaling.
 */
export function rotaryTable(config: LlamaConfig, T: number): RotaryTable {
  const half = config.headDim / 2;
  const cos = new Float32Array(T * half);
  const sin = new Float32Array(T * half);
  const { ropeTheta: theta, headDim: dims, ropeScaling: scaling } = config;
  const frequencies = rotaryFrequencies({ theta, dims, scaling }, T);
  for (let i = 0; i < half; i++) {
    const frequency = frequencies[i] as number;
    for (let t = 0; t < T; t++) {
      cos[t * half + i] = Math.cos(t * frequency);
      sin[t * half + i] = Math.sin(t * frequency);
    }
  }
  return { cos, sin };
}

/**
 * Splits features into heads, and rotates each head by its position if a table is given:
 * y = x · cos + rotate_half(x) · sin, rotate_half(a, b) = (-b, a).
 *
 * @param x [B·T, H·d]
 * @param outShape any shape of B·H·T·d elements in the order [B, H, T, d]
 */
export function splitHeads(
  x: Tensor,
  shape: HeadShape,
  outShape: readonly number[],
  table?: RotaryTable,
): Tensor {
  const forward = () => ({
    value: tensorFrom(outShape, (out) => toHeads(valuesOf(x), out, shape, table)),
    saved: [],
  });
  return customOp([x], forward, (dy) => [
    tensorFrom(x.shape, (out) => fromHeads(valuesOf(dy), out, shape, table)),
  ]);
}

/**
 * Joins heads to features.
 *
 * @param heads B·H·T·d elements in the order [B, H, T, d]
 * @returns [B·T, H·d]
 */
export function mergeHeads(heads: Tensor, shape: HeadShape): Tensor {
  const { B, T, H, d } = shape;
  const forward = () => ({
    value: tensorFrom([B * T, H * d], (out) => fromHeads(valuesOf(heads), out, shape)),
    saved: [],
  });
  return customOp([heads], forward, (dy) => [
    tensorFrom(heads.shape, (out) => toHeads(valuesOf(dy), out, shape)),
  ]);
}

function toHeads(xs: Float32Array, out: Float32Array, shape: HeadShape, table?: RotaryTable): void {
  moveHeads(xs, out, shape, false, table);
}

/** The inverse of {@link toHeads}, and its gradient: the rotation is orthogonal. */
function fromHeads(
  heads: Float32Array,
  out: Float32Array,
  shape: HeadShape,
  table?: RotaryTable,
): void {
  moveHeads(heads, out, shape, true, table);
}

/** [B, T, H, d] to [B, H, T, d], rotated by +angle; or back (`inverse`), rotated by -angle. */
function moveHeads(
  source: Float32Array,
  out: Float32Array,
  { B, T, H, d }: HeadShape,
  inverse: boolean,
  table?: RotaryTable,
): void {
  const half = d / 2;
  const direction = inverse ? -1 : 1;
  for (let b = 0; b < B; b++) {
    for (let h = 0; h < H; h++) {
      for (let t = 0; t < T; t++) {
        const flat = ((b * T + t) * H + h) * d;
        const split = ((b * H + h) * T + t) * d;
        const from = inverse ? split : flat;
        const to = inverse ? flat : split;
        if (table === undefined) {
          for (let i = 0; i < d; i++) out[to + i] = source[from + i] as number;
          continue;
        }
        for (let i = 0; i < half; i++) {
          const c = table.cos[t * half + i] as number;
          const s = direction * (table.sin[t * half + i] as number);
          const low = source[from + i] as number;
          const high = source[from + half + i] as number;
          out[to + i] = low * c - high * s;
          out[to + half + i] = high * c + low * s;
        }
      }
    }
  }
}
