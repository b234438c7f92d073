// The counters are exact, and nothing leaks.
import { describe, expect, it } from 'vitest';
import {
  type Device,
  dequantize,
  FORMATS,
  LoraAdapter,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  memoryUsage,
  QuantizedWeight,
  quantize,
  resetPeakMemory,
  scope,
  synchronize,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';

async function usage(device: Device): Promise<[bytes: number, tensors: number]> {
  await synchronize(device);
  const { liveBytes, liveTensors } = memoryUsage(device);
  return [liveBytes, liveTensors];
}

describe.each(DEVICES)('memory of %s', (device) => {
  it('counts every byte of tensors and weights', async () => {
    const [bytes, tensors] = await usage(device);
    const grown = async (): Promise<number> => (await usage(device))[0] - bytes;
    const a = Tensor.zeros([3, 5], { device });
    expect(await grown()).toBe(60);
    const b = Tensor.from([1, 2, 3], [3], { dtype: 'bf16', device });
    expect(await grown()).toBe(66);
    expect((await usage(device))[1] - tensors).toBe(2);
    a.dispose();
    expect(await grown()).toBe(6);
    const w = Tensor.randn([64, 64], { seed: 1, device });
    for (const { name: format } of FORMATS) {
      for (const doubleQuant of [false, true]) {
        const before = await grown();
        const q = quantize(w, { format, doubleQuant });
        expect((await grown()) - before).toBe(q.byteLength);
        q.dispose();
        expect(await grown()).toBe(before);
      }
    }
    w.dispose();
    b.dispose();
    expect(await usage(device)).toEqual([bytes, tensors]);
  });

  it('keeps the peak until it is reset', async () => {
    await synchronize(device);
    resetPeakMemory(device);
    const start = memoryUsage(device).peakBytes;
    expect(start).toBe(memoryUsage(device).liveBytes);
    const big = Tensor.zeros([1000], { device });
    big.dispose();
    await synchronize(device);
    expect(memoryUsage(device).peakBytes).toBe(start + 4000);
    resetPeakMemory(device);
    expect(memoryUsage(device).peakBytes).toBe(start);
  });

  it('the same tensor on another device is counted there', async () => {
    const other = DEVICES.find((candidate) => candidate !== device) as Device;
    const [here] = await usage(device);
    const [there] = await usage(other);
    const t = Tensor.zeros([10], { device });
    const moved = t.to({ device: other });
    expect((await usage(other))[0] - there).toBe(40);
    t.dispose();
    expect((await usage(device))[0]).toBe(here);
    moved.dispose();
    expect((await usage(other))[0]).toBe(there);
  });

  it('10,000 calls of every kind leave the counters where they were', async () => {
    const start = await usage(device);
    const x = Tensor.randn([2, 8], { seed: 1, device });
    const dense = Tensor.randn([4, 8], { seed: 2, device });
    const w = quantize(dense, { format: 'nf4', doubleQuant: true });
    const state = await w.toBitsandbytes();
    const adapter = LoraAdapter.init({
      inFeatures: 8,
      outFeatures: 4,
      r: 2,
      loraAlpha: 4,
      seed: 3,
      device,
      dropout: 0.1,
    });
    const held = await usage(device);
    const dy = Tensor.randn([2, 4], { seed: 4, device });
    const shared = new Float32Array(new SharedArrayBuffer(16));
    let calls = 0;
    for (let round = 0; round < 700; round++) {
      await scope(async () => {
        const { y, saved } = loraForward(x, w, adapter, { seed: round });
        loraBackward(dy, saved, { keep: true });
        loraBackward(dy, saved);
        matmul(x, w);
        matmulInputGrad(dy, w);
        dequantize(quantize(dense, { format: 'int8' }));
        QuantizedWeight.fromBitsandbytes(state, { device });
        x.to({ dtype: 'bf16' });
        Tensor.wrap(shared, [4], { device });
        Tensor.randn([3], { seed: round, device });
        expect(() => matmul(y, w)).toThrow();
        y.readSync();
        calls += 15;
        if (round % 50 === 0) await y.read();
      });
    }
    expect(calls).toBeGreaterThan(10_000);
    dy.dispose();
    expect(await usage(device)).toEqual(held);
    for (const part of [x, dense, w, adapter]) part.dispose();
    expect(await usage(device)).toEqual(start);
  });
});
