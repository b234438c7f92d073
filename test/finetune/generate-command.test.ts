/** `lowrank generate`, and what `lowrank finetune` says of a run before it starts. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { requireBuilt, run, start } from './command.js';
import { temporaryFolder } from './setup.js';
import { writeTinyCheckpoint } from './tiny-checkpoint.js';

const folder = temporaryFolder();
const inFolder = (name: string) => path.join(folder, name);
const model = ['--model', inFolder('model')];
const text = (...more: string[]) => run(['generate', ...model, '--prompt', 'To be', ...more]);
const json = async (...more: string[]) => JSON.parse((await text('--json', ...more)).stdout);

beforeAll(async () => {
  requireBuilt();
  writeTinyCheckpoint(inFolder('model'));
  const line = (i: number) => `Document ${i} says that ${i} times ${i} is ${i * i}.`;
  fs.writeFileSync(inFolder('text'), Array.from({ length: 40 }, (_, i) => line(i)).join('\n\n'));
  const sizes = ['--steps', '8', '--seq-len', '16', '--batch', '2', '--lr', '0.05'];
  const quick = ['--no-compare', '--no-report', '--sample-tokens', '0', '--eval-every', '0'];
  const data = ['--data', inFolder('text'), '--out', inFolder('adapter')];
  const made = await run(['finetune', ...model, ...data, ...sizes, ...quick]);
  expect(made.code, made.stderr).toBe(0);
});

describe('lowrank generate', () => {
  it('continues the prompt as it goes, the same for the same seed', async () => {
    const first = await text('--tokens', '12', '--top-k', '40', '--top-p', '0.95');
    expect(first.code, first.stderr).toBe(0);
    expect(first.stdout.startsWith('To be')).toBe(true);
    expect(first.stdout.length).toBeGreaterThan('To be'.length + 1);
    expect(first.stderr).toMatch(/\d+ tokens, [\d.]+ tokens\/s/);
    const again = await text('--tokens', '12', '--top-k', '40', '--top-p', '0.95');
    expect(again.stdout).toBe(first.stdout);
    const other = await text('--tokens', '12', '--top-k', '40', '--top-p', '0.95', '--seed', '2');
    expect(other.stdout).not.toBe(first.stdout);
  });

  it('gives one JSON object with --json, and follows the adapter', async () => {
    const plain = await json('--tokens', '12', '--temperature', '0');
    expect(Object.keys(plain)).toEqual(['prompt', 'text', 'ids', 'seconds', 'tokensPerSecond']);
    const adapted = await json(
      ...['--tokens', '12', '--temperature', '0', '--adapter', inFolder('adapter')],
    );
    expect(adapted.ids).not.toEqual(plain.ids);
  });

  it('takes formats, dtypes and devices', async () => {
    for (const more of [
      ['--format', 'nf4', '--dtype', 'f32'],
      ['--format', 'int8', '--dtype', 'bf16'],
      ['--dtype', 'f32', '--device', 'reference'],
    ]) {
      const { ids } = await json('--tokens', '3', ...more);
      expect(ids.length, more.join(' ')).toBeLessThanOrEqual(3);
    }
  });

  it('ends at Ctrl-C with what it has', async () => {
    const running = start(['generate', ...model, '--prompt', 'To be', '--tokens', '100000']);
    await new Promise((resolve) => running.child.stdout?.once('data', resolve));
    running.child.kill('SIGINT');
    expect((await running.finished).code).toBe(130);
  });

  it.each<[string, string[], number, RegExp]>([
    ['no prompt', ['generate', ...model], 2, /--prompt must be given/],
    [
      'a share of 0',
      ['generate', '--prompt', 'a', '--top-p', '0'],
      2,
      /--top-p must be in \(0, 1\]/,
    ],
    [
      'an adapter of another model',
      ['generate', '--prompt', 'a', '--adapter', inFolder('adapter')],
      3,
      /./,
    ],
    ['no adapter', ['generate', ...model, '--prompt', 'a', '--adapter', inFolder('text')], 3, /./],
  ])('rejects %s', async (_, args, code, message) => {
    const found = await run(args);
    expect(found.stderr).toMatch(message);
    expect(found.stderr).not.toMatch(/\n {4}at /);
    expect(found.code, found.stderr).toBe(code);
    expect(found.stdout).toBe('');
  });
});

describe('lowrank finetune --dry-run', () => {
  const dry = (...more: string[]) =>
    run(['finetune', ...model, '--seq-len', '16', '--dry-run', ...more]);

  it('adds up the memory of the run, and does nothing', async () => {
    const before = fs.readdirSync(folder);
    const { code, stdout } = await dry('--data', 'nowhere.txt');
    expect(code).toBe(0);
    expect(stdout).toMatch(/architecture +llama\n/);
    expect(stdout).toMatch(/together +[\d.]+ MiB +fits\n/);
    const { memory } = JSON.parse((await dry('--json')).stdout);
    const { total, ...parts } = memory;
    expect(Object.values(parts as Record<string, number>).reduce((a, b) => a + b)).toBe(total);
    const less = JSON.parse((await dry('--json', '--recompute', '--batch', '64')).stdout);
    const more = JSON.parse((await dry('--json', '--batch', '64')).stdout);
    expect(less.memory.activations).toBeLessThan(more.memory.activations);
    expect(fs.readdirSync(folder)).toEqual(before);
  });

  it('says what would make a run fit, and the run itself is rejected with that', async () => {
    const wide = inFolder('wide');
    writeTinyCheckpoint(wide, { intermediateSize: 8192 });
    const huge = ['--model', wide, '--batch', '65536', '--accumulate', '2', '--seq-len', '16'];
    const planned = await run(['finetune', '--dry-run', ...huge]);
    expect(planned.stdout).toMatch(/together .* does NOT fit\n/);
    expect(planned.stdout).toMatch(/Try --batch 1 --accumulate 131072\n/);
    expect(planned.code).not.toBe(0);
    const args = ['--data', inFolder('text'), '--out', inFolder('never'), '--no-report'];
    const { code, stderr } = await run(['finetune', ...args, ...huge]);
    expect(stderr).toMatch(/must fit into the device's [\d.]+ GiB, got one of [\d.]+ GiB .*Try --/);
    expect(code).toBe(planned.code);
    expect(fs.existsSync(inFolder('never'))).toBe(false);
  });
});
