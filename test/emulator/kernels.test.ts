/**
 * The CUDA kernels under every check of the emulator, plan by plan, against their formulas in double
 * (test/native/cuda_*_check.cpp): formats, tiles, ragged shapes and the parts of the LoRA term, with
 * no finding. The first argument of a program is how many random schedules follow the three fixed
 * ones; -1 takes two that differ in order and in when copies land, -2 one alone where a program has many cases, whose
 * bits under other schedules matrix.mjs compares. LOWRANK_SWEEP=full (npm run test:sweep) takes all three.
 */
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { buildTargets, emulatorRuns, outputFolder, run } from './build-folder.js';

const PROGRAMS = new Map([
  ['cuda_gemm_mma_check', '-2'],
  ['cuda_lora_check', '-2'],
  ['cuda_small_m_check', '-2'],
  ['cuda_streaming_check', '-1'],
]);

describe.runIf(emulatorRuns)('the kernels against their formulas', () => {
  beforeAll(() => buildTargets(...PROGRAMS.keys()), 1_800_000);

  it.each([...PROGRAMS])(
    '%s',
    async (program, schedules) => {
      const file = path.join(outputFolder(), program);
      const env = { ...process.env, LOWRANK_EMULATOR_CHECK: '1' };
      const given = process.env.LOWRANK_SWEEP === 'full' ? '0' : schedules;
      const { stdout, stderr } = await run(file, [given], {
        env,
        timeout: 900_000,
        maxBuffer: 1 << 26,
      }).catch((error) => error);
      expect(`${stdout}${stderr}`.trim()).toMatch(/: (?:\d+ cases, )?[1-9]\d* checks, 0 failures$/);
    },
    900_000,
  );
});
