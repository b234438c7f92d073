/**
 * Devices in a child of fork(), by a program below JavaScript (test/native/host_check.cpp): Node itself
 * does not fork, but another addon, or a program that embeds it, may.
 */
import { existsSync } from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { buildFolder, buildTargets, outputFolder, run } from '../emulator/build-folder.js';
import { TIME_SCALE } from './program.js';

describe.runIf(buildFolder() !== undefined)('a forked child', () => {
  beforeAll(() => buildTargets('host_check'), 600_000);

  const emulator = path.join(outputFolder(), 'lowrank-emulator.so');
  const devices = ['cpu', 'cuda-emulated'].filter(
    (device) => device === 'cpu' || existsSync(emulator),
  );

  it.each(devices)(
    'is told that %s stayed in the parent',
    { timeout: 120_000 * TIME_SCALE },
    async (device) => {
      const env = { ...process.env, LOWRANK_EMULATOR: emulator };
      const program = path.join(outputFolder(), 'host_check');
      const { stdout } = await run(program, [device], { env }).catch((error) => error);
      expect(stdout).toBe('the devices hold\n');
    },
  );
});
