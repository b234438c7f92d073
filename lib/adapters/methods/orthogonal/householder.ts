import type { Value } from '../../../autograd/gradient-tape.js';
import { identity } from '../../../autograd/structured.js';
import type { Tape } from '../../../autograd/tape.js';
import type { Device } from '../../../core/device.js';
import { Tensor } from '../../../core/tensor.js';

/**
 * Level l of {@link reflectionCore}: 1 where row and column are in the left and the right half of the
 * same block of 2^(l + 1).
 */
export function reflectionMasks(r: number, device: Device): readonly Tensor[] {
  const masks: Tensor[] = [];
  for (let half = 1; half < r; half *= 2) {
    const values = new Float32Array(r * r);
    for (let i = 0; i < r; i++) {
      for (let j = 0; j < r; j++) {
        const left = Math.floor(i / half);
        if (left % 2 === 0 && Math.floor(j / half) === left + 1) values[i * r + j] = 1;
      }
    }
    masks.push(Tensor.from(values, [r, r], { device }));
  }
  return masks;
}

/**
 * The core T of a product of reflections, `(I - 2 u₁u₁ᵀ)(I - 2 u₂u₂ᵀ) … = I - u · T · uᵀ`, upper
 * triangular. Two neighbouring blocks with the cores P and Q combine to one with the core
 * `[P, -P·(uᵀu)·Q; 0, Q]`: log2 r levels, and no intermediate grows larger than the product.
 * @param u [K, r], columns of length 1
 * @param masks from {@link reflectionMasks}
 */
export function reflectionCore(t: Tape, u: Value, masks: readonly Tensor[]): Value {
  const [, r = 0] = u.shape;
  const gram = t.transposeProduct(u, u);
  let core = t.affine(t.own(identity(r, u.tensor.device)), 2);
  for (const mask of masks) {
    const between = t.multiply(gram, t.constant(mask));
    core = t.add(core, t.product(t.product(core, between), core), 1, -1);
  }
  return core;
}
