/**
 * `lowrank info`: devices, features, and the reason for everything that is not available; which kernels a call
 * runs; what a checkpoint holds.
 */

import os from 'node:os';
import { escapeUnsafe } from '../core/printable.js';
import { cLibrary } from '../environment/package-folder.js';
import { version } from '../environment/version.js';
import {
  type DeviceInfo,
  defaultDevice,
  devices,
  type ErrorCode,
  getThreads,
  LowrankError,
  Tensor,
} from '../index.js';
import { jsonText, mebibytes, table, visible } from '../report/terminal.js';
import { Arguments } from './command/arguments.js';
import { exitCodes } from './command/exit-codes.js';
import { explain, explainHelp, explainOptions, refuseStrayOptions } from './explain.js';
import { checkpointFacts } from './inspect/checkpoint-facts.js';
import { describeCheckpoint } from './inspect/describe-checkpoint.js';

const kHelp = `Devices, features, and why each is or is not there; what a checkpoint holds.

Usage: lowrank info [--json]
       lowrank info PATH [--json]
       lowrank info --explain MxKxN [options]

PATH is a .gguf file, a .safetensors file or a folder of such files: its tensors by type with their
bits a weight and bytes, and architecture, context, vocabulary and quantisation where it names them.

  --json             one JSON object on stdout
${explainHelp}
A LOWRANK_DEVICE that names no device of this machine is shown as a problem (deviceProblem in the
JSON, where defaultDevice is null), and so is a LOWRANK_NUM_THREADS that is no number of threads
(threadsProblem, where threads is null); the exit code is 0 all the same. Without the native addon
the list of devices is empty, the JSON has bindingProblem, and the exit code is 8.
`;

/**
 * Whether a GPU has free memory, and whether its driver accepts the kernels, shows only when it
 * starts; listing devices starts nothing.
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

/** The value of an environment variable, or why it is invalid, with advice. */
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
  const options = { json: { type: 'boolean' }, ...explainOptions } as const;
  const parsed = Arguments.parse('info', args, options, {
    min: 0,
    max: 1,
    names: 'at most one PATH',
  });
  if (parsed.flag('help')) {
    process.stdout.write(kHelp);
    return exitCodes.ok;
  }
  if (parsed.text('explain') !== undefined) {
    if (parsed.positionals.length > 0) throw parsed.wrong('takes either PATH or --explain');
    explain(parsed);
    return exitCodes.ok;
  }
  refuseStrayOptions(parsed);
  const [checkpoint] = parsed.positionals;
  if (checkpoint !== undefined) {
    const facts = checkpointFacts(checkpoint);
    process.stdout.write(parsed.flag('json') ? jsonText(facts) : describeCheckpoint(facts));
    return exitCodes.ok;
  }
  const host = {
    version: version(),
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
    processor: (os.cpus()[0]?.model ?? 'unknown').trim(),
    cores: os.availableParallelism(),
    memory: os.totalmem(),
    cLibrary: cLibrary(),
  };
  const json = parsed.flag('json');
  if (!json) {
    const rows = [
      ['lowrank', host.version],
      ['Node.js', `${host.node} on ${host.platform}`],
      ['processor', `${host.processor}, ${host.cores} cores`],
      ['memory', mebibytes(host.memory)],
      ['C library', host.cLibrary ?? 'not built (lowrank build --c-api)'],
    ];
    process.stdout.write(table(rows, []));
  }
  // Throws if the addon is missing; everything known without it is still shown.
  let found: DeviceInfo[];
  try {
    found = startDevices();
  } catch (error) {
    if (!(error instanceof LowrankError) || error.code !== 'ERR_NO_BINDING') throw error;
    const nothing = { threads: null, defaultDevice: null, devices: [] };
    if (json)
      process.stdout.write(jsonText({ ...host, ...nothing, bindingProblem: error.message }));
    throw error;
  }
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
    process.stdout.write(jsonText(facts));
    return exitCodes.ok;
  }
  process.stdout.write(
    `kernels    ${threads.value ?? '?'} threads, default device ${standard.value ?? 'none'}\n`,
  );
  for (const { problem } of [threads, standard]) {
    if (problem !== undefined) process.stdout.write(`problem    ${visible(problem)}\n`);
  }
  process.stdout.write('\n');
  process.stdout.write(found.map(describeDevice).join(''));
  return exitCodes.ok;
}

/** What a driver reports about itself and a device is untrusted text: it must not steer the terminal. */
export function describeDevice(device: DeviceInfo): string {
  const lines = [`${device.device}: ${device.available ? 'available' : 'not available'}`];
  if (device.reason !== undefined) lines.push(`  ${device.reason}`);
  if (device.available) {
    lines.push(`  ${device.name}, ${mebibytes(device.memory)}`);
    const kernels = [
      device.isa,
      device.sm === undefined ? undefined : `sm_${device.sm}`,
      device.driver === undefined ? undefined : `driver ${device.driver}`,
    ].filter((part) => part !== undefined);
    const prefix = kernels.length > 0 ? `${kernels.join(', ')}; ` : '';
    lines.push(`  ${prefix}${device.features.join(' ')}`);
    for (const better of device.betterIsas ?? []) lines.push(`  not ${better}`);
  }
  return lines.map((line) => `${escapeUnsafe(line)}\n`).join('');
}
