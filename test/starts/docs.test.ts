// docs/training/starts.md: its examples run, and its table has every start with its settings.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { startMethods } from '../../lib/index.js';
import { requireBuilt } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';

const root = path.join(import.meta.dirname, '..', '..');
const page = fs.readFileSync(path.join(root, 'docs', 'training', 'starts.md'), 'utf8');
const blocks = [...page.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code = '']) => code);

beforeAll(requireBuilt);

describe('docs/training/starts.md', () => {
  it('begins with an example that runs', () => {
    const entry = pathToFileURL(path.join(root, 'dist', 'index.js')).href;
    const file = path.join(temporaryFolder(), 'example.mjs');
    fs.writeFileSync(file, (blocks[0] as string).replace(/'lowrank'/, JSON.stringify(entry)));
    execFileSync(process.execPath, [file]);
  });

  it('has a start of one’s own in less than 25 lines, that of the example', () => {
    const own = blocks[1] as string;
    expect(own.split('\n').length).toBeLessThan(25);
    const file = path.join(root, 'examples', 'own-start', 'orthonormal-rows.ts');
    expect(fs.readFileSync(file, 'utf8')).toContain(own);
  });

  it('lists every start with its settings and its paper', () => {
    const rows = page.split('\n').filter((line) => /^\| `/.test(line));
    for (const { start, defaults, reference, adapters: fits } of startMethods) {
      const row = rows.find((line) => (line.split('|')[1] ?? '').includes(`\`${start}\``)) ?? '';
      expect(row, start).not.toBe('');
      for (const name of Object.keys(defaults as object))
        expect(row, start).toContain(`\`${name}\``);
      if (fits?.[0] === start) continue;
      expect(row, start).toContain(/arXiv:(\d+\.\d+)/.exec(reference)?.[1]);
    }
  });
});
