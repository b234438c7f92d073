/** What a call costs beside its arithmetic: `npm run bench:overhead`, for a few rounds. */

import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { expect, it } from 'vitest';
import type { CallOverhead } from '../../bench/call-overhead.js';

it('times calls, reads and turns of the event loop', { timeout: 120_000 }, () => {
  const text = execFileSync('npm', ['run', '-s', 'bench:overhead', '--', 'cpu', '4'], {
    cwd: path.resolve(import.meta.dirname, '..', '..'),
    encoding: 'utf8',
  });
  const result = JSON.parse(text.trim().split('\n').at(-1) ?? '') as CallOverhead;
  expect(Object.keys(result).length).toBe(7);
  for (const [name, value] of Object.entries(result))
    expect([name, value > 0]).toEqual([name, true]);
});
