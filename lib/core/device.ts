import { binding, native, nativeAsync } from './binding.js';
import { fail, LowrankError, wrongType } from './errors.js';

/**
 * Where a tensor lives and its ops run. `cpu`: SIMD kernels; `reference`: plain loops with double
 * accumulation, to check the others against; `cuda`: the first NVIDIA GPU, `cuda:1` and up the
 * others; `cuda-emulated`: the CUDA kernels run on the CPU, to check them.
 */
export type Device = 'cpu' | 'reference' | 'cuda-emulated' | 'cuda' | `cuda:${number}`;

/** One row of {@link devices}. */
export interface DeviceInfo {
  device: Device;
  available: boolean;
  /** Why it is not available. */
  reason?: string;
  name: string;
  /** Formats and dtypes that it supports. */
  features: string[];
  /** Bytes of memory it can use. */
  memory: number;
  /** Instruction set of its kernels, for a host device. */
  isa?: string;
  /** Faster instruction sets than `isa` and why each is not used: `avx512: LOWRANK_ISA asks for avx2`. */
  betterIsas?: string[];
  /** Compute capability of a CUDA device, major · 10 + minor. Known once the device has been opened. */
  sm?: number;
  /** CUDA version that the driver of a CUDA device supports: `CUDA 13.0`. */
  driver?: string;
}

/** Exact counters of a device's memory, for leak tests. */
export interface MemoryUsage {
  liveBytes: number;
  peakBytes: number;
  liveTensors: number;
}

/** Why a GPU that exists did not become the default device, by its name. */
const passedOver = new Map<string, string>();

/** Adds the reason why a GPU is not the default device, unless the row has a reason already. */
function rowOf(row: DeviceInfo): DeviceInfo {
  const reason = row.reason ?? passedOver.get(row.device);
  return reason === undefined ? row : { ...row, reason };
}

/**
 * Every device that this build knows, whether it is available, and if not, why. Looks for GPUs: it
 * opens the CUDA driver and waits at most 60 seconds for it (`LOWRANK_CUDA_TIMEOUT`).
 * {@link deviceInfo} asks for one device only.
 * @example
 * for (const { device, available, reason } of devices()) console.log(device, available, reason);
 */
export function devices(): DeviceInfo[] {
  return (binding().devices() as DeviceInfo[]).map(rowOf);
}

/**
 * The row of {@link devices} for one device. For `cpu`, `reference` and `cuda-emulated` it does not look for a
 * GPU.
 * @throws ERR_TYPE, ERR_DEVICE if there is no such device
 * @example
 * console.log(deviceInfo('cpu').isa);
 */
export function deviceInfo(device: Device): DeviceInfo {
  return findRow('deviceInfo', device);
}

/** @throws ERR_TYPE; ERR_DEVICE, which lists the known devices. */
function findRow(op: string, device: unknown): DeviceInfo {
  if (typeof device !== 'string') throw wrongType(op, 'device', 'a device name', device);
  const row = binding().device(device) as DeviceInfo | null;
  if (row !== null) return rowOf(row);
  const names = binding().deviceNames();
  fail('ERR_DEVICE', op, 'device', `one of ${names.join(', ')}`, `"${device}"`);
}

/** @throws ERR_TYPE; ERR_DEVICE, which lists the known devices. */
function checkDevice(op: string, device: unknown): Device {
  const row = findRow(op, device);
  if (!row.available) {
    fail('ERR_DEVICE', op, 'device', 'available', `"${device}" (${row.reason ?? 'absent'})`);
  }
  return row.device;
}

let chosen: Device | undefined;

/** The first GPU that starts. {@link devices} gives the reason for one that does not. */
function firstGpu(): Device | undefined {
  for (const { device, available } of devices()) {
    if (!available || !/^cuda(:\d+)?$/.test(device)) continue;
    try {
      native('defaultDevice', (raw) => raw.startDevice(device));
      return device;
    } catch (error) {
      if (!(error instanceof LowrankError)) throw error;
      passedOver.set(device, error.message);
    }
  }
  return undefined;
}

/**
 * The device of tensors made without one: `LOWRANK_DEVICE`, else the first CUDA device that starts, else `cpu`.
 * The row of a skipped GPU in {@link devices} says why. A program that names its devices, or sets
 * `LOWRANK_DEVICE=cpu`, never opens the CUDA driver.
 * @throws ERR_DEVICE if `LOWRANK_DEVICE` does not name a device.
 * @example
 * const w = Tensor.randn([64, 64], { seed: 1, device: defaultDevice() });
 */
export function defaultDevice(): Device {
  if (chosen === undefined) {
    const asked = process.env.LOWRANK_DEVICE;
    chosen = asked ? checkDevice('LOWRANK_DEVICE', asked) : (firstGpu() ?? 'cpu');
  }
  return chosen;
}

const checked = new Set<unknown>();

/** A device option, or the default. @throws ERR_VALUE if `LOWRANK_MEMORY_LIMIT`, or for `cpu` `LOWRANK_NUM_THREADS`, is not a number. */
export function resolveDevice(op: string, device: unknown): Device {
  const asked = device === undefined ? defaultDevice() : device;
  if (!checked.has(asked)) {
    checkMemoryVariable();
    const found = checkDevice(op, asked);
    if (found === 'cpu') checkThreadsVariable();
    checked.add(found);
  }
  return asked as Device;
}

let threadsChecked = false;

/** The addon itself skips a variable that it cannot read, so it is checked here. @throws ERR_VALUE */
function checkThreadsVariable(): void {
  if (threadsChecked) return;
  const asked = process.env.LOWRANK_NUM_THREADS;
  if (asked && !/^\s*0*[1-9]\d*\s*$/.test(asked)) {
    const op = 'LOWRANK_NUM_THREADS';
    fail('ERR_VALUE', op, 'the number of threads', 'a positive integer', `"${asked}"`);
  }
  threadsChecked = true;
}

/** The addon knows no limit where it cannot read the variable, so it is checked here. @throws ERR_VALUE */
function checkMemoryVariable(): void {
  const asked = process.env.LOWRANK_MEMORY_LIMIT;
  if (!asked || /^\d{1,15}$|^\d{1,3}T$|^\d{1,6}G$|^\d{1,9}M$|^\d{1,12}K$/.test(asked)) return;
  const expected = 'a number of bytes, or a number with K, M, G or T (powers of 1024)';
  fail('ERR_VALUE', 'LOWRANK_MEMORY_LIMIT', 'the limit', expected, `"${asked}"`);
}

/**
 * Sets the threads of the CPU device, 1 to 256, for later ops. Results never depend on it. Before the first call
 * the number comes from `LOWRANK_NUM_THREADS`, then `OMP_NUM_THREADS`, then the number of cores that this process
 * may use: those of its affinity, but at most the quota of its control group, rounded down. The first use of the
 * CPU device throws if `LOWRANK_NUM_THREADS` is not a positive integer, unless this was called before.
 * @throws ERR_TYPE, ERR_VALUE
 * @example
 * setThreads(4);
 */
export function setThreads(n: number): void {
  const op = 'setThreads';
  if (typeof n !== 'number') throw wrongType(op, 'n', 'a number', n);
  if (!(Number.isInteger(n) && n >= 1 && n <= 256)) {
    fail('ERR_VALUE', op, 'n', 'an integer from 1 to 256', String(n));
  }
  native(op, (raw) => raw.setThreads(n));
  threadsChecked = true;
}

/**
 * The number of threads that the CPU device uses now.
 * @throws ERR_VALUE if `LOWRANK_NUM_THREADS` is not a number of threads
 * @example
 * setThreads(Math.max(1, getThreads() - 1));
 */
export function getThreads(): number {
  checkThreadsVariable();
  return binding().threads();
}

/**
 * Live and peak bytes, and live allocations, of a device. The counts are exact: a test may compare
 * them for equality once {@link synchronize} has resolved.
 * @example
 * const { liveBytes, peakBytes, liveTensors } = memoryUsage('cpu');
 */
export function memoryUsage(device?: Device): MemoryUsage {
  const target = resolveDevice('memoryUsage', device);
  return native('memoryUsage', (raw) => raw.memoryUsage(target));
}

/**
 * How many kernels and graphs the library has launched on a CUDA device so far; 0 on a host device. A replay of a
 * captured step is one launch.
 * @example
 * const before = launchCount('cuda');
 */
export function launchCount(device?: Device): number {
  const target = resolveDevice('launchCount', device);
  return native('launchCount', (raw) => raw.launches(target));
}

/**
 * Resets the peak to the bytes that are live now.
 * @example
 * resetPeakMemory('cpu');
 * step();
 * console.log(memoryUsage('cpu').peakBytes);
 */
export function resetPeakMemory(device?: Device): void {
  const target = resolveDevice('resetPeakMemory', device);
  native('resetPeakMemory', (raw) => raw.resetPeak(target));
}

/**
 * Resolves once every op that was queued on the device before this call has run.
 * @throws ERR_COMPUTE if the device failed
 * @example
 * await synchronize('cpu'); // every op called before has run
 */
export async function synchronize(device?: Device): Promise<void> {
  const target = resolveDevice('synchronize', device);
  await nativeAsync('synchronize', (raw, done) => raw.synchronize(target, done));
}

/**
 * Issues every later op of a CUDA device, from all threads, to a stream of yours, ordered after all
 * earlier calls; `null` goes back to the device's own stream. With {@link Tensor.wrap} over a device
 * pointer, a trainer with its own memory and stream calls these ops without a copy. Another thread
 * issues the ops shortly after the call: call {@link flush} before you submit work that depends on
 * them.
 *
 * A stream that is being captured into a graph accepts ops whose workspace was reserved before
 * ({@link reserveWorkspace}). Begin the capture in relaxed mode, keep every tensor that the graph uses, and
 * call {@link synchronize} before its first launch. Nothing can be read or written during the capture. These
 * ops do not disturb a capture of another stream, in any mode and thread.
 * @param device a CUDA device
 * @param stream a CUstream (or cudaStream_t) of that device, valid until you have switched away and
 *   {@link synchronize} has resolved
 * @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE; ERR_UNSUPPORTED on a device without streams
 * @example
 * useStream('cuda', stream); // a CUstream as a bigint; null: the device's own
 */
export function useStream(device: Device, stream: bigint | null): void {
  const op = 'useStream';
  const target = resolveDevice(op, device);
  if (stream !== null && typeof stream !== 'bigint') {
    throw wrongType(op, 'stream', 'a bigint or null', stream);
  }
  native(op, (raw) => raw.useStream(target, stream));
}

/**
 * Runs `body` with a stream of yours ({@link useStream}) and then goes back to the device's own
 * stream, even if `body` throws. Not for an async body: the stream belongs to the device, not to
 * the call.
 * @example
 * const y = withStream('cuda', stream, () => matmul(x, w4));
 */
export function withStream<T>(device: Device, stream: bigint, body: () => T): T {
  useStream(device, stream);
  try {
    return body();
  } finally {
    useStream(device, null);
  }
}

/**
 * Resolves once every earlier call was submitted to the device, which may still be running it. Work
 * that you submit to the same stream afterwards runs after it. On a host device the same as
 * {@link synchronize}.
 * @throws ERR_COMPUTE if the device failed
 * @example
 * await flush('cuda'); // all that was called so far is on the stream
 */
export async function flush(device?: Device): Promise<void> {
  const target = resolveDevice('flush', device);
  await nativeAsync('flush', (raw, done) => raw.flush(target, done));
}

/**
 * {@link flush} that blocks the thread: for trainers with a synchronous interface.
 * @example
 * flushSync('cuda'); // and now work of one's own on the same stream
 */
export function flushSync(device?: Device): void {
  const op = 'flushSync';
  const target = resolveDevice(op, device);
  if (!native(op, (raw) => raw.flushSync(target))) {
    throw new LowrankError('ERR_CANCELLED', `${op}: the environment is closing`, { op });
  }
}

/**
 * Bytes that the device keeps for intermediate results of ops. An op that needs more grows the
 * workspace before its first kernel, in stream order. Not part of {@link memoryUsage}; 0 on a host
 * device.
 * @example
 * console.log(workspaceBytes('cuda'));
 */
export function workspaceBytes(device?: Device): number {
  const target = resolveDevice('workspaceBytes', device);
  return native('workspaceBytes', (raw) => raw.workspaceBytes(target));
}

/**
 * Grows the workspace at once, so that ops that need no more never allocate.
 * @throws ERR_TYPE, ERR_VALUE, ERR_OOM
 * @example
 * await reserveWorkspace('cuda', workspaceBytes('cuda')); // before a graph is captured
 */
export async function reserveWorkspace(device: Device, bytes: number): Promise<void> {
  const op = 'reserveWorkspace';
  const target = resolveDevice(op, device);
  if (typeof bytes !== 'number') throw wrongType(op, 'bytes', 'a number', bytes);
  await nativeAsync(op, (raw, done) => raw.reserveWorkspace(target, bytes, done));
}
