// cuda-faults <device>: every kind of call that a device makes, each step on its own, while
// LOWRANK_CUDA_FAULT fails one of them. Prints what each step ended with, what memory is left, and
// whether the CPU device still computes.
import {
  type Device,
  dequantize,
  devices,
  flushSync,
  LoraAdapter,
  LowrankError,
  loraBackward,
  loraForward,
  matmul,
  memoryUsage,
  quantize,
  reserveWorkspace,
  scope,
  synchronize,
  Tensor,
  withStream,
} from '../../../lib/index.js';

const device = process.argv[2] as Device;

/** The legacy default stream, which every driver has under this handle. */
const LEGACY_STREAM = 1n;

const [M, N, K, r] = [3, 8, 64, 2];
const values = (count: number, step: number) =>
  Float32Array.from({ length: count }, (_, i) => ((i * step) % 7) - 3);

/** The same memory both times: pages that a failed call left registered are met again. */
const shared = new Float32Array(new SharedArrayBuffer(64));
shared.set(values(16, 1));

/** The same small network on any device: integers, so that every right answer has the same bits. */
const steps: ReadonlyArray<[string, (on: Device) => Promise<Float32Array[]> | Float32Array[]]> = [
  ['copy', async (on) => [await Tensor.from(values(6, 1), [2, 3], { device: on }).read()]],
  ['zeros', (on) => [Tensor.zeros([5], { device: on, dtype: 'f16' }).readSync()]],
  [
    'write',
    async (on) => {
      const t = Tensor.zeros([4], { device: on });
      t.write([1, 2, 3, 4]);
      return [await t.read()];
    },
  ],
  [
    'cast',
    (on) => [Tensor.from(values(9, 2), [9], { device: on }).to({ dtype: 'bf16' }).readSync()],
  ],
  [
    'quantise',
    async (on) => {
      const w = Tensor.from(values(N * K, 3), [N, K], { device: on });
      return [await dequantize(quantize(w, { format: 'int8', doubleQuant: true })).read()];
    },
  ],
  [
    'matmul',
    async (on) => {
      const x = Tensor.from(values(M * K, 2), [M, K], { device: on });
      const w = Tensor.from(values(N * K, 3), [N, K], { device: on });
      return [await matmul(x, w).read()];
    },
  ],
  [
    'lora',
    async (on) => {
      const x = Tensor.from(values(M * K, 2), [M, K], { device: on });
      const w = Tensor.from(values(N * K, 3), [N, K], { device: on });
      const loraA = Tensor.from(values(r * K, 5), [r, K], { device: on });
      const loraB = Tensor.from(values(N * r, 1), [N, r], { device: on });
      const dy = Tensor.from(values(M * N, 4), [M, N], { device: on });
      const adapter = new LoraAdapter({ loraA, loraB, loraAlpha: r });
      const { y, saved } = loraForward(x, w, adapter);
      const { dx, dLoraA, dLoraB } = loraBackward(dy, saved);
      return Promise.all([y, dx, dLoraA, dLoraB].map((t) => (t as Tensor).read()));
    },
  ],
  [
    'wrap',
    async (on) => [await Tensor.wrap(shared, [4, 4], { device: on }).to({ dtype: 'f16' }).read()],
  ],
  [
    'pointer',
    (on) => {
      if (!on.startsWith('cuda')) return [];
      try {
        Tensor.wrap(4096n, [1], { device: on });
      } catch (error) {
        // That no driver knows this address is the right answer.
        if (!(error instanceof LowrankError) || error.code !== 'ERR_VALUE') throw error;
        return [];
      }
      throw new LowrankError('ERR_UNSUPPORTED', 'an address of nobody was taken');
    },
  ],
  [
    'stream',
    async (on) => {
      if (!on.startsWith('cuda')) return [Tensor.from([1, 2], [2], { device: on }).readSync()];
      const y = withStream(on, LEGACY_STREAM, () => {
        const x = Tensor.from([1, 2], [2], { device: on });
        return x.to({ dtype: 'f32' });
      });
      flushSync(on);
      return [await y.read()];
    },
  ],
  [
    'workspace',
    async (on) => {
      await reserveWorkspace(on, 3 << 20);
      return [];
    },
  ],
];

/** 'right', 'wrong', or the code of what was thrown; anything but a typed error ends the program. */
async function run(
  step: (on: Device) => Promise<Float32Array[]> | Float32Array[],
): Promise<{ outcome: string; message?: string }> {
  const expected = await scope(() => step('cpu'));
  try {
    const got = await scope(() => step(device));
    const same =
      got.length === expected.length &&
      got.every((array, i) =>
        Buffer.from(array.buffer).equals(Buffer.from((expected[i] as Float32Array).buffer)),
      );
    return { outcome: same ? 'right' : 'wrong' };
  } catch (error) {
    if (!(error instanceof LowrankError)) throw error;
    return { outcome: error.code, message: error.message };
  }
}

const outcomes: Record<string, { outcome: string; message?: string }> = {};
for (const [name, step] of steps) outcomes[name] = await run(step);
// The first failure may have been of the start, or of something that is made once.
for (const [name, step] of steps) outcomes[`${name} again`] = await run(step);

let synchronised = 'right';
try {
  await synchronize(device);
} catch (error) {
  if (!(error instanceof LowrankError)) throw error;
  synchronised = error.code;
}
const { liveBytes, liveTensors } = memoryUsage(device);
const cpu = await scope(() =>
  matmul(
    Tensor.from([1, 2], [1, 2], { device: 'cpu' }),
    Tensor.from([3, 4], [1, 2], { device: 'cpu' }),
  ).read(),
);
const row = devices().find((known) => known.device === device);
console.log(
  JSON.stringify({
    outcomes,
    synchronised,
    liveBytes,
    liveTensors,
    cpu: cpu[0],
    available: row?.available,
    reason: row?.reason,
  }),
);
