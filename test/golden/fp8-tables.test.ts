// The code books of fp8, which have two zeros: quantised by, stored, and read back.
import { expect, it } from 'vitest';
import { dequantize, QuantizedWeight, quantize, scope, Tensor } from '../../lib/index.js';
import { loadCase } from './case-file.js';

it.each(['out.fp8_e5m2', 'out.fp8_e4m3'])('quant/q8_maps, %s', async (name) => {
  const codebook = Float32Array.from(loadCase('quant/q8_maps').numbers(name));
  expect(new Set(codebook).size).toBeLessThan(256);
  await scope(async () => {
    const w = Tensor.randn([4, 64], { seed: 1, device: 'cpu' });
    const coded = quantize(w, { format: 'int8', codebook });
    const again = QuantizedWeight.fromBitsandbytes(await coded.toBitsandbytes(), { device: 'cpu' });
    expect(await dequantize(again).read()).toEqual(await dequantize(coded).read());
  });
});
