/** The README's example, run as it stands against the built package. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { transform } from 'esbuild';
import { expect, it } from 'vitest';

const root = resolve(import.meta.dirname, '..', '..');

it('the example of the README runs, and its loss falls', async () => {
  const readme = readFileSync(join(root, 'README.md'), 'utf8');
  const example = /```ts\n([\s\S]*?)```/.exec(readme)?.[1] ?? '';
  expect(example.trimEnd().split('\n').length).toBeLessThanOrEqual(12);
  expect(readme.split('\n').length).toBeLessThan(120);
  const { code } = await transform(example, { loader: 'ts', format: 'esm', target: 'node20' });
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-readme-'));
  try {
    const file = join(folder, 'example.mjs');
    const entry = pathToFileURL(join(root, 'dist', 'index.js')).href;
    writeFileSync(file, code.replace(/(['"])lowrank\1/, JSON.stringify(entry)));
    const printed = execFileSync(process.execPath, [file], { encoding: 'utf8' });
    const losses = printed
      .trim()
      .split('\n')
      .map((line) => Number(line.split(' ')[1]));
    expect(losses.length).toBe(5);
    expect(losses[4]).toBeLessThan((losses[0] ?? 0) * 0.6);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
