/** Operands and queued calls that keep a device busy for seconds. */
import { parentPort, workerData } from 'node:worker_threads';
import {
  type Device,
  dequantize,
  LoraAdapter,
  loraBackward,
  loraForward,
  quantize,
  Tensor,
} from '../../../lib/index.js';

export type Work = 'lora' | 'wrap' | 'quantize' | 'random' | 'cast' | 'sync';

/** By how fast the device is; the emulated GPU does a thousandth of what the CPU does. */
function sizes(device: Device): readonly [M: number, K: number, N: number, r: number] {
  if (device === 'cuda-emulated') return [32, 512, 512, 16];
  return device === 'reference' ? [512, 2048, 2048, 16] : [1024, 2048, 2048, 16];
}

/** Queues several seconds of work; what it returns would be ready after them. */
export function queueLongWork(device: Device, work: Work): Tensor {
  const [M, K, N, r] = sizes(device);
  let last = Tensor.zeros([M, K], { device });
  if (work === 'random') {
    for (let i = 0; i < 4; i++) last = Tensor.randn([4096, 8192], { seed: i, device });
    return last;
  }
  if (work === 'quantize') {
    const w = Tensor.zeros([8192, 4096], { device });
    for (let i = 0; i < 8; i++) {
      last = dequantize(quantize(w, { format: 'nf4', doubleQuant: true }));
    }
    return last;
  }
  if (work === 'cast') {
    const w = Tensor.zeros([8192, 4096], { device });
    for (let i = 0; i < 16; i++) last = w.to({ dtype: 'bf16' });
    return last;
  }
  if (work === 'wrap') {
    // Memory that only a reference of this environment keeps.
    last = Tensor.wrap(new Float32Array(new SharedArrayBuffer(M * K * 4)), [M, K], { device });
  }
  const w = Tensor.zeros([N, K], { device });
  const adapter = LoraAdapter.init({
    inFeatures: K,
    outFeatures: N,
    r,
    loraAlpha: 16,
    seed: 1,
    device,
  });
  for (let i = 0; i < 24; i++) {
    const { y, saved } = loraForward(last, w, adapter);
    last = loraBackward(y, saved).dx as Tensor;
  }
  return last;
}

if (parentPort !== null) {
  const { device, work } = workerData as { device: Device; work: Work };
  const last = queueLongWork(device, work);
  parentPort.postMessage('running');
  if (work === 'sync') last.readSync();
  else await last.read();
  parentPort.postMessage('finished');
}
