// docs/merging.md: its examples run, and its tables have every rule with its settings.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { mergeMethods, readAdapterFolder } from '../../lib/index.js';
import { tempFolder } from '../checkpoint/raw-file.js';
import { requireBuilt, run } from '../finetune/command.js';

const root = path.join(import.meta.dirname, '..', '..');
const page = fs.readFileSync(path.join(root, 'docs', 'merging.md'), 'utf8');
const blocks = [...page.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code = '']) => code);
const recorded = path.join(root, 'test', 'golden', 'merging', 'linear');

beforeAll(requireBuilt);

/** A folder with the adapters that the examples name. */
function withAdapters(): string {
  const folder = tempFolder();
  for (const [from, to] of [
    ['a', 'chat'],
    ['b', 'code'],
    ['c', 'law'],
  ] as const) {
    fs.cpSync(path.join(recorded, from), path.join(folder, to), { recursive: true });
  }
  return folder;
}

describe('docs/merging.md', () => {
  it('begins with an example that runs, and with the command that does the same', async () => {
    const [example = ''] = blocks;
    expect(example.trim().split('\n').length).toBeLessThan(25);
    const folder = withAdapters();
    const entry = pathToFileURL(path.join(root, 'dist', 'index.js')).href;
    const file = path.join(folder, 'example.mjs');
    fs.writeFileSync(file, example.replace(/'lowrank'/, JSON.stringify(entry)));
    execFileSync(process.execPath, [file], { cwd: folder });
    const byApi = readAdapterFolder(path.join(folder, 'both'));
    fs.rmSync(path.join(folder, 'both'), { recursive: true });
    const [, command = ''] = /```\nlowrank (merge .*)\n```/.exec(page) ?? [];
    const words = command.split(' ').map((word) => word.replace(/^\.\//, `${folder}/`));
    const done = await run(words);
    expect([done.code, done.stderr]).toEqual([0, '']);
    expect(readAdapterFolder(path.join(folder, 'both'))).toEqual(byApi);
  });

  it('has a rule of one’s own in less than 25 lines, which runs', async () => {
    const file = path.join('examples', 'own-merge', 'median.ts');
    const source = fs.readFileSync(path.join(root, file), 'utf8');
    const own = blocks[1] as string;
    expect(own.split('\n').length).toBeLessThan(25);
    expect(source).toContain(own);
    const folder = withAdapters();
    const names = ['chat', 'code', 'law', 'all'].map((name) => path.join(folder, name));
    const done = await run(['merge', ...names, '--by', file, '--set', 'strength=0.5', '--json']);
    expect([done.code, done.stderr]).toEqual([0, '']);
    expect(JSON.parse(done.stdout)).toMatchObject({ by: 'median', settings: { strength: 0.5 } });
    const { tensors } = readAdapterFolder(names[3] as string);
    expect(
      [...tensors.values()].some(({ data }) => data.some((value) => Number(value) !== 0)),
    ).toBe(true);
    const refused = await run([
      'merge',
      ...names.slice(0, 3),
      `${folder}/other`,
      '--by',
      file,
      '--set',
      'strength=0',
    ]);
    expect(refused.code).toBe(2);
    expect(refused.stderr).toContain('strength must be above 0, got 0');
  });

  it('lists every rule with its settings and its paper', () => {
    const rows = page.split('\n').filter((line) => /^\| `/.test(line));
    for (const { merge, defaults, reference } of mergeMethods) {
      const base = merge.replace(/-svd$/, '');
      const row = rows.find((line) => line.includes(`\`${base}\``)) ?? '';
      expect(row, merge).not.toBe('');
      if (merge.endsWith('-svd')) expect(row, merge).toContain('-svd');
      const arxiv = /arXiv:(\S+)$/.exec(reference)?.[1] ?? 'PEFT';
      expect(row, merge).toContain(arxiv);
      const known = merge.endsWith('-svd') ? ['rank', 'clamp'] : [];
      for (const name of Object.keys(defaults as object)) {
        if (!known.includes(name)) expect(row, merge).toContain(`\`${name}\``);
      }
    }
  });
});
