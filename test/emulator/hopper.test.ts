/**
 * The sm_90a models of the emulator (mbarrier, TMA, wgmma, clusters) against plain definitions, bugs
 * that check mode must name, and the wgmma kernel: its formula, equal bits whether copies land early or
 * late, no finding, and the same bits from nvcc's PTX. More schedules: the programs by hand, matrix.mjs.
 */
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { FULL_SWEEP } from '../conformance/operands.js';
import { buildTargets, emulatorRuns, hasNvcc, outputFolder, run } from './build-folder.js';

const withNvcc = emulatorRuns && hasNvcc();
if (!withNvcc) console.warn('not run: the PTX of the wgmma kernel, since there is no nvcc');

const MODELS = [
  'hopper_copies_check',
  'hopper_wgmma_check',
  'hopper_findings_check',
  'hopper_selftest',
];
const KERNELS = ['hopper_kernel_check', ...(withNvcc ? ['hopper_kernel_ptx_check'] : [])];

async function output(program: string, ...args: string[]): Promise<string[]> {
  const env = { ...process.env, LOWRANK_EMULATOR_CHECK: '1' };
  const file = path.join(outputFolder(), program);
  const { stdout } = await run(file, args, { env, timeout: 900_000 }).catch((error) => error);
  return String(stdout).trim().split('\n');
}

describe.runIf(emulatorRuns)('the Hopper models', () => {
  beforeAll(() => buildTargets(...MODELS, ...KERNELS), 1_800_000);

  it.each(MODELS)(
    '%s',
    async (program) => {
      const lines = await output(program);
      expect(lines.at(-1), lines.join('\n')).toBe('PASS');
    },
    300_000,
  );

  it('the wgmma kernel has the same bits from source and from PTX, and no finding', async () => {
    // Copies that land late and early; in a sample those of the PTX land late.
    const outputs = KERNELS.map((program, i) =>
      output(program, i === 0 || FULL_SWEEP ? '-2' : '-3'),
    );
    const bits = (lines: readonly string[]) => lines.map((l) => l.replace(/ \d schedules,/, ''));
    const [source, ...others] = await Promise.all(outputs);
    expect(source?.at(-1), source?.join('\n')).toBe('PASS');
    for (const other of others) expect(bits(other)).toEqual(bits(source as string[]));
  }, 900_000);
});
