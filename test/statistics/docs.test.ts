// docs/training/statistics.md: its example runs, and it names what can be observed.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { privacyAccountant } from '../../lib/index.js';
import { requireBuilt } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';

const root = path.join(import.meta.dirname, '..', '..');
const page = fs.readFileSync(path.join(root, 'docs', 'training', 'statistics.md'), 'utf8');
const [example = ''] = [...page.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code = '']) => code);

beforeAll(requireBuilt);

describe('docs/training/statistics.md', () => {
  it('begins with an example of less than 25 lines that runs', () => {
    expect(example.split('\n').length).toBeLessThan(25);
    const entry = pathToFileURL(path.join(root, 'dist', 'index.js')).href;
    const file = path.join(temporaryFolder(), 'example.mjs');
    fs.writeFileSync(file, example.replace(/'lowrank'/, JSON.stringify(entry)));
    const text = execFileSync(process.execPath, [file], { encoding: 'utf8' });
    expect(text).toContain('Float32Array(4)');
    expect(text).toContain('[ 4, 64 ]');
    const [noise = 0, epsilon = 0] = (text.trim().split('\n').at(-1) ?? '').split(' ').map(Number);
    const run = { sampleRate: 0.01, steps: 1000, delta: 1e-5 };
    expect(epsilon).toBe(privacyAccountant({ ...run, noise }).epsilon);
    expect(epsilon).toBeCloseTo(8, 6);
  });

  it('has a row for each statistic of layers', () => {
    for (const name of ['gram', 'moments', 'outputs', 'sensitivity', 'fisher']) {
      expect(page).toMatch(new RegExp(`^\\| \`${name}\` \\|`, 'm'));
    }
  });
});
