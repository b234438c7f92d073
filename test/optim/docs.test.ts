// docs/training/optimizers.md: its example runs, and its tables have every optimiser with its settings.
import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { optimizerList } from '../../lib/index.js';
import { requireBuilt, run } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';
import { writeTinyCheckpoint } from '../finetune/tiny-checkpoint.js';

const root = path.join(import.meta.dirname, '..', '..');
const page = fs.readFileSync(path.join(root, 'docs', 'training', 'optimizers.md'), 'utf8');
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

describe('docs/training/optimizers.md', () => {
  it('lists every optimiser with its settings and its paper', () => {
    const rows = page.split('\n').filter((line) => /^\| `/.test(line));
    for (const { optimizer, defaults, reference, rate = 1 } of optimizerList) {
      if (optimizer.endsWith('-8bit')) {
        expect(page).toContain(`\`${optimizer}\``);
        continue;
      }
      const row = rows.find((line) => line.startsWith(`| \`${optimizer}\``)) ?? '';
      expect(row, optimizer).not.toBe('');
      const dense = ['galore', 'flora'].includes(optimizer);
      const arxiv = /arXiv:(\S+)$/.exec(reference)?.[1];
      if (arxiv !== undefined) expect(dense ? page : row, optimizer).toContain(arxiv);
      const own = ['beta1', 'beta2', 'eps'];
      const settings = Object.keys(defaults as object);
      const adam = own.every((name) => settings.includes(name)) && / AdamW/.test(row);
      for (const name of settings) {
        if (optimizer === 'riemannian-sgd' && name === 'nesterov') continue;
        if (!(adam && own.includes(name))) expect(row, optimizer).toContain(`\`${name}\``);
      }
      const base = optimizer === 'riemannian-sgd';
      if (!dense && !base) expect(row, optimizer).toContain(`| ${rate} |`);
    }
  });

  it('has an optimiser of one’s own in less than 25 lines, which runs', async () => {
    const file = path.join('examples', 'own-optimizer', 'sign-up.ts');
    const source = fs.readFileSync(path.join(root, file), 'utf8');
    const own = blocks[1] as string;
    expect(own.split('\n').length).toBeLessThan(25);
    expect(source).toContain(own);
    const done = await train('--optimizer', path.join(root, file), '--set', 'ratio=8');
    expect([done.code, done.stderr]).toEqual([0, '']);
    const { run: facts } = JSON.parse(done.stdout) as { run: Record<string, string> };
    expect(facts.updates).toContain('sign-up, ratio 8');
    const refused = await train('--optimizer', path.join(root, file), '--set', 'ratio=0');
    expect(refused.code).toBe(2);
    expect(refused.stderr).toContain('ratio must be above 0, got 0');
  });

  it.each<[string, string[], string]>([
    [
      'a name that is not one',
      ['--optimizer', 'lora-pluss'],
      'or a file, got "lora-pluss" (did you mean lora-plus?)',
    ],
    [
      'a setting of neither',
      ['--optimizer', 'lora-plus', '--set', 'ration=2'],
      'or of the optimizer lora-plus (beta1, beta2, eps, ratio)',
    ],
    [
      'a value of another type',
      ['--optimizer', 'sgd', '--set', 'nesterov=2'],
      '--set must be nesterov=<boolean>',
    ],
    [
      'a value out of range',
      ['--optimizer', 'lion', '--set', 'beta2=1'],
      'beta2 must be in [0, 1), got 1',
    ],
    [
      'a setting that both have',
      ['--optimizer', 'schedule-free', '--set', 'r=1'],
      'adapter.r=VALUE or optimizer.r=VALUE (both have this setting)',
    ],
    [
      'a file that is none',
      ['--optimizer', path.join(root, 'examples', 'own-merge', 'median.ts')],
      'must be what defineOptimizer returns',
    ],
  ])('the command rejects %s', async (_, more, message) => {
    const done = await train(...more);
    expect(done.stderr).toContain(message);
    expect(done.code).toBeGreaterThan(0);
    expect(fs.existsSync(path.join(folder, 'out.checkpoint'))).toBe(false);
  });
});
