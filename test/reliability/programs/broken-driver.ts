/**
 * What a program does beside a CUDA driver that is broken. `named`: everything names its device, one of those that
 * follow; `default`: nothing does; `default list`: and it asks for the list.
 */
import {
  type Device,
  defaultDevice,
  deviceInfo,
  devices,
  getThreads,
  LoraAdapter,
  LowrankError,
  loraForward,
  matmul,
  memoryUsage,
  quantize,
  resetPeakMemory,
  setThreads,
  synchronize,
  Tensor,
} from '../../../lib/index.js';

const [what, ...names] = process.argv.slice(2);

async function compute(device: Device | undefined): Promise<void> {
  const place = device === undefined ? {} : { device };
  const x = Tensor.randn([3, 64], { seed: 1, ...place });
  const w = quantize(Tensor.randn([32, 64], { seed: 2, ...place }), { format: 'nf4' });
  const adapter = LoraAdapter.init({
    inFeatures: 64,
    outFeatures: 32,
    r: 4,
    loraAlpha: 8,
    seed: 3,
    ...place,
  });
  await matmul(x, w).read();
  loraForward(x, w, adapter).y.readSync();
  const moved = Tensor.zeros([2], place).to({ device: 'reference' });
  await moved.to({ device: 'cpu' }).read();
  resetPeakMemory(device);
  memoryUsage(device);
  await synchronize(device);
}

/** Also a mistake is told without the driver. */
function refusal(device: string): string {
  try {
    Tensor.zeros([2], { device: device as Device });
    return 'no error';
  } catch (error) {
    return error instanceof LowrankError ? `${error.code} ${error.message}` : String(error);
  }
}

const started = performance.now();
setThreads(getThreads());
if (what === 'named') {
  for (const name of names as Device[]) {
    if (!deviceInfo(name).available) throw new Error(`${name} is not there`);
    await compute(name);
  }
}
if (what === 'default') await compute(undefined);
const told = {
  refused: refusal('cpuu'),
  seconds: 0,
  standard: what === 'default' ? defaultDevice() : undefined,
  cuda: names[0] !== 'list' ? undefined : devices().find(({ device }) => device === 'cuda'),
};
told.seconds = (performance.now() - started) / 1000;
console.log(JSON.stringify(told));
