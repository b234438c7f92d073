/**
 * The paper's times in docs/gpu-design.md are what bench/gpu/budget.mjs makes of today's plans, machine code and
 * counters, and the plans choose by the clocks that it has.
 */
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { describe, expect, it } from 'vitest';
import { buildFolder, buildTargets, root } from '../emulator/build-folder.js';

interface Loop {
  readonly before: number;
  readonly instructions: number;
}
interface Data {
  readonly launches: Record<string, ReadonlyArray<{ readonly kernel: string }>>;
  readonly loops: Record<string, Loop>;
}
interface Tile {
  readonly rows: number;
  readonly tokens: number;
}
const load = async <T>(file: string) =>
  (await import(pathToFileURL(path.join(root, 'bench', 'gpu', file)).href)) as T;
const budget = await load<{
  readData(): Data;
  goalsTable(data?: Data): string;
  withTables(page: string): string;
  plannedLaunches(program: string): Data['launches'];
  countedLoops(folder: string, launches: Data['launches']): Data['loops'];
  pageFile: string;
}>('budget.mjs');
const model = await load<{
  kTerms: Record<string, { value: number }>;
  kWgmmaTiles: Record<string, Tile>;
  stepClocks(tile: Tile | undefined, instructions: number | undefined): { clocks: number };
  endClocks(tile: Tile | undefined, cluster: number): number;
}>('budget-model.mjs');
const source = (file: string) => readFileSync(path.join(root, file), 'utf8');

describe('the paper of the GPU kernels', () => {
  it('is in the page as the script has it', () => {
    const page = readFileSync(budget.pageFile, 'utf8');
    expect(budget.withTables(page)).toBe(page);
    const data = budget.readData();
    const slower = {
      ...data,
      loops: Object.fromEntries(
        Object.entries(data.loops).map(([name, loop]) => [
          name,
          { ...loop, instructions: 2 * loop.instructions },
        ]),
      ),
    };
    expect(page).toContain(budget.goalsTable());
    expect(budget.goalsTable(slower)).not.toBe(budget.goalsTable());
  });

  it('counts with the launches of the plans', async () => {
    await buildTargets('cuda_plan_table');
    const program = path.join(buildFolder() as string, 'cuda_plan_table');
    expect(budget.plannedLaunches(program)).toEqual(budget.readData().launches);
  }, 300_000);

  it('counts with the main loops of the machine code', () => {
    const folder = path.join(buildFolder() as string, 'kernels');
    if (!existsSync(folder)) {
      console.warn('not run: the main loops of the machine code, since there is no nvcc');
      return;
    }
    const { launches, loops } = budget.readData();
    expect(budget.countedLoops(folder, launches)).toEqual(loops);
  });

  it('has the stores of a tile that the emulator has counted', () => {
    const counters = JSON.parse(source('test/emulator/counters.json')) as Record<
      string,
      { counts: Record<string, number>; accesses: Record<string, number[]> }
    >;
    const { counts, accesses } = counters.gemm_wgmma_128x256_bf16_kernel ?? {
      counts: {},
      accesses: {},
    };
    const stores = Object.entries(accesses).find(([text]) =>
      /wgmma_tile\.cuh: st\.global 16 B/.test(text),
    );
    // Eight warps bring 16 x 256 sums of a tile to shared memory, 16 x 16 at a time.
    const tiles = (counts.stmatrix as number) / (8 * 16);
    expect((stores?.[1][1] as number) * 32).toBe(tiles * 128 * 256 * 2);
  });

  it('has the clocks by which the plans choose', () => {
    const cluster = source('native/cuda/plans/plan_cluster.h');
    const constant = (name: string) => Number(new RegExp(`${name} = (\\d+);`).exec(cluster)?.[1]);
    expect(constant('kL2Bytes')).toBe(model.kTerms.l2?.value);
    const { dependent, clock } = model.kTerms;
    expect(constant('kSecondLaunchClocks')).toBeCloseTo(
      (dependent?.value as number) * (clock?.value as number),
      -2,
    );
    const plan = source('native/cuda/plans/products/plan_matmul_small_m.cpp');
    const rows = [
      ...plan.matchAll(/Threads,\s*(\d+),\s*"(matmul_\w+_wgmma\w*?)_4bit_bf16_kernel"/g),
    ];
    expect(rows).toHaveLength(3);
    for (const [, clocks, kernel] of rows) {
      const loop = budget.readData().loops[`${kernel}_4bit_bf16_kernel`];
      const step = model.stepClocks(model.kWgmmaTiles[kernel as string], loop?.instructions);
      expect(Number(clocks), kernel).toBe(step.clocks);
    }
    expect(model.endClocks(model.kWgmmaTiles.matmul_wide_m_wgmma, 1)).toBeGreaterThan(2000);
  });
});
