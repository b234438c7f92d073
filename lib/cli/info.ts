/**
 * `lowrank info`: devices, features, and why each is or is not there.
 */

import os from 'node:os';
import { defaultDevice, devices, getThreads } from '../index.js';
import { Arguments } from './arguments.js';
import { exitCodes } from './exit-codes.js';
import { mebibytes, table } from './terminal.js';
import { version } from './version.js';

const kHelp = `Devices, features, and why each is or is not there.

Usage: lowrank info [--json]

  --json   one JSON object on stdout
`;

export async function infoCommand(args: readonly string[]): Promise<number> {
  const options = { json: { type: 'boolean' } } as const;
  const parsed = Arguments.parse('info', args, options, { min: 0, max: 0, names: '' });
  if (parsed.flag('help')) {
    process.stdout.write(kHelp);
    return exitCodes.ok;
  }
  const found = devices();
  const facts = {
    version: version(),
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
    processor: os.cpus()[0]?.model ?? 'unknown',
    cores: os.availableParallelism(),
    threads: getThreads(),
    memory: os.totalmem(),
    defaultDevice: defaultDevice(),
    devices: found,
  };
  if (parsed.flag('json')) {
    process.stdout.write(`${JSON.stringify(facts, null, 2)}\n`);
    return exitCodes.ok;
  }
  process.stdout.write(
    table(
      [
        ['lowrank', facts.version],
        ['Node.js', `${facts.node} on ${facts.platform}`],
        ['processor', `${facts.processor.trim()}, ${facts.cores} cores`],
        ['memory', mebibytes(facts.memory)],
        ['kernel threads', String(facts.threads)],
        ['default device', facts.defaultDevice],
      ].map(([name, value]) => [name as string, ` ${value}`]),
    ),
  );
  process.stdout.write('\n');
  for (const device of found) {
    process.stdout.write(`${device.device}: ${device.available ? 'available' : 'not available'}\n`);
    if (device.reason !== undefined) process.stdout.write(`  ${device.reason}\n`);
    if (!device.available) continue;
    process.stdout.write(`  ${device.name}, ${mebibytes(device.memory)}\n`);
    const isa = 'isa' in device && device.isa !== undefined ? `${device.isa}; ` : '';
    process.stdout.write(`  ${isa}${device.features.join(' ')}\n`);
  }
  return exitCodes.ok;
}
