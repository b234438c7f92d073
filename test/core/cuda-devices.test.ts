/** What devices() and `lowrank info` say of a GPU that is not there, or cannot be used, and of two. */
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { build } from 'tsup';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { bindingPath } from '../../lib/core/binding.js';
import type { DeviceInfo } from '../../lib/index.js';

const folder = mkdtempSync(join(tmpdir(), 'lowrank-gpu-'));
/** The addon alone in a folder: what lies beside it is up to the test. */
const addon = join(folder, 'lowrank.node');
const kernels = join(folder, 'lowrank.fatbin');
/** In place of the driver: it exports the same calls, and can pretend to be any card. */
const emulator = join(dirname(bindingPath()), 'lowrank-emulator.so');
const emulated = existsSync(emulator);
if (!emulated) console.warn(`only the absent driver is tried: no file ${emulator}`);

beforeAll(async () => {
  copyFileSync(bindingPath(), addon);
  await build({
    entry: {
      main: join(import.meta.dirname, '..', '..', 'lib', 'cli', 'main.ts'),
      library: join(import.meta.dirname, '..', '..', 'lib', 'index.ts'),
    },
    outDir: folder,
    format: ['esm'],
    outExtension: () => ({ js: '.mjs' }),
    target: 'node20',
    splitting: false,
    silent: true,
    config: false,
    dts: false,
  });
  writeFileSync(join(folder, 'package.json'), '{"name":"lowrank","version":"0.0.0"}');
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A file of kernels as the build makes it: an index, and bytes that only a driver reads. */
function writeKernels(...modules: readonly string[]): void {
  writeKernelsOf('13.0.88', '9.0', modules);
}

function writeKernelsOf(compiler: string, ptx: string, modules: readonly string[]): void {
  const index = [
    `compiler nvcc ${compiler}`,
    `ptx ${ptx}`,
    ...modules.flatMap((targets) => [
      `module cast_sm80 000000000512 000000000064 ${targets}`,
      'kernel cast_f32_bf16_kernel',
    ]),
    '',
  ].join('\n');
  const head = (bytes: number) => `lowrank-kernels 2 ${String(bytes).padStart(12, '0')}\n`;
  const bytes = head(0).length + index.length;
  writeFileSync(kernels, `${head(bytes)}${index}`.padEnd(512, ' ').padEnd(576, 'x'));
}

function info(env: Record<string, string>): Map<string, DeviceInfo> {
  const run = spawnSync(process.execPath, [join(folder, 'main.mjs'), 'info', '--json'], {
    encoding: 'utf8',
    env: { ...process.env, LOWRANK_BINDING: addon, ...env },
  });
  if (run.status !== 0) throw new Error(run.stderr);
  const { devices } = JSON.parse(run.stdout) as { devices: DeviceInfo[] };
  return new Map(devices.map((row) => [row.device, row]));
}

const overEmulator = { LOWRANK_CUDA_LIBRARY: emulator };

describe('no driver', () => {
  it('is said with what is needed', () => {
    const found = info({ LOWRANK_CUDA_LIBRARY: '/nowhere/libcuda.so.1' });
    expect(found.get('cuda')).toMatchObject({ available: false });
    expect(found.get('cuda')?.reason).toMatch(/no CUDA driver: .*CUDA 12\.0 or later is needed/);
    expect(found.get('cpu')?.available).toBe(true);
  });

  it('no emulator is said with how to get one', () => {
    const found = info({});
    expect(found.get('cuda-emulated')).toMatchObject({ available: false });
    expect(found.get('cuda-emulated')?.reason).toMatch(/not built .*lowrank-emulator\.so/);
    expect(info({ LOWRANK_EMULATOR: 'fast' }).get('cuda-emulated')?.reason).toContain('"fast"');
  });

  it('a library that is no driver is said', () => {
    const found = info({ LOWRANK_CUDA_LIBRARY: addon });
    expect(found.get('cuda')?.reason).toMatch(/is not a CUDA driver: it lacks cuInit/);
  });
});

describe.skipIf(!emulated)('a driver', () => {
  it.each<[string, Record<string, string>, RegExp]>([
    [
      'that is too old',
      { LOWRANK_EMULATOR_DRIVER: '11040' },
      /supports CUDA 11\.4, CUDA 12\.0 or later is needed/,
    ],
    ['without a device', { LOWRANK_EMULATOR_DEVICES: '0' }, /no CUDA device/],
    ['without a device', { LOWRANK_CUDA_FAULT: 'cuInit:code=100' }, /no CUDA device/],
    [
      'with a device that is too old',
      { LOWRANK_EMULATOR_SM: '75' },
      /too old: it has compute capability 7\.5, 8\.0 .* is needed/,
    ],
    ["that is the toolkit's stub", { LOWRANK_CUDA_FAULT: 'cuInit:code=34' }, /stub/],
    ['of two versions', { LOWRANK_CUDA_FAULT: 'cuInit:code=803' }, /different versions/],
    ['without memory', { LOWRANK_CUDA_FAULT: 'cuInit:code=2:sticky' }, /out of memory at start/],
    [
      'without memory for a context',
      { LOWRANK_CUDA_FAULT: 'cuDevicePrimaryCtxRetain:code=2:sticky' },
      /does not start because its memory is in use: .*out of memory/i,
    ],
    [
      'that refuses the kernels',
      { LOWRANK_CUDA_FAULT: 'cuModuleLoadData:code=222' },
      /built by a newer toolkit than the driver \(CUDA 13\.0\) reads/,
    ],
  ])('%s (%o)', (_, env, reason) => {
    writeKernels('sm_80,compute_80');
    const cuda = info({ ...overEmulator, ...env }).get('cuda');
    expect(cuda?.reason).toMatch(reason);
    expect(cuda?.available).toBe(false);
  });

  it.each([
    ['cuDevicePrimaryCtxRetain:code=999', /does not start: .*999/],
    ['cuDevicePrimaryCtxRetain:code=46', /does not start: .*46/],
    ['cuDevicePrimaryCtxRetain:code=2:sticky', /does not start because its memory is in use/],
    ['cuModuleLoadData:code=222', /built by a newer toolkit/],
  ])('that makes no context is not the default (%s)', (fault, reason) => {
    writeKernels('sm_80,compute_80');
    const program = `
      import { defaultDevice, devices, Tensor } from ${JSON.stringify(join(folder, 'library.mjs'))};
      const y = await Tensor.zeros([2]).read();
      let error = '';
      try { Tensor.zeros([2], { device: 'cuda' }); } catch (thrown) { error = thrown.message; }
      const { reason } = devices().find(({ device }) => device === 'cuda');
      console.log(JSON.stringify({ y: [...y], standard: defaultDevice(), error, reason }));`;
    const run = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
      encoding: 'utf8',
      env: { ...process.env, LOWRANK_BINDING: addon, ...overEmulator, LOWRANK_CUDA_FAULT: fault },
    });
    expect(run.stderr).toBe('');
    const told = JSON.parse(run.stdout);
    expect(told).toMatchObject({ y: [0, 0], standard: 'cpu' });
    expect(told.error).toMatch(reason);
    expect(told.reason).toMatch(reason);
    // And `lowrank info` says so.
    const words = spawnSync(process.execPath, [join(folder, 'main.mjs'), 'info'], {
      encoding: 'utf8',
      env: { ...process.env, LOWRANK_BINDING: addon, ...overEmulator, LOWRANK_CUDA_FAULT: fault },
    });
    expect(words.stdout).toContain('default device cpu');
    expect(words.stdout).toMatch(reason);
  });

  it('that works is the default, or the next one where the first does not start', () => {
    writeKernels('sm_80,compute_80');
    const standard = (env: Record<string, string>) => {
      const run = spawnSync(process.execPath, [join(folder, 'main.mjs'), 'info', '--json'], {
        encoding: 'utf8',
        env: { ...process.env, LOWRANK_BINDING: addon, ...overEmulator, ...env },
      });
      return JSON.parse(run.stdout).defaultDevice;
    };
    expect(standard({})).toBe('cuda');
    const two = { LOWRANK_EMULATOR_DEVICES: '2' };
    const fault = 'cuDevicePrimaryCtxRetain:code=999';
    expect(standard({ ...two, LOWRANK_CUDA_FAULT: fault })).toBe('cuda:1');
  });

  it('without kernels, with those of another card, or with a file of something else', () => {
    rmSync(kernels, { force: true });
    expect(info(overEmulator).get('cuda')?.reason).toMatch(/built without nvcc/);
    writeKernels('sm_61');
    expect(info(overEmulator).get('cuda')?.reason).toMatch(/built for sm_61, .* is sm_80/);
    writeFileSync(kernels, 'something else');
    expect(info(overEmulator).get('cuda')?.reason).toMatch(/is not a kernel file/);
  });

  it.each<[number, string, string, string, string, RegExp | null]>([
    // Machine code: any driver of the compiler's major version, or a later one.
    [
      12040,
      '80',
      'sm_80,compute_80',
      '13.0.88',
      '9.0',
      /CUDA 12\.4; these kernels were built with nvcc 13\.0\.88 and need a driver of CUDA 13\.0 \(R580\) or later: update the driver, or build with an older nvcc$/,
    ],
    [12000, '80', 'sm_80,compute_80', '12.9.41', '8.8', null],
    [13000, '80', 'sm_80,compute_80', '13.1.0', '9.1', null],
    [13000, '86', 'sm_80', '12.4.131', '8.4', null],
    // PTX: a driver as new as the PTX.
    [
      13000,
      '120',
      'sm_90a,compute_90',
      '13.1.0',
      '9.1',
      /built with nvcc 13\.1\.0, are PTX 9\.1 for sm_120 and need a driver of CUDA 13\.1 \(R590\) or later: .* or for sm_120$/,
    ],
    [12080, '120', 'compute_90', '12.9.41', '8.8', /need a driver of CUDA 12\.9 \(R575\) or later/],
    [12080, '120', 'compute_90', '12.8.61', '8.7', null],
    [12040, '120', 'compute_80', '12.6.20', '8.5', /need a driver of CUDA 12\.5 \(R555\) or later/],
    [12050, '120', 'compute_80', '12.6.20', '8.5', null],
    [14000, '80', 'compute_80', '15.2.0', '11.3', /need a driver of CUDA 15\.2 or later/],
  ])(
    'of version %i on sm_%s with %s of nvcc %s, PTX %s',
    (driver, sm, targets, compiler, ptx, reason) => {
      writeKernelsOf(compiler, ptx, [targets]);
      const env = { LOWRANK_EMULATOR_DRIVER: `${driver}`, LOWRANK_EMULATOR_SM: sm };
      const cuda = info({ ...overEmulator, ...env }).get('cuda');
      expect(cuda?.available).toBe(reason === null);
      if (reason !== null) expect(cuda?.reason).toMatch(reason);
    },
  );

  it('with kernels that do not say what they are of', () => {
    for (const [compiler, ptx] of [
      ['', '9.0'],
      ['13.0', 'x'],
      ['thirteen', '9.0'],
    ] as const) {
      writeKernelsOf(compiler, ptx, ['sm_80']);
      expect(info(overEmulator).get('cuda')?.reason).toMatch(/does not name its compiler/);
    }
  });

  it.each([80, 89, 90, 120])('of sm_%i loads one module of a name', (sm) => {
    writeKernels('sm_90a,compute_90', 'sm_80,compute_80');
    const loadsAtMost = (count: number) => {
      const fault = `cuModuleLoadData:n=${count + 1}:code=222`;
      const env = { LOWRANK_EMULATOR_SM: `${sm}`, LOWRANK_CUDA_FAULT: fault };
      return info({ ...overEmulator, ...env }).get('cuda')?.available;
    };
    expect([loadsAtMost(0), loadsAtMost(1)]).toEqual([false, true]);
  });

  it('with two devices has two names, and both compute', () => {
    writeKernels('sm_80,compute_80');
    const found = info({ ...overEmulator, LOWRANK_EMULATOR_DEVICES: '2' });
    expect([...found.keys()]).toEqual(['cpu', 'reference', 'cuda', 'cuda:1', 'cuda-emulated']);
    for (const name of ['cuda', 'cuda:1']) {
      expect(found.get(name)).toMatchObject({ available: true, sm: 80, driver: 'CUDA 13.0' });
    }
  });
});
