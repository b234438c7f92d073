/**
 * `lowrank info`: devices, features, and why each is or is not there.
 */

import os from 'node:os';
import {
  type DeviceInfo,
  defaultDevice,
  devices,
  type ErrorCode,
  getThreads,
  LowrankError,
  Tensor,
} from '../index.js';
import { Arguments } from './arguments.js';
import { exitCodes } from './exit-codes.js';
import { mebibytes, table, visible } from './terminal.js';
import { version } from './version.js';

const kHelp = `Devices, features, and why each is or is not there.

Usage: lowrank info [--json]

  --json   one JSON object on stdout

A LOWRANK_DEVICE that names no device of this machine is shown as a problem (deviceProblem in the
JSON, where defaultDevice is null), and so is a LOWRANK_NUM_THREADS that is no number of threads
(threadsProblem, where threads is null); the exit code is 0 all the same.
`;

/**
 * Whether a GPU has memory left, and whether its driver takes the kernels, shows only where it is
 * started; a list alone starts nothing.
 */
function startDevices(): DeviceInfo[] {
  const failures = new Map<string, string>();
  for (const { device, available } of devices()) {
    if (!available || !device.startsWith('cuda')) continue;
    try {
      Tensor.zeros([1], { device }).dispose();
    } catch (error) {
      if (!(error instanceof LowrankError)) throw error;
      failures.set(device, error.message);
    }
  }
  return devices().map((row) => {
    const reason = failures.get(row.device);
    return reason === undefined ? row : { ...row, available: false, reason };
  });
}

/** What an environment variable sets, or why that cannot be, with what to do. */
function readSetting<T>(
  read: () => T,
  code: ErrorCode,
  advice: string,
): { value: T | null; problem?: string } {
  try {
    return { value: read() };
  } catch (error) {
    if (!(error instanceof LowrankError) || error.code !== code) throw error;
    return { value: null, problem: `${error.message}. ${advice}, or unset it` };
  }
}

export async function infoCommand(args: readonly string[]): Promise<number> {
  const options = { json: { type: 'boolean' } } as const;
  const parsed = Arguments.parse('info', args, options, { min: 0, max: 0, names: '' });
  if (parsed.flag('help')) {
    process.stdout.write(kHelp);
    return exitCodes.ok;
  }
  const host = {
    version: version(),
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
    processor: (os.cpus()[0]?.model ?? 'unknown').trim(),
    cores: os.availableParallelism(),
    memory: os.totalmem(),
  };
  const json = parsed.flag('json');
  if (!json) {
    const rows = [
      ['lowrank', host.version],
      ['Node.js', `${host.node} on ${host.platform}`],
      ['processor', `${host.processor}, ${host.cores} cores`],
      ['memory', mebibytes(host.memory)],
    ];
    process.stdout.write(table(rows, []));
  }
  // Throws where the addon is missing; what is known without it was said above.
  const found = startDevices();
  const threads = readSetting(
    getThreads,
    'ERR_VALUE',
    'Set LOWRANK_NUM_THREADS to a number of threads',
  );
  const standard = readSetting(
    defaultDevice,
    'ERR_DEVICE',
    'Set LOWRANK_DEVICE to a device that is available',
  );
  if (json) {
    const facts = {
      ...host,
      threads: threads.value,
      threadsProblem: threads.problem,
      defaultDevice: standard.value,
      deviceProblem: standard.problem,
      devices: found,
    };
    process.stdout.write(`${JSON.stringify(facts, null, 2)}\n`);
    return exitCodes.ok;
  }
  process.stdout.write(
    `kernels    ${threads.value ?? '?'} threads, default device ${standard.value ?? 'none'}\n`,
  );
  for (const { problem } of [threads, standard]) {
    if (problem !== undefined) process.stdout.write(`problem    ${visible(problem)}\n`);
  }
  process.stdout.write('\n');
  for (const device of found) {
    process.stdout.write(`${device.device}: ${device.available ? 'available' : 'not available'}\n`);
    if (device.reason !== undefined) process.stdout.write(`  ${device.reason}\n`);
    if (!device.available) continue;
    process.stdout.write(`  ${device.name}, ${mebibytes(device.memory)}\n`);
    const kernels = [
      device.isa,
      device.sm === undefined ? undefined : `sm_${device.sm}`,
      device.driver === undefined ? undefined : `driver ${device.driver}`,
    ].filter((part) => part !== undefined);
    const prefix = kernels.length > 0 ? `${kernels.join(', ')}; ` : '';
    process.stdout.write(`  ${prefix}${device.features.join(' ')}\n`);
    for (const better of device.betterIsas ?? []) process.stdout.write(`  not ${better}\n`);
  }
  return exitCodes.ok;
}
