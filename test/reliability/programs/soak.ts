/**
 * Everything at once for a while: soak SECONDS. Mixed ops on both devices, workers that are
 * terminated in the middle of kernels, and the same results at the end as at the start.
 */
import { createHash } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import {
  type Device,
  LoraAdapter,
  loraBackward,
  loraForward,
  memoryUsage,
  quantize,
  scope,
  synchronize,
  Tensor,
} from '../../../lib/index.js';
import { everyOp } from './every-op.js';

const seconds = Number(process.argv[2]);
const DEVICES: readonly Device[] = ['cpu', 'reference'];

/** Hash of the bits of one training step. */
async function fingerprint(device: Device): Promise<string> {
  const hash = createHash('sha256');
  await scope(async () => {
    const w = quantize(Tensor.randn([96, 200], { seed: 1, device }), { format: 'nf4' });
    const x = Tensor.randn([33, 200], { seed: 2, device });
    const adapter = LoraAdapter.init({
      inFeatures: 200,
      outFeatures: 96,
      r: 8,
      loraAlpha: 16,
      seed: 3,
      dropout: 0.1,
      device,
    });
    const { y, saved } = loraForward(x, w, adapter, { seed: 4 });
    hash.update(await y.read());
    for (const gradient of Object.values(loraBackward(y, saved))) {
      hash.update(await gradient.read());
    }
  });
  return hash.digest('hex');
}

async function live(): Promise<number[]> {
  const counts = [];
  for (const device of DEVICES) {
    await synchronize(device);
    counts.push(memoryUsage(device).liveBytes, memoryUsage(device).liveTensors);
  }
  return counts;
}

async function killOneWorker(device: Device): Promise<void> {
  const worker = new Worker(new URL('./long-kernel.mjs', import.meta.url), {
    workerData: { device, work: 'lora' },
  });
  await new Promise((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });
  await new Promise((resolve) => setTimeout(resolve, Math.random() * 30));
  await worker.terminate();
}

const operations = await Promise.all(DEVICES.map((device) => everyOp(device)));
const before = { live: await live(), hashes: await Promise.all(DEVICES.map(fingerprint)) };
const end = performance.now() + seconds * 1000;
let calls = 0;
let workers = 0;
let threads = 0;
while (performance.now() < end) {
  const lanes = operations.map(async ({ calls: byName }) => {
    for (const call of byName.values()) {
      await call();
      calls++;
    }
  });
  const device = DEVICES[workers % DEVICES.length] ?? 'cpu';
  await Promise.all([...lanes, killOneWorker(device)]);
  workers++;
  if (workers === 5) threads = readdirSync('/proc/self/task').length;
}
const after = { live: await live(), hashes: await Promise.all(DEVICES.map(fingerprint)) };
const moreThreads = threads === 0 ? 0 : readdirSync('/proc/self/task').length - threads;
console.log(JSON.stringify({ before, after, calls, workers, moreThreads }));
