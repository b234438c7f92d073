/**
 * LoRA forward and backward over an NF4 base at M x K x N = 1024 x 4096 x 4096, r = 16, in a fresh
 * process. Prints the peak by the counters and by the resident memory, each above what there was
 * before the first tensor, and what it may be made of.
 */
import { readFileSync } from 'node:fs';
import type { BitsandbytesState } from '../../../lib/checkpoint/bitsandbytes/bitsandbytes.js';
import type { RawTensor } from '../../../lib/checkpoint/raw-tensor.js';
import {
  LoraAdapter,
  loraBackward,
  loraForward,
  memoryUsage,
  QuantizedWeight,
  quantize,
  resetPeakMemory,
  synchronize,
  Tensor,
} from '../../../lib/index.js';

const [M, K, N, r] = [1024, 4096, 4096, 16];
const device = 'cpu';

/** A row of /proc/self/status, in bytes. */
function status(row: string): number {
  const match = new RegExp(`^${row}:\\s+(\\d+) kB`, 'm').exec(
    readFileSync('/proc/self/status', 'utf8'),
  );
  return Number(match?.[1]) * 1024;
}

/** The tensors of a checkpoint, from 64 rows repeated: no dense weight of full size ever exists here. */
async function packedWeight(): Promise<BitsandbytesState> {
  const rows = Tensor.randn([64, K], { seed: 4, std: 0.02, device });
  const quantised = quantize(rows, { format: 'nf4' });
  const state = await quantised.toBitsandbytes();
  rows.dispose();
  quantised.dispose();
  const repeat = ({ dtype, shape, data }: RawTensor, dim: number): RawTensor => {
    const times = N / 64;
    const all =
      data instanceof Float32Array
        ? new Float32Array(data.length * times)
        : new Uint8Array(data.length * times);
    const one = data as Float32Array | Uint8Array;
    for (let i = 0; i < times; i++) all.set(one, i * one.length);
    return { dtype, shape: shape.map((size, d) => (d === dim ? size * times : size)), data: all };
  };
  const tensors: Record<string, RawTensor> = {};
  for (const [key, tensor] of Object.entries(state)) {
    if (key === 'weight' || key === 'weight.absmax') tensors[key] = repeat(tensor, 0);
    else if (!key.includes('quant_state')) tensors[key] = tensor;
    else {
      const text = new TextDecoder().decode(tensor.data as Uint8Array);
      const data = new TextEncoder().encode(JSON.stringify({ ...JSON.parse(text), shape: [N, K] }));
      tensors[key] = { dtype: 'U8', shape: [data.length], data };
    }
  }
  return tensors;
}

const state = await packedWeight();
await synchronize(device);

const before = { live: memoryUsage(device).liveBytes, resident: status('VmRSS') };
resetPeakMemory(device);

const w = QuantizedWeight.fromBitsandbytes(state, { device });
const packed = memoryUsage(device).liveBytes - before.live;
const x = Tensor.randn([M, K], { seed: 1, device });
const dy = Tensor.randn([M, N], { seed: 2, device });
const adapter = LoraAdapter.init({
  inFeatures: K,
  outFeatures: N,
  r,
  loraAlpha: 16,
  seed: 3,
  device,
});
const { y, saved } = loraForward(x, w, adapter);
await synchronize(device);
const gradients = loraBackward(dy, saved);
await synchronize(device);

const floats = { x: M * K, y: M * N, dy: M * N, dx: M * K, adapters: 2 * r * (K + N), h: M * r };
const allowed = packed + 4 * Object.values(floats).reduce((sum, count) => sum + count, 0);
console.log(
  JSON.stringify({
    packed,
    allowed,
    counters: memoryUsage(device).peakBytes - before.live,
    resident: status('VmHWM') - before.resident,
    sample: [y.readSync()[0], gradients.dx?.readSync()[0]],
  }),
);
