/** The profile of a training step: bench/step-profile.mjs on a short run. */

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { requireBuilt } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';

const program = fileURLToPath(new URL('../../bench/step-profile.mjs', import.meta.url));

function profile(...args: string[]) {
  return spawnSync(process.execPath, [program, ...args], { encoding: 'utf8' });
}

beforeAll(() => {
  requireBuilt();
});

describe('the profile of a step', () => {
  it('shares out the time of the training loop, kernels among it', { timeout: 180_000 }, () => {
    // Little to evaluate before and after the steps.
    const data = path.join(temporaryFolder(), 'text.txt');
    fs.writeFileSync(
      data,
      Array.from({ length: 60 }, (_, i) => `Note ${i}: it rained again.`).join('\n\n'),
    );
    // A step takes some 6 ms and the profiler samples every 0.5 ms: 40 steps give each module its samples.
    const short = ['--steps', '40', '--seq-len', '16', '--batch', '1', '--sample-tokens', '0'];
    const run = profile(...short, '--data', data, '--json');
    expect(run.status, run.stderr).toBe(0);
    const result = JSON.parse(run.stdout) as {
      steps: number;
      msPerStep: number;
      rows: { part: string; msPerStep: number; share: number }[];
    };
    expect(result.steps).toBe(40);
    expect(result.msPerStep).toBeGreaterThan(0);
    expect(result.rows.reduce((sum, row) => sum + row.share, 0)).toBeCloseTo(1, 6);
    const parts = result.rows.map((row) => row.part);
    expect(parts).toContain('the addon: kernels, and copies in and out');
    expect(parts.filter((part) => part.startsWith('lib/')).length).toBeGreaterThan(2);
  });

  it('refuses a number of steps that leaves nothing to measure', () => {
    const run = profile('--steps', '2');
    expect(run.status).toBe(2);
    expect(run.stderr).toContain('from 3 on, got 2');
  });
});
