// docs/training/rules.md: its example runs, its table has every rule with its settings, and the command refuses what does not fit.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import type { FinetuneOptions } from '../../lib/finetune/finetune-files.js';
import { identityOf } from '../../lib/finetune/run-identity.js';
import { type AnyRule, type ChosenRule, ruleList } from '../../lib/index.js';
import { requireBuilt, run } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';
import { writeTinyCheckpoint } from '../finetune/tiny-checkpoint.js';

const root = path.join(import.meta.dirname, '..', '..');
const page = fs.readFileSync(path.join(root, 'docs', 'training', 'rules.md'), 'utf8');
const blocks = [...page.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code = '']) => code);

let folder: string;
const train = (...more: string[]) =>
  run([
    ...['finetune', '--model', path.join(folder, 'model'), '--data', path.join(folder, 'text.txt')],
    ...['--out', path.join(folder, 'out'), '--steps', '3', '--seq-len', '16', '--rank', '2'],
    ...['--sample-tokens', '0', '--no-compare', '--no-report', '--json', ...more],
  ]);

beforeAll(() => {
  requireBuilt();
  folder = temporaryFolder();
  writeTinyCheckpoint(path.join(folder, 'model'));
  const line = (i: number) => `Document ${i} says that ${i} times ${i} is ${i * i}.`;
  const text = Array.from({ length: 40 }, (_, i) => line(i)).join('\n\n');
  fs.writeFileSync(path.join(folder, 'text.txt'), text);
});

describe('docs/training/rules.md', () => {
  it('lists every rule with its settings, what it takes, and its paper', () => {
    const rows = page.split('\n').filter((line) => /^\| `/.test(line));
    for (const { rule, defaults, reference, adapters, claims } of ruleList) {
      const row = rows.find((line) => line.startsWith(`| \`${rule}\``)) ?? '';
      expect(row, rule).not.toBe('');
      for (const name of Object.keys(defaults as object))
        expect(row, rule).toContain(`\`${name}\``);
      for (const name of adapters ?? []) expect(row, rule).toContain(`\`${name}\``);
      expect(row.split('|')[4]?.trim(), rule).toBe((claims ?? []).join(', '));
      expect(row, rule).toContain(/arXiv:(\d+\.\d+)/.exec(reference)?.[1] ?? reference);
    }
  });

  it('has a rule of one’s own in less than 25 lines, which runs', async () => {
    const file = path.join('examples', 'own-rule', 'mean-of-steps.ts');
    const own = blocks[1] as string;
    expect(own.split('\n').length).toBeLessThan(25);
    expect(fs.readFileSync(path.join(root, file), 'utf8')).toContain(own);
    const done = await train('--rule', path.join(root, file), '--set', 'from=1');
    expect([done.code, done.stderr]).toEqual([0, '']);
    const { run: facts } = JSON.parse(done.stdout) as { run: Record<string, string> };
    expect(facts.rule).toContain('mean-of-steps');
    const refused = await train('--rule', path.join(root, file), '--set', 'from=-1');
    expect(refused.code).toBe(2);
    expect(refused.stderr).toContain('from must be at least 0, got -1');
  });

  it('has a loop of one’s own that runs', () => {
    const entry = pathToFileURL(path.join(root, 'dist', 'index.js')).href;
    const own = temporaryFolder();
    const loop = (blocks[0] as string)
      .replace("'lowrank'", JSON.stringify(entry))
      .replace("'./model'", JSON.stringify(path.join(folder, 'model')))
      .replace(' as const', '')
      .replace('using trainer', 'const trainer')
      .replace("'./adapter'", JSON.stringify(path.join(own, 'adapter')));
    fs.writeFileSync(path.join(own, 'loop.mjs'), loop);
    const losses = execFileSync(process.execPath, [path.join(own, 'loop.mjs')], {
      encoding: 'utf8',
    });
    const [first = 0, ...others] = losses.trim().split('\n').map(Number);
    expect(others.length).toBe(11);
    expect(others.at(-1)).toBeLessThan(first);
    const config = fs.readFileSync(path.join(own, 'adapter', 'adapter_config.json'), 'utf8');
    expect(JSON.parse(config)).toMatchObject({ r: 24, peft_type: 'LORA' });
  });

  it('the command runs a rule to its folder', async () => {
    const done = await train('--rule', 'relora', '--set', 'every=2', '--set', 'rewarm=1');
    expect([done.code, done.stderr]).toEqual([0, '']);
    const config = fs.readFileSync(path.join(folder, 'out', 'adapter_config.json'), 'utf8');
    expect(JSON.parse(config)).toMatchObject({ r: 4, lora_alpha: 8 });
  });

  it.each<[string, string[], string]>([
    [
      'a name that is not one',
      ['--rule', 'relor'],
      'or a file, got "relor" (did you mean relora?)',
    ],
    [
      'a rule twice',
      ['--rule', 'relora,relora'],
      'rules must be named once each, got relora twice',
    ],
    [
      'two rules that take the same',
      ['--rule', 'relora,cola'],
      'only one rule may take the base, got relora and cola. Leave one of them out',
    ],
    [
      'a setting that two rules have',
      ['--rule', 'relora,dora-dynamic', '--adapter', 'adalora', '--set', 'every=2'],
      'relora.every=VALUE or dora-dynamic.every=VALUE (both have this setting)',
    ],
    [
      'a setting of nothing',
      ['--rule', 'relora', '--set', 'evry=2'],
      'or of the rule relora (every, rewarm, prune)',
    ],
    [
      'a value out of range',
      ['--rule', 'relora', '--set', 'prune=2'],
      'prune must be in [0, 1], got 2',
    ],
    [
      'another adapter',
      ['--rule', 'relora', '--adapter', 'dora'],
      'the adapter must be one of lora, which the rule relora is for, got dora',
    ],
    [
      'a start that replaces the base',
      ['--rule', 'relora', '--init', 'pissa'],
      'the start must be one that leaves the base, because the rule relora merges into the base, got pissa',
    ],
    [
      'an optimizer that evaluates other values',
      ['--rule', 'relora', '--optimizer', 'schedule-free'],
      'the optimizer must be one that evaluates what it trains',
    ],
    [
      'a bias',
      ['--rule', 'relora', '--set', 'loraBias=true'],
      'loraBias must be false, because the rule relora merges into the base, got true',
    ],
    [
      'a file that is none',
      ['--rule', path.join(root, 'examples', 'own-merge', 'median.ts')],
      'must be what defineRule returns',
    ],
  ])('the command rejects %s', async (_, more, message) => {
    const done = await train(...more, '--out', path.join(folder, 'refused'));
    expect(done.stderr).toContain(message);
    expect(done.code).toBeGreaterThan(0);
    expect(fs.existsSync(path.join(folder, 'refused.checkpoint'))).toBe(false);
    expect(fs.existsSync(path.join(folder, 'refused'))).toBe(false);
  });
});

it('a checkpoint belongs to the rules of its run, their settings and the bytes of their files', () => {
  const file = path.join(folder, 'mine.ts');
  fs.writeFileSync(file, 'export default 1;');
  const inputs = { config: {} as never, weights: '', tokenizer: {}, data: {} };
  const identity = (rules: readonly ChosenRule[], ruleFiles = {}) =>
    identityOf(
      {
        format: { format: 'none' },
        adapter: {
          method: { method: 'lora', definition: { defaults: {} } },
          settings: {},
          targets: [],
        },
        train: { rules },
        ruleFiles,
      } as unknown as FinetuneOptions,
      inputs,
    );
  const relora = ruleList.find(({ rule }) => rule === 'relora') as AnyRule;
  const plain = identity([]);
  expect(Object.keys(plain).some((name) => name.includes('rule'))).toBe(false);
  const one = identity([{ rule: relora, settings: { every: 7 } }]);
  expect(one).toMatchObject({ rules: ['relora'], 'relora every': 7, 'relora prune': 0.99 });
  const own = identity([{ rule: relora, settings: {} }], { relora: file });
  fs.writeFileSync(file, 'export default 2;');
  const other = identity([{ rule: relora, settings: {} }], { relora: file });
  const changed = Object.keys(own).filter((name) => own[name] !== other[name] && name !== 'rules');
  expect(changed).toEqual(['--rule relora file (SHA-256)']);
});
