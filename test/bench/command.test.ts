/** `lowrank bench` as a user runs it, at sizes of no meaning. */

import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { type BenchResult, kResultFormat } from '../../lib/bench/result.js';
import { requireBuilt, run, start } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';
import { sampleResult } from './sample-result.js';

const folder = temporaryFolder();
const inFolder = (name: string) => path.join(folder, name);
const kQuick = ['--repeats', '3', '--trials', '1', '--seconds', '0.2'];

beforeAll(() => {
  requireBuilt();
});

const linux = process.platform === 'linux';
if (!linux) console.warn('skipped, what a signal leaves behind: processes are read from /proc');

describe('lowrank bench', () => {
  it('measures every op and peer of its own, in a table and in a file', async () => {
    const file = inFolder('run.json');
    const sizes = ['--op', 'all', '--shape', '16x40x24', '--rank', '4', '--peers', 'unfused,base'];
    const { code, stdout, stderr } = await run(['bench', ...sizes, ...kQuick, '--save', file]);
    expect(code, stderr).toBe(0);
    expect(stdout).toMatch(/loraBackward M=16 K=40 N=24 r=4 nf4 f32 cpu, \d+ threads?; one weight/);
    expect(stdout).toContain('base: there is no adapter');
    const result = JSON.parse(fs.readFileSync(file, 'utf8')) as BenchResult;
    expect(result.format).toBe(kResultFormat);
    expect(result.runner).toMatch(/^benchmark \d/);
    expect(result.machine.cores).toBeGreaterThan(0);
    expect(result.cases.map(({ rows }) => rows.map(({ subject }) => subject))).toEqual([
      ['lowrank', 'unfused'],
      ['lowrank', 'unfused', 'base'],
      ['lowrank', 'unfused', 'base'],
      ['lowrank', 'unfused', 'base'],
    ]);
    for (const row of result.cases.flatMap(({ rows }) => rows)) {
      expect(row.p10_ms).toBeLessThanOrEqual(row.p90_ms);
      expect(row.interval_ms[0]).toBeLessThanOrEqual(row.median_ms);
      expect(row.samples).toBeGreaterThanOrEqual(3);
      expect(row.gflops).toBeGreaterThan(0);
      // Both quantise to four bits; what has no result of its own is not compared.
      if (row.subject === 'lowrank') expect(row.error).toBeLessThan(0.2);
    }
    if (typeof result.roofline !== 'string') {
      expect(Object.values(result.roofline)[0]?.f32).toBeGreaterThan(1);
    }
  });

  it('goes over lists, with stdout left to the JSON', async () => {
    const lists = [
      '--model',
      'bundled:q',
      '--m',
      '1,9',
      '--dtype',
      'bf16',
      '--format',
      'int8,none',
    ];
    const { code, stdout, stderr } = await run([
      'bench',
      ...[
        ...lists,
        '--op',
        'matmul',
        '--threads',
        '1',
        '--peers',
        'none',
        '--json',
        '--no-roofline',
      ],
      ...kQuick,
    ]);
    expect(code, stderr).toBe(0);
    const { cases } = JSON.parse(stdout) as BenchResult;
    expect(cases.map(({ name }) => name)).toEqual([
      'matmul bundled q M=1 K=192 N=192 int8 bf16 cpu, 1 thread',
      'matmul bundled q M=9 K=192 N=192 int8 bf16 cpu, 1 thread',
      'matmul bundled q M=1 K=192 N=192 none bf16 cpu, 1 thread',
      'matmul bundled q M=9 K=192 N=192 none bf16 cpu, 1 thread',
    ]);
    for (const { rows } of cases) expect(rows[0]?.error).toBeLessThan(0.02);
  });

  it('takes int4 with zero-points, and without them where rows are not whole blocks', async () => {
    const { code, stdout, stderr } = await run([
      'bench',
      ...['--op', 'matmul,loraForward', '--shape', '9x192x64', '--shape', '9x172x64'],
      ...['--format', 'int4', '--threads', '1', '--peers', 'none', '--json', '--no-roofline'],
      ...kQuick,
    ]);
    expect(code, stderr).toBe(0);
    const { cases } = JSON.parse(stdout) as BenchResult;
    expect(cases.map(({ name }) => name)).toEqual([
      expect.stringMatching(/^matmul .*K=192 .*int4/),
      expect.stringMatching(/^matmul .*K=172 .*int4/),
      expect.stringMatching(/^loraForward .*K=192 .*int4/),
      expect.stringMatching(/^loraForward .*K=172 .*int4/),
    ]);
    // Of the weight in full; four bits are no closer.
    for (const { rows } of cases) expect(rows[0]?.error).toBeLessThan(0.2);
  });

  it('takes TensorFlow.js along, which this repository has', async () => {
    const args = ['bench', '--op', 'loraForward,loraBackward', '--shape', '8x24x16'];
    const { stdout } = await run([
      ...args,
      '--peers',
      'tfjs',
      '--json',
      '--no-roofline',
      ...kQuick,
    ]);
    const { cases } = JSON.parse(stdout) as BenchResult;
    for (const { rows } of cases) {
      expect(rows.map(({ subject }) => subject)).toEqual(['lowrank', 'tfjs']);
      expect(rows[1]?.error).toBeLessThan(1e-5);
    }
  });

  it('makes a page and a figure of a saved run, and refuses another file', async () => {
    fs.writeFileSync(inFolder('saved.json'), JSON.stringify(sampleResult()));
    const out = ['--report', inFolder('page.html'), '--figure', inFolder('figure.svg')];
    const { code, stdout, stderr } = await run(['bench', '--from', inFolder('saved.json'), ...out]);
    expect(code, stderr).toBe(0);
    expect(stdout).toContain('1305 of 1395 samples clean');
    expect(fs.readFileSync(inFolder('page.html'), 'utf8')).toContain('<h2>Numbers</h2>');
    expect(fs.readFileSync(inFolder('figure.svg'), 'utf8')).toContain('Roofline');
    fs.writeFileSync(inFolder('other.json'), '{"format": "lowrank bench 1"}');
    const other = await run(['bench', '--from', inFolder('other.json')]);
    expect([other.code, other.stderr]).toEqual([3, expect.stringContaining('got lowrank bench 1')]);
    expect((await run(['bench', '--from', inFolder('none.json')])).code).toBe(3);
    // Before anything is measured.
    const taken = await run(['bench', '--save', folder]);
    expect([taken.code, taken.stderr]).toEqual([3, expect.stringContaining('got a folder')]);
    const nowhere = await run(['bench', '--report', inFolder('no/folder/page.html')]);
    expect([nowhere.code, nowhere.stderr]).toEqual([3, expect.stringContaining('no/folder')]);
  });

  it.skipIf(!linux).each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)(
    'leaves no process and no file behind on %s',
    async (signal, expected) => {
      const temporary = inFolder(signal);
      fs.mkdirSync(temporary);
      const many = ['--repeats', '90000', '--trials', '1', '--seconds', '900', '--no-roofline'];
      const job = ['--op', 'loraForward', '--shape', '2x16x8', '--peers', 'unfused,base,openblas'];
      const { child, finished } = start(['bench', ...job, ...many], {
        wrap: `export TMPDIR='${temporary}'; exec "$@"`,
      });
      const pid = String(child.pid);
      await sleep(300); // the shell has become the command
      const statOf = (id: string) => {
        try {
          const text = fs.readFileSync(`/proc/${id}/stat`, 'utf8');
          return text.replace(/^.*\) /, '').split(' '); // state, parent, ...
        } catch {
          return [];
        }
      };
      const children = () => fs.readdirSync('/proc').filter((id) => statOf(id)[1] === pid);
      const stopped = () => children().filter((id) => statOf(id)[0] === 'T');
      for (let i = 0; i < 600 && stopped().length < 2; i++) await sleep(100);
      const all = children();
      expect(stopped().length).toBeGreaterThanOrEqual(2);
      child.kill(signal);
      expect((await finished).code).toBe(expected);
      for (let i = 0; i < 50 && all.some((id) => statOf(id).length > 0); i++) await sleep(100);
      expect(all.filter((id) => statOf(id).length > 0)).toEqual([]);
      expect(fs.readdirSync(temporary)).toEqual([]);
    },
    120_000,
  );

  it('names what a saved run lacks', async () => {
    const saved = () => JSON.parse(JSON.stringify(sampleResult()));
    const broken: [string, (run: ReturnType<typeof saved>) => unknown, string][] = [
      ['machine', (run) => delete run.machine, 'machine must be an object, got nothing'],
      ['cases', (run) => delete run.cases, 'cases must be a list, got nothing'],
      ['case', (run) => run.cases.push(null), 'must be an object, got null'],
      ['rows', (run) => delete run.cases[1].rows, 'cases[1].rows must be a list, got nothing'],
      [
        'median',
        (run) => {
          run.cases[0].rows[1].median_ms = 'x';
        },
        'cases[0].rows[1].median_ms must be a number, got "x"',
      ],
      [
        'roofline',
        (run) => {
          run.roofline = { 1: { f32: 1 } };
        },
        'roofline."1".read must be a number, got nothing',
      ],
    ];
    fs.writeFileSync(inFolder('whole.json'), JSON.stringify(saved()));
    for (const [name, change, message] of broken) {
      const run_ = saved();
      change(run_);
      const file = inFolder(`${name}.json`);
      fs.writeFileSync(file, JSON.stringify(run_));
      for (const args of [
        ['--from', file],
        ['--compare', inFolder('whole.json'), file],
      ]) {
        const { code, stderr } = await run(['bench', ...args]);
        expect(stderr).toContain(message);
        expect(code).toBe(3);
      }
    }
  });

  it('shows what was measured before it says that no file can be made of it', async () => {
    const one = ['--op', 'matmul', '--shape', '2x16x8', '--peers', 'none', '--no-roofline'];
    const figure = ['--figure', inFolder('none.svg')];
    const { code, stdout, stderr } = await run(['bench', ...one, ...kQuick, ...figure]);
    expect(code).toBe(2);
    expect(stderr).toContain('--figure must be for a run with several M');
    expect(stdout).toMatch(/^ {2}lowrank /m);
  });

  it('compares two saved runs', async () => {
    const slower = sampleResult(({ subject }) => (subject === 'lowrank' ? 1.5 : 1));
    fs.writeFileSync(inFolder('a.json'), JSON.stringify(sampleResult()));
    fs.writeFileSync(inFolder('b.json'), JSON.stringify(slower));
    const files = ['--compare', inFolder('a.json'), inFolder('b.json')];
    const { code, stdout } = await run(['bench', ...files]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^slower {2}\+50\.0 %/m);
    const json = JSON.parse((await run(['bench', ...files, '--json'])).stdout);
    expect(
      json.changes.filter((row: { verdict: string }) => row.verdict === 'slower'),
    ).toHaveLength(12);
    const one = await run(['bench', '--compare', inFolder('a.json')]);
    expect([one.code, one.stderr]).toEqual([2, expect.stringContaining('takes two files')]);
  });

  it('leaves out what has not begun by the limit', async () => {
    const lists = ['--model', 'bundled:q', '--m', '1,2', '--op', 'matmul', '--peers', 'none'];
    const { code, stdout } = await run(['bench', ...lists, '--limit', '0.001', '--no-roofline']);
    expect(code).toBe(0);
    expect(stdout).toMatch(/2 jobs left out after 0.001 s/);
  });

  it('says what an option takes', async () => {
    const wrong: [string[], string][] = [
      [['--shape', '4x4'], 'MxKxN'],
      [['--model', 'gpt-5'], 'Llama-3.2-1B'],
      [['--m', '1,0'], 'a list of integers from 1'],
      [['--peers', 'jax'], 'unfused, base'],
      [['--dtype', 'f8'], 'f32, bf16, f16'],
      [['--device', 'tpu'], 'reference'],
      [['--seconds', '0'], 'a number above 0'],
      [['--shape', '4x4x4', '--m', '1,2'], '--m goes with --model, got --shape'],
      [
        ['--from', 'a.json', '--repeats', '9'],
        '--from goes only with --json, --save, --report, --figure',
      ],
      [['--compare', 'a', 'b', '--report', 'c'], '--compare goes only with --json, got --report'],
    ];
    const absent = await run(['bench', '--device', 'cpu,cuda:63']);
    expect(absent.stderr).toMatch(/--device must be one that is here, .*got "cuda:63"/);
    expect(absent.code).toBe(4);
    const results = await Promise.all(wrong.map(([args]) => run(['bench', ...args])));
    results.forEach(({ code, stderr }, i) => {
      expect(stderr).toContain(wrong[i]?.[1]);
      expect(code).toBe(2);
    });
  });
});
