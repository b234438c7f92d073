// LLM.int8 states whose rows are no multiple of 32: decoded and multiplied as others.
import { expect, it } from 'vitest';
import {
  type Device,
  dequantize,
  matmul,
  matmulInputGrad,
  QuantizedWeight,
  scope,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from './operands.js';

const [M, N] = [3, 5];

it.each(DEVICES.flatMap((device) => [40, 56, 16, 8].map((K) => [K, device] as const)))(
  'rows of %i on %s',
  async (K: number, device: Device) => {
    await scope(async () => {
      const codes = Int8Array.from({ length: N * K }, (_, i) => ((i * 37) % 255) - 127);
      const scales = Float32Array.from({ length: N }, (_, n) => 0.5 + n);
      const state = {
        weight: { dtype: 'I8', shape: [N, K], data: codes },
        SCB: { dtype: 'F32', shape: [N], data: scales },
      } as const;
      const w = QuantizedWeight.fromBitsandbytes(state, { device });
      expect(w).toMatchObject({ rowwise: true, shape: [N, K] });
      const dense = dequantize(w, { dtype: 'f32' });
      (await dense.read()).forEach((value, i) => {
        const expected = ((codes[i] as number) * (scales[Math.floor(i / K)] as number)) / 127;
        expect(Math.abs(value - expected)).toBeLessThanOrEqual(2 ** -22 * Math.abs(expected));
      });
      const again = await w.toBitsandbytes();
      expect(again.weight?.data).toEqual(codes);
      expect(again.SCB?.data).toEqual(scales);

      const x = Tensor.randn([M, K], { seed: 2, device });
      const dy = Tensor.randn([M, N], { seed: 3, device });
      const near = async (coded: Tensor, exact: Tensor) => {
        const expected = await exact.read();
        (await coded.read()).forEach((value, i) => {
          expect(Math.abs(value - (expected[i] as number))).toBeLessThan(2e-5 * K);
        });
      };
      await near(matmul(x, w), matmul(x, dense));
      await near(matmulInputGrad(dy, w), matmulInputGrad(dy, dense));
      expect(() => matmul(x, w, { compute: 'int8' })).toThrow(
        expect.objectContaining({
          code: 'ERR_UNSUPPORTED',
          message: `matmul: w must be of a K that is a multiple of 32 (for compute int8), got K = ${K}`,
        }),
      );
    });
  },
);
