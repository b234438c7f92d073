// docs/quantization/trained-quantizers.md: its example runs, and its steps become better.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { requireBuilt } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';

const root = path.join(import.meta.dirname, '..', '..');
const page = fs.readFileSync(
  path.join(root, 'docs', 'quantization', 'trained-quantizers.md'),
  'utf8',
);
const blocks = [...page.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code = '']) => code);

beforeAll(requireBuilt);

/** What an example prints. */
function printed(code: string): string {
  const entry = pathToFileURL(path.join(root, 'dist', 'index.js')).href;
  const file = path.join(temporaryFolder(), 'example.mjs');
  fs.writeFileSync(file, code.replace(/'lowrank'/, JSON.stringify(entry)));
  return execFileSync(process.execPath, [file], { encoding: 'utf8' });
}

describe('docs/quantization/trained-quantizers.md', () => {
  it('trains steps in less than 25 lines, to a smaller error than they begin with', () => {
    const code = blocks[0] as string;
    expect(code.split('\n').length).toBeLessThan(25);
    const trained = Number(printed(code));
    const before = Number(printed(code.replace('step <= 60', 'step <= 0')));
    expect(before).toBeLessThan(1);
    expect(trained).toBeLessThan(0.7 * before);
  });
});
