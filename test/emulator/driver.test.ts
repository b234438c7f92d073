/**
 * The emulated driver, call by call, through the symbols that it exports: test/native/
 * emulated_driver_check.cpp over a library as the kernels are built by default, and over one that
 * reports every access.
 */
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { buildTargets, emulatorRuns, outputFolder, run } from './build-folder.js';

describe.runIf(emulatorRuns)('the emulated driver', () => {
  beforeAll(() => buildTargets('emulated_driver_check'), 600_000);

  it.each(['source', 'check'])(
    'keeps to the driver’s rules (%s)',
    async (variant) => {
      const folder = outputFolder();
      const { stdout } = await run(
        path.join(folder, 'emulated_driver_check'),
        [path.join(folder, `lowrank-emulator-driver-${variant}.so`)],
        { timeout: 120_000 },
      ).catch((error) => error);
      expect(stdout).not.toContain('FAILED');
      expect(stdout).toMatch(/\n\d+ checks, 0 failures\n$/);
    },
    180_000,
  );
});
