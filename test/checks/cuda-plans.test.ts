/**
 * Which kernels plans take on which card, from the plans of cuda_plan_table: all ops over sizes of real models. What
 * an architecture does not have is in no plan for it.
 */
import { existsSync } from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { buildFolder, buildTargets, emulatorRuns, run } from '../emulator/build-folder.js';

const load = (file: string) => import(new URL(file, import.meta.url).href);
const { readPlans } = await load('./cuda-table.mjs');
const kLimits: Record<string, { sharedPerBlock: number }> = (await load('./occupancy.mjs')).kLimits;

const kWgmma = /wgmma/;
const kClusters = [/^lora_shrink_cluster_/, /^matmul_small_m_cluster_/, /^grouped_forward_/];

describe.runIf(emulatorRuns)('plans', () => {
  let plans: Map<string, Map<string, number>>;
  beforeAll(async () => {
    await buildTargets('cuda_plan_table');
    const program = path.join(buildFolder() ?? '', 'cuda_plan_table');
    expect(existsSync(program)).toBe(true);
    plans = readPlans((await run(program, [], { maxBuffer: 1 << 28 })).stdout);
  }, 600_000);

  const kernelsOf = (arch: string) => [...(plans.get(arch)?.keys() ?? [])];
  const takes = (arch: string, pattern: RegExp) =>
    kernelsOf(arch).some((name) => pattern.test(name));

  it('are there for every architecture of a package', () => {
    expect([...plans.keys()].sort()).toEqual(
      Object.keys(kLimits)
        .map((arch) => `sm_${arch}`)
        .sort(),
    );
    for (const arch of plans.keys()) expect(kernelsOf(arch).length).toBeGreaterThan(50);
  });

  it.each([
    ['sm_80', false, false],
    ['sm_86', false, false],
    ['sm_89', false, false],
    ['sm_90a', true, true],
    ['sm_100', false, true],
    ['sm_120', false, false],
  ])('on %s use wgmma: %s, and clusters: %s', (arch, wgmma, clusters) => {
    expect(takes(arch, kWgmma)).toBe(wgmma);
    for (const pattern of kClusters) expect(takes(arch, pattern), pattern.source).toBe(clusters);
  });

  it.each(Object.entries(kLimits))(
    'ask for no more shared memory than sm_%s has',
    (arch, limits) => {
      const asked = [...(plans.get(`sm_${arch}`) ?? [])];
      expect(asked.filter(([, bytes]) => bytes > limits.sharedPerBlock)).toEqual([]);
    },
  );
});
