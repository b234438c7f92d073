import { binding, native, nativeAsync } from './binding.js';
import { fail, wrongType } from './errors.js';

/**
 * Where a tensor lives and its ops run. `cpu`: SIMD kernels; `reference`: plain loops with double
 * accumulation, to check the others by.
 */
export type Device = 'cpu' | 'reference' | 'cuda-emulated' | 'cuda' | `cuda:${number}`;

/** One row of {@link devices}. */
export interface DeviceInfo {
  device: Device;
  available: boolean;
  /** Why it is not available, in words. */
  reason?: string;
  name: string;
  /** Formats and dtypes it computes with. */
  features: string[];
  /** Bytes of memory it can use. */
  memory: number;
  /** Instruction set of its kernels. */
  isa?: string;
}

/** Exact counters of a device's memory, for leak tests. */
export interface MemoryUsage {
  liveBytes: number;
  peakBytes: number;
  liveTensors: number;
}

/**
 * Every device that this build knows, available or not, and why not.
 * @example
 * for (const { device, available, reason } of devices()) console.log(device, available, reason);
 */
export function devices(): DeviceInfo[] {
  return binding().devices() as DeviceInfo[];
}

/** @throws ERR_TYPE, ERR_DEVICE with the known devices. */
export function checkDevice(op: string, device: unknown): Device {
  if (typeof device !== 'string') throw wrongType(op, 'device', 'a device name', device);
  const known = devices();
  const row = known.find((candidate) => candidate.device === device);
  if (row === undefined) {
    const names = known.map((candidate) => `'${candidate.device}'`).join(', ');
    fail('ERR_DEVICE', op, 'device', `one of ${names}`, `'${device}'`);
  }
  if (!row.available) {
    fail('ERR_DEVICE', op, 'device', 'available', `'${device}' (${row.reason ?? 'absent'})`);
  }
  return row.device;
}

let chosen: Device | undefined;

/**
 * The device of tensors made without one: `LOWRANK_DEVICE`, else the first CUDA device, else `cpu`.
 * @throws ERR_DEVICE where `LOWRANK_DEVICE` names none.
 */
export function defaultDevice(): Device {
  if (chosen === undefined) {
    const asked = process.env.LOWRANK_DEVICE;
    chosen = asked
      ? checkDevice('LOWRANK_DEVICE', asked)
      : (devices().find(({ device, available }) => available && /^cuda(:\d+)?$/.test(device))
          ?.device ?? 'cpu');
  }
  return chosen;
}

const checked = new Set<unknown>();

/** A device option, or the default. */
export function resolveDevice(op: string, device: unknown): Device {
  if (device === undefined) return defaultDevice();
  if (!checked.has(device)) checked.add(checkDevice(op, device));
  return device as Device;
}

/**
 * Threads of the CPU device, 1 to 256, for the ops that follow. Results never depend on it. Before
 * the first call: `LOWRANK_NUM_THREADS`, then `OMP_NUM_THREADS`, then the number of cores.
 * @throws ERR_TYPE, ERR_VALUE
 */
export function setThreads(n: number): void {
  if (typeof n !== 'number') throw wrongType('setThreads', 'n', 'a number', n);
  native('setThreads', (raw) => raw.setThreads(n));
}

/** Threads that the CPU device uses now. */
export function getThreads(): number {
  return binding().threads();
}

/**
 * Live and peak bytes, and live allocations, of a device. Exact: a test may compare them for equality
 * once {@link synchronize} has resolved.
 */
export function memoryUsage(device?: Device): MemoryUsage {
  const target = resolveDevice('memoryUsage', device);
  return native('memoryUsage', (raw) => raw.memoryUsage(target));
}

/** Starts a new peak at the bytes that are live now. */
export function resetPeakMemory(device?: Device): void {
  const target = resolveDevice('resetPeakMemory', device);
  native('resetPeakMemory', (raw) => raw.resetPeak(target));
}

/** Resolves once every op that was queued on the device before this call has run. */
export async function synchronize(device?: Device): Promise<void> {
  const target = resolveDevice('synchronize', device);
  await nativeAsync('synchronize', (raw, done) => raw.synchronize(target, done));
}
