/** `lowrank info --explain`: which kernels a call runs, and why. */

import { beforeAll, describe, expect, it } from 'vitest';
import { deviceInfo, getThreads } from '../../lib/index.js';
import { requireBuilt, run } from '../finetune/command.js';

beforeAll(requireBuilt);

interface Route {
  op: string;
  firstRow: number;
  rows: number;
  isa: string;
  route: string;
  file: string;
  reason: string;
}

interface Launch {
  kernel: string;
  grid: number[];
  tile?: number[];
  threads: number;
  cluster: number;
  sharedBytes: number;
}

interface Explained {
  call: Record<string, unknown>;
  explanations: {
    target: string;
    isa?: string;
    threads?: number;
    routes?: Route[];
    sm?: number;
    card?: string;
    multiprocessors?: number;
    plans?: { op: string; workspaceBytes: number; launches: Launch[] }[];
  }[];
  docs: Record<string, string>;
}

async function explain(line: string): Promise<Explained> {
  const { code, stdout, stderr } = await run(['info', '--json', '--explain', ...line.split(' ')]);
  expect(stderr).toBe('');
  expect(code).toBe(0);
  return JSON.parse(stdout) as Explained;
}

async function routesOf(line: string): Promise<Record<string, string>> {
  const { explanations } = await explain(line);
  return Object.fromEntries((explanations[0]?.routes ?? []).map(({ op, route }) => [op, route]));
}

describe('info --explain on the CPU', () => {
  it('names the route of each op, with file and reason', async () => {
    const { call, explanations, docs } = await explain('1x4096x4096 --r 16 --device cpu');
    expect(call).toMatchObject({ M: 1, K: 4096, N: 4096, r: 16, format: 'nf4', dtype: 'f32' });
    expect(explanations).toHaveLength(1);
    const [cpu] = explanations;
    expect(cpu).toMatchObject({ target: 'cpu', isa: deviceInfo('cpu').isa, threads: getThreads() });
    const few = expect.stringMatching(/^kDirect(Dots|RowSums)$/); // by the threads
    expect(cpu?.routes?.map(({ op, route }) => [op, route])).toEqual([
      ['matmul', 'kLaneDots'],
      ['loraForward', 'kLaneDots'],
      ['matmulInputGrad', few],
      ['loraBackward', few],
    ]);
    expect(cpu?.routes?.[0]).toMatchObject({
      firstRow: 0,
      rows: 1,
      file: 'native/cpu/kernels/dot/row_dot.h',
      reason: expect.stringContaining('a vector along k has one scale'),
    });
    expect(docs.cpu).toBe('docs/cpu-design.md#routes');
  });

  it('depends on rows, format, dtype, block size, precision and instruction set', async () => {
    const portable = '--isa portable';
    expect(await routesOf(`4x4096x4096 ${portable}`)).toMatchObject({
      matmul: 'kLaneDots',
      matmulInputGrad: 'kDirectPanels',
    });
    expect(await routesOf(`200x4096x4096 ${portable}`)).toMatchObject({ matmul: 'kLaneStrips' });
    expect(await routesOf(`4x4096x4096 ${portable} --blocksize 32`)).toMatchObject({
      matmul: 'kLaneDots',
    });
    expect(await routesOf(`4x4096x4096 ${portable} --format int8`)).toMatchObject({
      matmul: 'kPanels',
    });
    expect(await routesOf(`4x4096x4096 ${portable} --format dense`)).toMatchObject({
      matmul: 'kDenseDots',
      matmulInputGrad: 'kDirectDots',
    });
    expect(await routesOf(`200x4096x4096 ${portable} --format dense`)).toMatchObject({
      matmul: 'kPanels',
      matmulInputGrad: 'kCopiedPanels',
    });
    expect(await routesOf(`4x4096x4096 ${portable} --format int8-rowwise --compute int8`)).toEqual({
      matmul: 'kRowCodeDots',
      matmulInputGrad: 'kDirectPanels',
    });
  });

  it('tells the last rows apart where their route is another', async () => {
    // loraBackward cuts chunks of whole blocks of rows where it sums d_lora_b beside dx.
    const { explanations } = await explain('513x16384x1024 --isa portable --r 8 --format dense');
    const rows = explanations[0]?.routes?.filter(({ op }) => op === 'loraBackward');
    expect(rows?.map(({ firstRow, rows: count, route }) => [firstRow, count, route])).toEqual([
      [0, 512, 'kCopiedPanels'],
      [512, 1, 'kDirectDots'],
    ]);
  });

  it('prints a table for people, and where to read on', async () => {
    const { code, stdout } = await run(
      'info --explain 4x4096x4096 --r 8 --isa portable'.split(' '),
    );
    expect(code).toBe(0);
    expect(stdout).toContain('x [4, 4096] f32, w [4096, 4096] nf4, adapter of rank 8\n');
    expect(stdout).toMatch(/^CPU, portable, \d+ threads?$/m);
    expect(stdout).toMatch(/^ {2}matmul +1 to 4 +kLaneDots +portable +native\/cpu\/kernels\/dot/m);
    expect(stdout).toMatch(/^ {2}kLaneDots: a vector along k has one scale, .*\.$/m);
    expect(stdout).toContain('docs/cpu-design.md#routes');
    for (const line of stdout.split('\n')) expect(line).not.toMatch(/undefined|NaN|\[object/);
  });
});

describe('info --explain for CUDA', () => {
  it('gives the plan of an architecture without a GPU', async () => {
    const { explanations } = await explain('16x4096x4096 --dtype bf16 --r 16 --device sm_90');
    const [card] = explanations;
    expect(card).toMatchObject({ target: 'sm_90', sm: 90, multiprocessors: 132 });
    expect(card?.card).toContain('H100');
    expect(card?.plans?.map(({ op }) => op)).toEqual([
      'matmul',
      'loraForward',
      'matmulInputGrad',
      'loraBackward',
    ]);
    const [matmul, forward] = card?.plans ?? [];
    expect(matmul?.launches[0]).toMatchObject({
      kernel: 'matmul_small_m_cluster_4bit_bf16_m16_kernel',
      tile: [16, expect.any(Number)],
    });
    // The shrink comes first, and has no tile of a result.
    expect(forward?.launches[0]?.kernel).toMatch(/^lora_shrink/);
    expect(forward?.launches[0]?.tile).toBeUndefined();
    expect(forward?.launches.length).toBe((matmul?.launches.length ?? 0) + 1);
  });

  it('has workspace and tiles of the large products', async () => {
    const { explanations } = await explain('4096x4096x4096 --dtype bf16 --device sm_90');
    const [matmul] = explanations[0]?.plans ?? [];
    expect(matmul?.workspaceBytes).toBeGreaterThan(1 << 20); // the decoded panels
    const products = matmul?.launches.filter(({ tile }) => tile !== undefined) ?? [];
    expect(products.map(({ tile }) => tile)).toEqual(products.map(() => [128, 256]));
    expect(products.length).toBeGreaterThan(0);
  });

  it('differs between architectures', async () => {
    const kernelsOn = async (device: string) => {
      const { explanations } = await explain(`4096x4096x4096 --dtype bf16 --device ${device}`);
      return explanations[0]?.plans?.[0]?.launches.map(({ kernel }) => kernel);
    };
    expect(await kernelsOn('sm_80')).toEqual([expect.stringMatching(/^matmul_mma_code4_bf16_/)]);
    expect(await kernelsOn('sm_90')).toContain('gemm_wgmma_128x256_bf16_kernel');
  });

  it('prints a table for people', async () => {
    const { code, stdout } = await run(
      'info --explain 4096x4096x4096 --dtype bf16 --device sm_80'.split(' '),
    );
    expect(code).toBe(0);
    expect(stdout).toContain('CUDA, sm_80, A100 SXM 80 GB, 108 multiprocessors\n');
    expect(stdout).toMatch(/^ {2}op +kernel +tile +grid +threads +cluster +shared +workspace$/m);
    expect(stdout).toMatch(/^ {2}matmul +matmul_mma_code4_bf16_\S+ +\d+ x \d+ +\d+ x 1 x 1 /m);
    expect(stdout).toContain('docs/gpu-design.md#which-product-runs');
  });

  const emulated = deviceInfo('cuda-emulated');
  if (!emulated.available) console.warn(`skipped: ${emulated.reason}`);
  it.skipIf(!emulated.available)(
    'explains a device that is here, as its architecture',
    async () => {
      const [here, card] = await Promise.all(
        ['cuda-emulated', 'sm_80'].map(
          async (device) =>
            (await explain(`64x2048x2048 --dtype f16 --device ${device}`)).explanations[0],
        ),
      );
      expect(here).toMatchObject({ target: 'cuda-emulated', sm: 80, multiprocessors: 108 });
      expect(here?.plans).toEqual(card?.plans);
    },
  );
});

describe('info --explain rejects', () => {
  const size = '--explain must be MxKxN, each from 1 to 16,777,216, e.g. 16x4096x4096, got "';
  it.each([
    ['--explain 3x', 2, `${size}3x"`],
    ['--explain 3x4', 2, `${size}3x4"`],
    ['--explain 0x64x64', 2, `${size}0x64x64"`],
    ['--explain 1x1x99999999', 2, `${size}1x1x99999999"`],
    ['--explain -1x64x64', 2, '--explain must be MxKxN'],
    ['--explain', 2, '--explain needs a value'],
    ['--explain 1x64x64 --format q4', 2, '--format must be one of nf4, fp4'],
    ['--explain 1x64x64 --dtype f64', 2, '--dtype must be one of f32, bf16, f16, got'],
    ['--explain 1x64x64 --r 0', 2, '--r must be an integer from 1 to 65536, got'],
    ['--explain 1x64x64 --isa mmx', 2, 'isa must be one of those that run on this processor'],
    ['--explain 1x64x64 --isa avx2 --device cuda', 2, '--isa is for the CPU, got --device cuda'],
    ['--explain 1x64x64 --device sm_70', 2, 'device must be one of sm_80, sm_86, sm_89, sm_90'],
    ['--explain 1x64x64 --device gpu', 2, '--device must be one of cpu'],
    ['--explain 1x64x64 --device reference', 4, "got 'reference', which has plain loops"],
    ['--explain 1x64x64 --format dense --blocksize 64', 2, 'beside --blocksize, got "dense"'],
    ['--explain 1x64x64 --format dense --compute int8', 4, '(for compute int8)'],
    ['--explain 1x63x64 --format int8-rowwise', 3, 'K = 63'],
    [
      '--explain 1x64x64 --compute int8 --device sm_90',
      4,
      'w must be rowwise int8 on a CUDA device',
    ],
    ['--isa avx2', 2, '--isa is for --explain, which was not given'],
  ])('%s', async (line, exitCode, message) => {
    const { code, stdout, stderr } = await run(['info', ...line.split(' ')]);
    expect(stderr).toContain(message);
    expect(stderr.split('\n')).toHaveLength(2);
    expect(stdout).toBe('');
    expect(code).toBe(exitCode);
  });
});
