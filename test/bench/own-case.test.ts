/** A user's file as a peer: the example as it stands, a program, and files that are wrong. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { BenchResult } from '../../lib/bench/result.js';
import { requireBuilt, run } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';

const folder = temporaryFolder();
const kQuick = ['--repeats', '2', '--trials', '1', '--seconds', '0.1', '--no-roofline', '--json'];

function file(name: string, text: string): string {
  const full = path.join(folder, name);
  fs.writeFileSync(full, text);
  return full;
}

async function bench(...args: string[]): Promise<BenchResult> {
  const { code, stdout, stderr } = await run(['bench', '--peers', 'none', ...args, ...kQuick]);
  expect(code, stderr).toBe(0);
  return JSON.parse(stdout) as BenchResult;
}

beforeAll(() => {
  requireBuilt();
});

describe('a case of one’s own', () => {
  it('is measured and checked, as the example shows', async () => {
    const example = ['--case', 'examples/own-case/merged.mjs', '--shape', '3x40x24'];
    const { cases, peers } = await bench('--op', 'loraForward,lora', ...example);
    expect(peers[1]).toEqual({ name: 'merged', version: 'f32' });
    const [forward, both] = cases;
    expect(forward?.rows.map(({ subject }) => subject)).toEqual(['lowrank', 'merged']);
    expect(forward?.rows[1]).toMatchObject({ note: 'dense f32, merged once', weight_bytes: 3840 });
    // Dense: only roundings of f32 are left.
    expect(forward?.rows[1]?.error).toBeLessThan(1e-5);
    expect(forward?.rows[1]?.median_ms).toBeGreaterThan(0);
    expect(both?.skipped).toEqual([
      { subject: 'merged', reason: 'a merged adapter is not trained' },
    ]);
  });

  it('is left out with a reason where its result or its body is wrong', async () => {
    const wrong = file(
      'wrong.mjs',
      `export default { name: 'zeros', prepare: ({ M, N }) => ({ run() {}, output: () => new Float32Array(M * N) }) };`,
    );
    const throwing = file(
      'throwing.mjs',
      `let calls = 0;
       export default { name: 'throws', prepare: () => ({ run() { if (calls++ > 2) throw new Error('too many'); } }) };`,
    );
    const late = file(
      'late.mjs',
      `export default { name: 'later', version: 3, prepare: () => ({ run: () => new Promise((done) => setTimeout(done, 5)) }) };`,
    );
    const files = [wrong, throwing, late].flatMap((name) => ['--case', name]);
    const { cases } = await bench('--op', 'matmul', '--shape', '2x16x8', ...files);
    expect(cases[0]?.skipped).toEqual([
      { subject: 'zeros', reason: 'it computes something else: error 1.00' },
      { subject: 'throws', reason: 'too many' },
    ]);
    const [, row] = cases[0]?.rows ?? [];
    expect([row?.subject, row?.version]).toEqual(['later', '3']);
    expect(row?.median_ms).toBeGreaterThan(4); // a promise is awaited
  });

  it('is left out with a reason where a function of it fails or gives too little', async () => {
    const member = (name: string, members: string) =>
      file(`${name}.mjs`, `export default { name: '${name}', ${members} };`);
    const files = [
      member('choosy', `refuses() { throw new Error('no idea'); }, prepare() {}`),
      member('hidden', `find() { throw new Error('not found'); }, prepare() {}`),
      member('empty', 'prepare() {}'),
      member('short', 'prepare: () => ({ run() {}, output: () => [1, 2] })'),
    ].flatMap((name) => ['--case', name]);
    const { cases, peers } = await bench('--op', 'matmul', '--shape', '2x16x8', ...files);
    expect(cases[0]?.skipped).toEqual([
      { subject: 'choosy', reason: 'its refuses failed: no idea' },
      { subject: 'empty', reason: 'prepare must return an object with run, a function' },
      { subject: 'short', reason: 'output must give M * N = 16 numbers, got 2' },
    ]);
    expect(peers[2]).toEqual({ name: 'hidden', missing: 'its find failed: not found' });
  });

  it('may queue its calls, and be waited for by a promise', async () => {
    const queues = file(
      'queues.mjs',
      `let queued = 0;
       const wait = (done) => { setTimeout(done, 5 * queued); queued = 0; };
       export default { name: 'queues', prepare: () => ({ run() { queued++; }, finish: () => new Promise(wait) }) };`,
    );
    for (const how of [[], ['--latency']]) {
      const { cases, calls } = await bench(
        '--op',
        'matmul',
        '--shape',
        '2x16x8',
        '--case',
        queues,
        ...how,
      );
      expect(calls).toBe(how.length === 0 ? 'queued' : 'awaited');
      expect(cases[0]?.skipped).toEqual([]);
      expect(cases[0]?.rows[1]?.median_ms).toBeGreaterThan(4);
    }
  });

  it('may be a program in any language', async () => {
    const program = file(
      'program.mjs',
      `console.log('{"ready": {"version": "7", "note": "elsewhere"}}');
       process.stdin.on('data', (text) => {
         for (const line of String(text).trim().split('\\n')) console.log(JSON.stringify({ ms: 20 * line }));
       }).on('end', () => process.exit(0));`,
    );
    const own = file(
      'own.mjs',
      `export default { name: 'program', program: () => ({ command: process.execPath, args: [${JSON.stringify(program)}] }) };`,
    );
    const { cases } = await bench('--op', 'matmul', '--shape', '2x16x8', '--case', own);
    expect(cases[0]?.rows[1]).toMatchObject({
      subject: 'program',
      version: '7',
      note: 'elsewhere',
      median_ms: 20,
    });
  });

  it('is refused where the file is not one', async () => {
    const broken: [string, number, string][] = [
      [path.join(folder, 'absent.mjs'), 3, 'must be a file, got nothing there'],
      [file('syntax.mjs', 'export default {'), 3, 'does not load'],
      [file('empty.mjs', 'export const name = 1;'), 3, 'must have name, and prepare'],
      [file('nameless.mjs', 'export default { prepare() {} };'), 3, 'must have name'],
      [
        file('both.mjs', `export default { name: 'b', prepare() {}, program() {} };`),
        3,
        'must have',
      ],
      [
        file('steering.mjs', `export default { name: '\\u001b[2J', prepare() {} };`),
        3,
        'must have',
      ],
      [
        file('unit.mjs', `export default { name: 'u', computes: 'f8', prepare() {} };`),
        3,
        'must be one of f32, bf16, int8, got "f8"',
      ],
      [
        file('refuses.mjs', `export default { name: 'r', refuses: 'all', prepare() {} };`),
        3,
        'must be a function, got string',
      ],
      [file('taken.mjs', `export default { name: 'torch', prepare() {} };`), 2, 'not taken'],
    ];
    const results = await Promise.all(broken.map(([name]) => run(['bench', '--case', name])));
    results.forEach(({ code, stderr }, i) => {
      expect(stderr).toContain(broken[i]?.[2]);
      expect(code).toBe(broken[i]?.[1]);
    });
  });
});
