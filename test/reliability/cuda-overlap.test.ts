/** From compute capability 9.0 on the launches of an op overlap, and only those. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { devices } from '../../lib/index.js';
import { reportOf, runProgram, TIME_SCALE, usePrograms } from './program.js';

usePrograms();

const folder = mkdtempSync(join(tmpdir(), 'lowrank-overlap-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const row = devices().find(({ device }) => device === 'cuda-emulated');
if (row?.available !== true) console.warn(`no launch is looked at: ${row?.reason}`);

let runs = 0;

/** Kernels in the order of their launches, a + before those that may start before the last has ended. */
async function launches(env: Record<string, string>): Promise<string[]> {
  const trace = join(folder, `${runs++}.jsonl`);
  const options = { ...env, LOWRANK_EMULATOR_TRACE: trace, LOWRANK_EMULATOR_RUN: '0' };
  reportOf(await runProgram('overlapping', [], { env: options, timeout: 60_000 * TIME_SCALE }));
  return readFileSync(trace, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { kernel: string; overlaps_previous: number })
    .map(({ kernel, overlaps_previous: over }) => `${over === 1 ? '+' : ''}${kernel}`);
}

const ofKernels = (names: readonly string[]): string[] =>
  names.map((name) => name.replace('+', ''));

/** Where there are no clusters their slices are planes, which one launch more adds. */
const withoutClusters = (names: readonly string[]): string[] =>
  names.flatMap((name) =>
    name.includes('_cluster_')
      ? [
          name.replace('_cluster', ''),
          name.startsWith('lora') ? 'lora_reduce_kernel' : 'matmul_small_m_finish_bf16_kernel',
        ]
      : [name],
  );

describe.skipIf(row?.available !== true)('launches on cuda-emulated', () => {
  it('of one op overlap on sm_90, the first of each does not', async () => {
    const names = await launches({ LOWRANK_EMULATOR_SM: '90' });
    const product = '+matmul_small_m_cluster';
    // The norms of the weight itself go by tiles of rows.
    const short = names.map((name) =>
      name.replace(/(_4bit)?(_b?f\d+)?(_r16|_m8|_32x64)?_kernel$/, ''),
    );
    expect(short.filter((name) => !/random|quantize|sum_rows/.test(name))).toEqual([
      ...['lora_shrink_cluster', product],
      product,
      ...['+lora_shrink_cluster', product],
      ...['lora_shrink', '+gemm', '+factored_norm'],
      // The shrink rounds loraA: no cast. Planes are added where they are read: no reduction, and no cluster.
      ...['lora_shrink', '+matmul_small_m', '+factored_norm'],
      'matmul_small_m_cluster',
    ]);
    const tiles = short.filter((name) => /dequantize|sum_rows/.test(name));
    expect(tiles.slice(0, 3)).toEqual(['dequantize', '+sum_rows_run4', '+dequantize']);
    expect(tiles.slice(1).every((name) => name.startsWith('+'))).toBe(true);
  });

  it('do not on sm_80, over a driver whose graphs have none that do, nor where that is asked for', async () => {
    const over = await launches({ LOWRANK_EMULATOR_SM: '90' });
    for (const env of [
      { LOWRANK_EMULATOR_SM: '80' },
      { LOWRANK_EMULATOR_SM: '90', LOWRANK_EMULATOR_DRIVER: '12020' },
      { LOWRANK_EMULATOR_SM: '90', LOWRANK_CUDA_OVERLAP: '0' },
    ]) {
      const names = await launches(env);
      expect(names.filter((name) => name.startsWith('+'))).toEqual([]);
      const all = ofKernels(over);
      expect(names).toEqual(env.LOWRANK_EMULATOR_SM === '80' ? withoutClusters(all) : all);
    }
  });
});
