/** `lowrank emulate`, as a user runs it. */

import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { readTrace } from '../../lib/cli/emulate/emulate-trace.js';
import { anyOf } from '../../lib/core/errors.js';
import { formatNames } from '../../lib/core/formats.js';
import { requireBuilt, run, start } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';
import { buildTargets, emulatorRuns, root } from './build-folder.js';

const folder = temporaryFolder();
const inFolder = (name: string) => path.join(folder, name);
const example = (name: string) => path.join(root, 'examples', 'own-kernel', name);

describe.runIf(emulatorRuns)('lowrank emulate', () => {
  beforeAll(async () => {
    requireBuilt();
    await buildTargets('emulator_check');
  }, 1_200_000);

  const small = ['--m', '5', '--n', '24', '--k', '64', '--r', '4'];

  it('says what it takes', async () => {
    const help = await run(['emulate', '--help']);
    expect(help.code).toBe(0);
    expect(help.stdout).toContain('lowrank emulate OP');
    for (const [args, message] of [
      [[], /OP must be one of matmul/],
      [['conv'], /got "conv"/],
      [['matmul', '--schedule', 'sideways'], /--schedule must be all, or a list/],
      [['matmul', '--dropout', '1'], /--dropout must be 0 to below 1/],
      [['quantize', '--format', 'none'], new RegExp(`--format must be ${anyOf(formatNames)}`)],
      [['--kernel', 'x.cu'], /--kernel needs --name/],
      ...['70', '87', '100', '999'].map(
        (sm) =>
          [['matmul', '--sm', sm], /--sm must be one of 80, 86, 89, 90, 120, got "\d+"/] as const,
      ),
      [['matmul', '--blocksize', '48'], /--blocksize must be a power of two from 32 to 4096/],
      [['loraForward', '--r', '0'], /--r must be an integer from 1/],
      [['matmul', '--grid', '3'], /--grid goes with --kernel, got none/],
      [['--name', 'x'], /--name goes with --kernel, got none/],
      [['matmul', '--kernel', 'x.cu'], /takes an OP or --kernel, got both/],
      [['--kernel', 'x.cu', '--name', 'x', '--m', '5'], /--m goes with an OP, got --kernel/],
      [['--kernel', 'x.cu', '--name', 'x', '--library', 'ptx'], /--library goes with an OP/],
      ...['0', '1,70000', '1,1,1,1', '2147483648', '0x2'].map(
        (grid) =>
          [
            ['--kernel', 'x.cu', '--name', 'x', '--grid', grid],
            /--grid must be X, X,Y or X,Y,Z, of 1 to 2147483647,65535,65535 blocks/,
          ] as const,
      ),
    ] as const) {
      const { code, stderr } = await run(['emulate', ...args]);
      expect(stderr).toMatch(message);
      expect(code).toBe(2);
    }
  }, 120_000);

  it('calls operands that an op does not take no finding', async () => {
    const sizes = ['--m', '1048576', '--n', '1', '--k', '100000'];
    const { code, stdout, stderr } = await run(['emulate', 'matmul', ...sizes]);
    expect([code, stdout]).toEqual([3, '']);
    expect(stderr).toMatch(/emulate: Tensor.randn: shape must be of at most \d+ elements/);
  }, 120_000);

  it('refuses files that cannot be read or written, before it compiles', async () => {
    const own = (...args: string[]) => [
      '--kernel',
      example('transpose.cu'),
      '--name',
      'k',
      ...args,
    ];
    for (const [args, message] of [
      [['matmul', '--html', inFolder('no/page.html')], /the folder of ".*" does not exist/],
      [['matmul', '--html', folder], /must be a file to write, got a folder/],
      [['--kernel', inFolder('no.cu'), '--name', 'k'], /no.cu" must exist, got nothing there/],
      [['--kernel', folder, '--name', 'k'], /must be a regular file, got a folder/],
      [own('--params', inFolder('no.json')), /no.json" must exist, got nothing there/],
    ] as const) {
      const { code, stderr } = await run(['emulate', ...args]);
      expect(stderr).toMatch(message);
      expect(stderr).not.toContain('compiling');
      expect(code).toBe(3);
    }
  }, 120_000);

  /** The command with a folder of its own for files that come and go. */
  const withTemporary = (name: string) => {
    fs.mkdirSync(inFolder(name));
    return { wrap: `export TMPDIR='${inFolder(name)}'; exec "$@"` };
  };

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)(
    'leaves nothing behind on %s',
    async (signal, expected) => {
      const options = withTemporary(signal);
      const sizes = [
        '--m',
        '512',
        '--n',
        '512',
        '--k',
        '512',
        '--schedule',
        'all',
        '--seeds',
        '99',
      ];
      const { child, finished } = start(['emulate', 'matmul', ...sizes], options);
      const left = () => fs.readdirSync(inFolder(signal), { recursive: true });
      for (let i = 0; i < 600 && !left().some((name) => /\b0$/.test(String(name))); i++) {
        await sleep(100);
      }
      expect(left()).not.toEqual([]);
      child.kill(signal);
      expect((await finished).code).toBe(expected);
      expect(left()).toEqual([]);
    },
    120_000,
  );

  it('runs an op under every schedule, with the same bits and counters', async () => {
    const { code, stdout, stderr } = await run([
      'emulate',
      'loraForward',
      ...small,
      ...['--schedule', 'all', '--seeds', '2', '--dropout', '0.25', '--bias', '--json'],
    ]);
    expect(code, stderr).toBe(0);
    const result = JSON.parse(stdout);
    expect(result.runs.map(({ schedule }: { schedule: string }) => schedule)).toEqual([
      'forward',
      'reverse',
      'random 1',
      'random 2',
    ]);
    expect(result.findings).toEqual([]);
    expect(result.sameBits).toBe(true);
    expect(result.sameCounters).toBe(true);
    expect(result.launches.length).toBeGreaterThan(0);
    const outputs = new Map(
      result.outputs.map((output: { name: string }) => [output.name, output]),
    );
    for (const [name, shape] of [
      ['y', [5, 24]],
      ['h', [5, 4]],
    ] as const) {
      const output = outputs.get(name) as { shape: number[]; maxError: number; maxValue: number };
      expect(output.shape).toEqual(shape);
      // bf16 rounds y to 8 bits.
      expect(output.maxError / output.maxValue).toBeLessThan(2 ** -7);
    }
    // The lines are those of the kernels, and what they cost is never below the ideal.
    expect(result.lines.length).toBeGreaterThan(0);
    for (const { file, cost, ideal, requests } of result.lines) {
      expect(file).toMatch(/\/cuda\//);
      expect(cost).toBeGreaterThanOrEqual(ideal);
      expect(requests).toBeGreaterThan(0);
    }
  }, 300_000);

  it.each([
    'matmul',
    'matmulInputGrad',
    'loraBackward',
    'quantize',
    'dequantize',
    'cast',
    'random',
  ])(
    'runs %s without a finding',
    async (op) => {
      const { code, stdout, stderr } = await run(['emulate', op, ...small]);
      expect(code, stderr + stdout).toBe(0);
      expect(stdout).toContain('Findings: none (forward)');
    },
    300_000,
  );

  it('writes a page that holds the source and loads nothing', async () => {
    const page = inFolder('matmul.html');
    const { code, stderr } = await run(['emulate', 'matmul', ...small, '--html', page]);
    expect(code, stderr).toBe(0);
    const html = fs.readFileSync(page, 'utf8');
    expect(html).toContain('<h2>Accesses by source line</h2>');
    expect(html).toMatch(/<td class="code">/);
    expect(html).not.toMatch(/\b(?:src|href)="(?!#)/);
    expect(html).not.toContain('file is not at hand');
  }, 300_000);

  it('finds a source by each name that a line table may give it', () => {
    const source = 'cuda/mma/gemm_mma.cuh';
    const named = ['', './', '../', 'build/', 'build/../', `${root}/`, `${root}/build/../`];
    const trace = inFolder('names.jsonl');
    const lines = named.map((prefix) => ({ file: prefix + source }));
    const findings = [{ file: '' }, { file: '/elsewhere/own.cu' }, { file: 'own.cu' }];
    fs.writeFileSync(trace, JSON.stringify({ lines, findings }));
    const [launch] = readTrace(trace);
    const files = (places: readonly { file: string }[] = []) => places.map(({ file }) => file);
    expect(files(launch?.lines)).toEqual(named.map(() => path.join(root, source)));
    expect(files(launch?.findings)).toEqual(['', '/elsewhere/own.cu', path.join(root, 'own.cu')]);
  });

  const transpose = (source: string, name: string, shared: string) => [
    'emulate',
    ...['--kernel', source, '--name', name, '--params', example('params.json')],
    ...['--grid', '4,2', '--threads', '256', '--shared', shared, '--json'],
  ];

  it('shows what the padding in examples/own-kernel is for', async () => {
    for (const [name, shared, ratio] of [
      ['transpose_kernel', '4096', 32],
      ['transpose_padded_kernel', '4224', 1],
    ] as const) {
      const { code, stdout, stderr } = await run(transpose(example('transpose.cu'), name, shared));
      expect(code, stderr).toBe(0);
      const { lines } = JSON.parse(stdout);
      const read = lines.find(({ kind }: { kind: string }) => kind === 'ld.shared');
      expect(read.cost / read.ideal).toBe(ratio);
      for (const line of lines) if (line !== read) expect(line.cost).toBe(line.ideal);
    }
  }, 300_000);

  it('finds the barrier that is missing from a kernel of one’s own', async () => {
    const source = inFolder('racy.cu');
    const text = fs.readFileSync(example('transpose.cu'), 'utf8');
    fs.writeFileSync(source, text.replace('__syncthreads();', ''));
    const { code, stdout } = await run(transpose(source, 'transpose_padded_kernel', '4224'));
    expect(code).toBe(7);
    const { findings } = JSON.parse(stdout);
    const kinds = findings.map(({ kind }: { kind: string }) => kind);
    expect(kinds).toContain('race-shared');
    expect(findings[0].file).toBe(source);
  }, 300_000);

  it('compiles and runs several kernels of one’s own at once, each by itself', async () => {
    const text = fs.readFileSync(example('transpose.cu'), 'utf8');
    const racy = inFolder('racy-beside.cu');
    fs.writeFileSync(racy, text.replace('__syncthreads();', ''));
    const sources = [example('transpose.cu'), racy, example('transpose.cu'), racy];
    const runs = sources.map((source) => run(transpose(source, 'transpose_padded_kernel', '4224')));
    const ended = await Promise.all(runs);
    expect(ended.map(({ code, stderr }) => (code === 0 || code === 7 ? code : stderr))).toEqual([
      0, 7, 0, 7,
    ]);
  }, 300_000);

  it('names the kernels of a file without the one asked for, and what does not compile', async () => {
    const none = await run(transpose(example('transpose.cu'), 'transpose', '4096'));
    expect(none.stderr).toContain(
      'transpose.cu (transpose_kernel, transpose_padded_kernel), got "transpose"',
    );
    expect([none.code, none.stdout]).toEqual([2, '']);
    const source = inFolder('broken.cu');
    fs.writeFileSync(source, '#include "cuda/gpu.cuh"\nint x = ;\n');
    const broken = await run(transpose(source, 'x', '0'));
    expect(broken.stderr).toMatch(/broken.cu" does not compile/);
    expect(broken.stderr).toMatch(/broken.cu:2:\d+: error: /);
    expect(broken.code).toBe(3);
  }, 300_000);

  it.each([
    ['trap', 'if (threadIdx.x == 3) __trap();', 'trap'],
    ['divided', 'p.y[threadIdx.x] = 8 / p.x[threadIdx.x];', 'an integer divided by zero'],
    ['illegal', 'if (threadIdx.x == 3) __builtin_trap();', 'a trap: '],
  ])(
    'goes on after a kernel that ends by a fault: %s',
    async (name, body, text) => {
      const source = inFolder(`${name}.cu`);
      const head = '#include "cuda/gpu.cuh"\nstruct P { int32_t* x; int32_t* y; };\n';
      fs.writeFileSync(source, `${head}LOWRANK_KERNEL(${name}_kernel, P, 64, 1) { ${body} }\n`);
      const params = inFolder(`${name}.json`);
      const buffer = (field: string) => ({ name: field, buffer: 'i32', elems: 64, fill: 'zero' });
      fs.writeFileSync(params, JSON.stringify([buffer('x'), buffer('y')]));
      const files = ['--kernel', source, '--params', params];
      const shape = ['--name', `${name}_kernel`, '--threads', '64', '--json'];
      const { code, stdout, stderr } = await run(['emulate', ...files, ...shape]);
      expect(code, stderr).toBe(7);
      const [finding] = JSON.parse(stdout).findings;
      expect(finding).toMatchObject({ kind: 'fault', file: source, line: 3 });
      expect(finding.message ?? finding.text).toContain(text);
    },
    300_000,
  );

  it('says where the bits differ, of the runs that ended', async () => {
    const source = inFolder('order.cu');
    const kernel = (name: string, body: string) =>
      `LOWRANK_KERNEL(${name}, P, 64, 1) { ${body} }\n`;
    const place = 'const uint32_t at = atomicAdd(&p.x[0], 1u);';
    fs.writeFileSync(
      source,
      `#include "cuda/gpu.cuh"
       struct P { uint32_t* x; uint32_t* y; };
       ${kernel('order', `${place} p.y[threadIdx.x] = at;`)}
       ${kernel('beyond', `${place} if (threadIdx.x == 0) p.y[at == 0 ? 0 : 99] = 1;`)}`,
    );
    const words = (elems: number) => ({ buffer: 'u32', elems, fill: 'zero' });
    fs.writeFileSync(
      inFolder('order.json'),
      JSON.stringify([
        { name: 'x', ...words(1) },
        { name: 'y', ...words(64) },
      ]),
    );
    const args = (name: string) => [
      ...['emulate', '--kernel', source, '--name', name, '--params', inFolder('order.json')],
      ...['--threads', '64', '--schedule', 'forward,reverse,random', '--html', inFolder('o.html')],
    ];
    const order = await run(args('order'));
    const different = 'DIFFERENT BITS than in forward: y in reverse, random 1.';
    expect([order.code, order.stdout]).toEqual([7, expect.stringContaining(different)]);
    expect(fs.readFileSync(inFolder('o.html'), 'utf8')).toContain(different);
    // Only the first run of this one ends.
    const beyond = await run([...args('beyond'), '--json']);
    const { findings, sameBits, sameCounters } = JSON.parse(beyond.stdout);
    expect(findings[0]).toMatchObject({ kind: 'oob-global', schedules: ['reverse', 'random 1'] });
    expect([beyond.code, sameBits, sameCounters]).toEqual([7, undefined, undefined]);
  }, 300_000);

  it('takes a folder for temporary files with a blank in its name', async () => {
    const args = transpose(example('transpose.cu'), 'transpose_kernel', '4096');
    const { code, stderr } = await run(args, withTemporary('a blank'));
    expect(code, stderr).toBe(0);
  }, 300_000);

  it('says what a launch has too much of', async () => {
    const own = [
      'emulate',
      '--kernel',
      example('transpose.cu'),
      '--params',
      example('params.json'),
    ];
    for (const [args, message] of [
      [['--threads', '512'], /compiled for blocks of up to 256 threads .*got 512/],
      [['--threads', '256', '--shared', '300000'], /bytes of shared memory, .*got 300000 beside/],
      [
        ['--threads', '256', '--sm', '80', '--cluster', '2'],
        /from sm_90 on, got one of 2 blocks on sm_80/,
      ],
      [
        ['--threads', '256', '--sm', '90', '--grid', '3', '--cluster', '2'],
        /multiple of their 2 blocks, got 3/,
      ],
    ] as const) {
      const { stdout, stderr } = await run([...own, '--name', 'transpose_padded_kernel', ...args]);
      expect(stdout + stderr).toMatch(message);
    }
  }, 300_000);

  it('compares with what a kernel of one’s own should give', async () => {
    const y = Float32Array.from({ length: 8192 }, (_, i) => (i % 64) * 128 + Math.floor(i / 64));
    fs.writeFileSync(inFolder('y.bin'), y);
    const params = JSON.parse(fs.readFileSync(example('params.json'), 'utf8'));
    params[1].expect = 'y.bin';
    params[1].save = 'y.out';
    fs.writeFileSync(inFolder('params.json'), JSON.stringify(params));
    const args = transpose(example('transpose.cu'), 'transpose_kernel', '4096').map((arg) =>
      arg === example('params.json') ? inFolder('params.json') : arg,
    );
    const right = await run(args);
    expect(right.code, right.stderr).toBe(0);
    const found = JSON.parse(right.stdout).outputs.find(
      ({ name }: { name: string }) => name === 'y',
    );
    expect(found).toMatchObject({ maxError: 0, maxValue: 8191 });
    expect(fs.readFileSync(inFolder('y.out')).equals(Buffer.from(y.buffer))).toBe(true);
    y[77] = -1;
    fs.writeFileSync(inFolder('y.bin'), y);
    const wrong = await run(args);
    const differs = JSON.parse(wrong.stdout).outputs.find(
      ({ name }: { name: string }) => name === 'y',
    );
    expect(differs.maxError).toBeGreaterThan(0);
    expect(wrong.code).toBe(7);
  }, 300_000);

  it.each<[string, (params: Record<string, unknown>[]) => unknown, RegExp]>([
    ['a struct of another size', (params) => params.slice(1), /parameter struct of 16 bytes/],
    [
      'a type that is none',
      (params) => [{ name: 'x', buffer: 'f8', elems: 4 }, ...params],
      /f8|one of/,
    ],
    ['no array', () => ({}), /must be an array/],
    ...(
      [
        ['a fill that is no file', { fill: 'indx' }, /zero, none, normal, index or a file/],
        ['a fill that is no text', { fill: 5 }, /"fill" of x must be .* got 5/],
        ['a fill of another size', { fill: 'wrong.json' }, /x has 32768 bytes, not \d+/],
        ['an absent file to expect', { expect: 'absent.bin' }, /absent.bin" must exist/],
        ['a file to expect of another size', { expect: 'wrong.json' }, /x has 32768 bytes, not/],
        ['a file to save in no folder', { save: 'no/y' }, /the folder of ".*no.y" does not exist/],
        ['a mistyped field', { exect: 'y.bin' }, /got "exect" \(did you mean expect\?\)/],
        ['a tolerance that is no number', { tolerance: '1' }, /"tolerance" of x must be a number/],
        ['a seed that is none', { seed: -1 }, /"seed" of x must be an integer of at least 0/],
        ['more than a file holds', { elems: 2 ** 30 }, /from 1 to 536870911/],
      ] as const
    ).map(
      ([name, fields, message]) =>
        [
          name,
          ([x, ...others]: Record<string, unknown>[]) => [{ ...x, ...fields }, ...others],
          message,
        ] as [string, (params: Record<string, unknown>[]) => unknown, RegExp],
    ),
    ...(
      [
        [{ u32: -1 }, /n must be an integer from 0 to 4294967295 \(u32\), got -1/],
        [{ u32: 1.5 }, /got 1.5/],
        [{ i8: 128 }, /from -128 to 127 \(i8\), got 128/],
        [{ u64: 1e30 }, /from 0 to 18446744073709551615 \(u64\)/],
        [{ u32: 1, u8: 1 }, /n takes name, u8, got "u32"/],
      ] as const
    ).map(
      ([fields, message]) =>
        [
          `a number that does not fit: ${JSON.stringify(fields)}`,
          (params: Record<string, unknown>[]) => [...params, { name: 'n', ...fields }],
          message,
        ] as [string, (params: Record<string, unknown>[]) => unknown, RegExp],
    ),
  ])(
    'refuses parameters: %s',
    async (_, change, message) => {
      const params = JSON.parse(fs.readFileSync(example('params.json'), 'utf8'));
      fs.writeFileSync(inFolder('wrong.json'), JSON.stringify(change(params)));
      const args = transpose(example('transpose.cu'), 'transpose_kernel', '4096').map((arg) =>
        arg === example('params.json') ? inFolder('wrong.json') : arg,
      );
      const { code, stdout, stderr } = await run(args);
      expect(code).not.toBe(0);
      expect(stdout + stderr).toMatch(message);
    },
    300_000,
  );
});
