/**
 * What every kernel's accesses cost against the committed counters, and that a dearer access, one that
 * nobody has explained and a kernel without a case do not pass. Needs no nvcc.
 */
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { buildTargets, emulatorRuns, root, run } from './build-folder.js';
import { differences, fromJson, tableOf, toJson, unexplained } from './counter-table.js';

const launch = (cost: number) =>
  JSON.stringify({
    kernel: 'cast_f32_bf16_kernel',
    counts: { barrier: 2 },
    lines: [
      {
        file: 'cuda/gpu.cuh',
        line: 1,
        kind: 'ld.shared',
        bytes_per_lane: 16,
        requests: 10,
        cost,
        ideal: 40,
      },
    ],
  });

describe('the table of counters', () => {
  const golden = tableOf([launch(40)], root);

  it('is what was written', () => {
    expect(differences(fromJson(toJson(golden)), golden)).toEqual([]);
  });

  it('refuses a dearer access, and one above 1.10 without a reason', () => {
    expect(unexplained(tableOf([launch(44)], root), [])).toEqual([]);
    const dear = tableOf([launch(45)], root);
    expect(differences(dear, golden)).toHaveLength(1);
    expect(unexplained(dear, [])).toHaveLength(1);
    const reason = { file: 'cuda/gpu.cuh', code: '', why: 'a test' };
    expect(unexplained(dear, [reason])).toEqual([]);
    expect(unexplained(dear, [{ ...reason, kernels: '^quantize' }])).toHaveLength(2);
    expect(unexplained(golden, [reason])).toHaveLength(1);
  });

  it('refuses a kernel that no case reaches', () => {
    expect(differences(new Map(), golden)).toEqual(['cast_f32_bf16_kernel: no case reaches it']);
  });
});

describe.runIf(emulatorRuns)('the counters of the kernels', () => {
  beforeAll(() => buildTargets('emulator_check'), 1_800_000);

  it('are those of the committed table', async () => {
    const program = path.join(root, 'test', 'emulator', 'counters.mjs');
    const { stdout, stderr } = await run(process.execPath, [program], {
      timeout: 900_000,
      maxBuffer: 1 << 26,
    }).catch((error) => error);
    expect(String(stderr)).toBe('');
    expect(String(stdout)).toMatch(/counters: \d+ kernels: as the table says/);
  }, 900_000);
});
