// Merging a method that adds no product of factors: what is encoded again is what the weight was, but for its values.
import { describe, expect, it } from 'vitest';
import {
  adapters,
  type BaseWeight,
  type DType,
  dequantize,
  devices,
  QuantizedWeight,
  quantize,
  scope,
  Tensor,
} from '../../lib/index.js';

const [N, K] = [64, 512];
const available = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);

/** IA3 multiplies each row by a power of two, which moves no code and doubles or halves a scale. */
function doubled(w: BaseWeight): QuantizedWeight {
  const { device } = w;
  const adapter = adapters.ia3.create({ inFeatures: K, outFeatures: N, device });
  adapter.parameters.scale?.write(new Float32Array(N).fill(2));
  return adapter.merge(w).weight as QuantizedWeight;
}

describe.each(available)('merging by probes on %s', (device) => {
  const dense = (dtype: DType) => Tensor.randn([N, K], { seed: 3, device, dtype });

  it.each([
    ['nf4', {}],
    ['nf4', { doubleQuant: true }],
    ['fp4', { blocksize: 128 }],
    ['int8', {}],
    ['int8', { doubleQuant: true, blocksize: 64 }],
    ['int8', { rowwise: true }],
    ['int4', {}],
    ['int4', { zeroPoints: true }],
  ] as const)('keeps the dtype that a weight was quantised from, %s %j', (format, options) => {
    scope(() => {
      for (const dtype of ['bf16', 'f16', 'f32'] as const) {
        const w = quantize(dense(dtype), { format, ...options });
        const merged = doubled(w);
        expect(merged.sourceDType).toBe(dtype);
        const { format: kept, blocksize, doubleQuant, rowwise } = merged;
        expect([kept, blocksize, doubleQuant, rowwise]).toEqual([
          w.format,
          w.blocksize,
          w.doubleQuant,
          w.rowwise,
        ]);
        expect(merged.zeroPoints?.shape).toEqual(w.zeroPoints?.shape);
        const y = dequantize(merged);
        expect(y.dtype).toBe(dtype);
        const [got, was] = [y.readSync(), dequantize(w).readSync()];
        let worst = 0;
        let most = 0;
        got.forEach((v, i) => {
          worst = Math.max(worst, Math.abs(v - 2 * (was[i] as number)));
          most = Math.max(most, Math.abs(v));
        });
        // Decoded values are rounded to 16 bits; scales that are quantised again, and int4's middles, move more.
        const moves = w.doubleQuant || w.zeroPoints !== undefined;
        expect(worst).toBeLessThan((moves ? 0.15 : 0.01) * most);
      }
    });
  });

  it('keeps how many scales share one of theirs', async () => {
    await scope(async () => {
      const state = {
        ...(await quantize(dense('bf16'), { format: 'nf4', doubleQuant: true }).toBitsandbytes()),
      };
      const key = 'weight.quant_state.bitsandbytes__nf4';
      const text = new TextDecoder().decode(state[key]?.data as Uint8Array);
      const data = new TextEncoder().encode(
        text.replace('"nested_blocksize": 256', '"nested_blocksize": 512'),
      );
      state[key] = { dtype: 'U8', shape: [data.length], data };
      const nested = state['weight.nested_absmax']?.data as Float32Array;
      state['weight.nested_absmax'] = { dtype: 'F32', shape: [1], data: nested.slice(0, 1) };
      const w = QuantizedWeight.fromBitsandbytes(state, { device });
      const merged = await doubled(w).toBitsandbytes();
      const after = new TextDecoder().decode(merged[key]?.data as Uint8Array);
      expect(JSON.parse(after)).toMatchObject({ nested_blocksize: 512, dtype: 'bfloat16' });
      expect(merged['weight.nested_absmax']?.shape).toEqual([1]);
    });
  });
});
