// The fused layer is no less accurate than the same layer put together from single products.
import { describe, expect, it } from 'vitest';
import { loraForward, matmul, scope, type Tensor } from '../../lib/index.js';
import { loraForward64, nmse, roundTo } from '../oracle.js';
import { loraCase } from './lora-case.js';
import { DEVICES, DTYPES, QUANTISED } from './operands.js';

const CASES = DEVICES.flatMap((device) => DTYPES.map((dtype) => ({ device, dtype })));
/** Drift of y over the tensor; a correct kernel is far below. */
const NMSE_LIMIT = { f32: 1e-12, bf16: 2e-5, f16: 3e-7 } as const;

describe.each(CASES)('$device, $dtype', ({ device, dtype }) => {
  it.each([
    { M: 33, N: 65, K: 172, r: 8 },
    { M: 16, N: 96, K: 1024, r: 64 },
  ])('root mean square error at most twice the unfused one, K $K r $r', async (shape) => {
    await scope(async () => {
      const spec = QUANTISED[0] as (typeof QUANTISED)[number];
      const c = loraCase(shape, { bias: true, sameDType: true }, spec, dtype, device, 12);
      const expected = loraForward64(c.inputs).value.data;
      const fused = await loraForward(c.x, c.w, c.adapter, c.options).y.read();
      const { loraA, loraB, scaling } = c.adapter;
      const base = await matmul(c.x, c.w, { bias: c.options.bias as Tensor }).read();
      const low = await matmul(matmul(c.x, loraA), loraB).read();
      const unfused = base.map((v, i) => roundTo(dtype, v + scaling * (low[i] as number)));
      const rms = (values: Float32Array): number =>
        Math.sqrt(values.reduce((sum, v, i) => sum + (v - (expected[i] as number)) ** 2, 0));
      expect(rms(unfused)).toBeGreaterThan(0);
      expect(rms(fused)).toBeLessThanOrEqual(2 * rms(unfused));
      const drift = nmse('y', fused, expected, NMSE_LIMIT[dtype]);
      expect(drift).toBeLessThan(NMSE_LIMIT[dtype] / 2);
    });
  });
});
