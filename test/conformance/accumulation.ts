/** Long sums of data that show how a device adds: of one sign, and of a large range. */
import { expect } from 'vitest';
import {
  type Device,
  type DType,
  loraExpandBackward,
  loraShrink,
  matmul,
  scope,
  type Tensor,
} from '../../lib/index.js';
import { bound, promised } from '../oracle/compare.js';
import { positiveMatrix } from '../oracle/inputs.js';
import { expandBackward64, matmul64, matrix, roundAll } from '../oracle.js';
import { tensorOf } from './operands.js';

export const LENGTHS = [256, 4096, 14_336, 65_536] as const;
/** Of one sign; over 40 powers of two (f16 has room for fewer). */
export const DATA = ['one sign', 'large range'] as const;
export type Data = (typeof DATA)[number];

function values(rows: number, cols: number, seed: number, dtype: DType, data: Data) {
  const powers = dtype === 'f16' ? ([-11, 1] as const) : ([-20, 20] as const);
  const drawn = positiveMatrix(rows, cols, seed, data === 'one sign' ? undefined : powers);
  return matrix(rows, cols, roundAll(dtype, drawn.data));
}

/** The largest error of x · wᵀ in units of 2^-24 · P, and what the device promises. */
export async function productError(
  device: Device,
  dtype: DType,
  data: Data,
  [M, N, K]: readonly [M: number, N: number, K: number],
): Promise<{ worst: number; limit: number }> {
  return scope(async () => {
    const x = values(M, K, 1, dtype, data);
    const w = values(N, K, 2, dtype, data);
    const on = { dtype, device };
    const y = await matmul(tensorOf(x, on), tensorOf(w, on)).read();
    const limit = promised(device, { terms: K, dtype, of: 'product' });
    const { worst } = bound(`y ${data} ${K}`, y, matmul64(x, w), { dtype, c: limit });
    return { worst, limit };
  });
}

/** The same of an adapter's h = x · lora_aᵀ, which is f32 whatever x is. */
export async function shrinkError(
  device: Device,
  dtype: DType,
  data: Data,
  [M, r, K]: readonly [M: number, r: number, K: number],
): Promise<{ worst: number; limit: number }> {
  return scope(async () => {
    const x = values(M, K, 3, dtype, data);
    const a = values(r, K, 4, 'f32', data);
    const loraA = tensorOf(matrix(r, K, roundAll('f32', a.data)), { device });
    const h = await loraShrink(tensorOf(x, { dtype, device }), loraA).read();
    const limit = promised(device, { terms: K, dtype, of: 'adapter' });
    const exactA = matrix(r, K, roundAll('f32', a.data));
    const { worst } = bound(`h ${data} ${K}`, h, matmul64(x, exactA), { c: limit });
    return { worst, limit };
  });
}

/** The same of the gradients of lora_b and of a bias: sums over the rows. */
export async function gradientError(
  device: Device,
  dtype: DType,
  data: Data,
  [M, N, r]: readonly [M: number, N: number, r: number],
): Promise<{ worst: number; limit: number }> {
  return scope(async () => {
    const dy = values(M, N, 5, dtype, data);
    const h = matrix(M, r, roundAll('f32', values(M, r, 6, 'f32', data).data));
    const b = values(N, r, 7, 'f32', data);
    const [dyOf, hOf, loraB] = [
      tensorOf(dy, { dtype, device }),
      tensorOf(h, { device }),
      tensorOf(b, { device }),
    ];
    const found = loraExpandBackward(dyOf, hOf, loraB, { needs: ['dLoraB', 'dBias'] });
    const exact = expandBackward64(dy, h, b, 1);
    const limit = promised(device, { terms: M, dtype, of: 'factor gradient' });
    const read = (tensor: Tensor | undefined) => (tensor as Tensor).read();
    const ofB = bound(`dLoraB ${data} ${M}`, await read(found.dLoraB), exact.dLoraB, { c: limit });
    const dBias = await read(found.dBias);
    const ofBias = bound(`dBias ${data} ${M}`, dBias, exact.dBias, { dtype, c: limit });
    return { worst: Math.max(ofB.worst, ofBias.worst), limit };
  });
}

/** The promise is at least so many times what these data show; `cpu` comes up to two thirds of it. */
const margin = (device: Device): number => (device.startsWith('cuda') ? 2 : 1);

/**
 * Products, an adapter's h and its gradients over all lengths and data; few rows, and as many as a tile of the largest
 * has.
 */
export async function checkSums(device: Device, dtype: DType): Promise<void> {
  for (const data of DATA) {
    for (const K of LENGTHS) {
      for (const M of K > 4096 ? [3] : [3, 70]) {
        const N = K > 4096 ? 12 : 40;
        const y = await productError(device, dtype, data, [M, N, K]);
        const h = await shrinkError(device, dtype, data, [M, 8, K]);
        const name = `${data}, [${M}, ${K}]`;
        expect(y.worst * margin(device), `y of ${name}`).toBeLessThan(y.limit);
        expect(h.worst * margin(device), `h of ${name}`).toBeLessThan(h.limit);
      }
      const gradients = await gradientError(device, dtype, data, [K, 12, 8]);
      const name = `gradients over ${K} rows of ${data}`;
      expect(gradients.worst * margin(device), name).toBeLessThan(gradients.limit);
    }
  }
}
