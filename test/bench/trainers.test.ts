/** `lowrank bench --trainer`: steps in turns, what is made of them, and the command at sizes of no meaning. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { alternate } from '../../lib/bench/trainers/alternate.js';
import { kTrainers } from '../../lib/bench/trainers/index.js';
import { runProgram } from '../../lib/bench/trainers/program.js';
import {
  kTrainerFormat,
  lossDifference,
  runTrainers,
  type TrainerResult,
  trainersText,
} from '../../lib/bench/trainers/run.js';
import type { Trainer, TrainerPlan, TrainerTimes } from '../../lib/bench/trainers/trainer.js';
import { Progress } from '../../lib/report/terminal.js';
import { requireBuilt, run } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';

const plan = (repeats: number, seconds = 60): TrainerPlan => ({ repeats, seconds, onStep() {} });
const bytes = { without: 8, with: 1 };

describe('steps in turns', () => {
  it('begin with each side alternately, and the first two rounds do not count', async () => {
    const order: string[] = [];
    const side = (name: string) => async () => {
      order.push(name);
      return order.length;
    };
    const times = await alternate(plan(3), { without: side('a'), with: side('b') }, bytes);
    expect(order.join('')).toBe('abbaabbaab');
    expect(times.without.losses).toEqual([1, 4, 5, 8, 9]);
    expect(times.without.samples_ms?.length).toBe(3);
    expect([times.without.base_bytes, times.with.base_bytes]).toEqual([8, 1]);
  });

  it('end after their time, with three steps of each side', async () => {
    const step = async () => 1;
    const times = await alternate(plan(100, 0), { without: step, with: step }, bytes);
    expect(times.with.samples_ms?.length).toBe(3);
  });
});

describe('the difference of losses', () => {
  it('is the largest one of a step, relative to the other side', () => {
    expect(lossDifference([2, 4, 1], [2, 4.4, 1.05])).toBeCloseTo(0.1, 12);
    expect(lossDifference([1, 2], [1, 2])).toBe(0);
  });

  it('is not a number if a side stopped, or has none', () => {
    expect(lossDifference([1, 2], [1])).toBeNaN();
    expect(lossDifference([], [])).toBeNaN();
    expect(lossDifference([1, Number.NaN], [1, 2])).toBeNaN();
  });
});

describe('a run', () => {
  const times: TrainerTimes = {
    without: { min_ms: 8, median_ms: 10, losses: [2, 1], base_bytes: 8 << 20 },
    with: { min_ms: 2, median_ms: 4, losses: [2, 1.25], base_bytes: 1 << 20 },
  };
  const found: Trainer = {
    name: 'found',
    find: () => ({ version: '1.2' }),
    cases: () => [
      { name: 'good', lines: 3, run: async () => times },
      {
        name: 'bad',
        lines: 1,
        run: async () => {
          throw new Error('no memory\u001b[2J');
        },
      },
    ],
  };
  const absent: Trainer = {
    name: 'absent',
    find: () => ({ missing: 'npm i it' }),
    cases: () => [],
  };

  it('has a row for each case, and names what failed and what is not installed', async () => {
    const options = { repeats: 2, seconds: 1, tiny: true };
    const result = await runTrainers([found, absent], options, 'bench', new Progress(true));
    expect(result.rows[0]).toMatchObject({ lines: 3, speedup: 2.5, loss_difference: 0.25 });
    expect(result.rows[1]).toMatchObject({ case: 'bad', failed: 'no memory\u001b[2J' });
    expect(result.missing).toEqual([{ trainer: 'absent', install: 'npm i it' }]);
    const text = trainersText(result);
    expect(text).toMatch(
      /found 1\.2: good +3 +2\.5e-1 +10\.0 ms +4\.00 ms +2\.50 x +8\.00 MiB -> 1\.00 MiB/,
    );
    expect(text).toContain('found: bad failed: no memory');
    expect(text).not.toContain('\u001b');
    expect(text).toContain('absent: not installed; get it by npm i it');
  });
});

describe('a program', () => {
  const node = (code: string) => runProgram({ command: process.execPath, args: ['-e', code] });

  it('gives what it prints last', async () => {
    expect(await node("console.log('hello'); console.log('{\"a\": 1}')")).toEqual({ a: 1 });
  });

  it('that fails or prints something else says so', async () => {
    await expect(node("throw new Error('mine')")).rejects.toMatchObject({ code: 'ERR_COMPUTE' });
    await expect(node("console.log('hello')")).rejects.toThrow('must print JSON, got "hello"');
    await expect(runProgram({ command: '/no/such', args: [] })).rejects.toThrow('ENOENT');
  });
});

describe('the command', () => {
  beforeAll(() => {
    requireBuilt();
  });

  it('measures the trainers that are installed', async () => {
    const file = path.join(temporaryFolder(), 'trainers.json');
    const names = 'jax,tfjs-layers,nanogpt';
    const options = ['--tiny', '--repeats', '1', '--json', '--save', file];
    const { code, stdout, stderr } = await run(['bench', '--trainer', names, ...options]);
    expect(code, stderr).toBe(0);
    const result = JSON.parse(stdout) as TrainerResult;
    expect(JSON.parse(fs.readFileSync(file, 'utf8'))).toEqual(result);
    expect(result.format).toBe(kTrainerFormat);
    const here = [...result.rows, ...result.missing].map(({ trainer }) => trainer);
    expect([...new Set(here)].sort()).toEqual(['jax', 'nanogpt', 'tfjs-layers']);
    const installed = result.rows.filter(({ trainer }) => trainer !== 'nanogpt');
    expect(installed.length).toBe(8);
    for (const row of installed) {
      expect(row.failed, row.case).toBeUndefined();
      expect(row.loss_difference, row.case).toBeLessThan(1e-6);
      expect(row.without?.losses.length).toBe(3);
      expect(row.lines).toBeLessThan(6);
    }
    const nf4 = installed.find((row) => row.case.includes('nf4'));
    expect((nf4?.with?.base_bytes ?? 1) / (nf4?.without?.base_bytes ?? 1)).toBeLessThan(0.15);
  });

  it('rejects names that it does not know, and options that it does not read', async () => {
    const unknown = await run(['bench', '--trainer', 'jax,jaxx']);
    expect([unknown.code, unknown.stderr]).toEqual([
      2,
      expect.stringContaining(`all or a list of ${kTrainers.map(({ name }) => name).join(', ')}`),
    ]);
    const stray = await run(['bench', '--trainer', 'jax', '--op', 'lora']);
    expect([stray.code, stray.stderr]).toEqual([2, expect.stringContaining('got --op')]);
    const alone = await run(['bench', '--tiny']);
    expect([alone.code, alone.stderr]).toEqual([2, expect.stringContaining('--trainer')]);
  });
});
