/** Every op with each of its allocations failing in turn: a typed error or success, and no leak. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { bindingPath } from '../../lib/core/binding.js';
import { reportOf, runProgram, usePrograms } from './program.js';

usePrograms();

interface Row {
  name: string;
  sites: number;
  refused: number;
  succeeded: number;
  other: string[];
  leaked: string;
}

let folder = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lowrank-malloc-'));
  const source = join(import.meta.dirname, 'failing_malloc.c');
  execFileSync('gcc', ['-O1', '-shared', '-fPIC', source, '-o', join(folder, 'shim.so')]);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe.each(['cpu', 'reference'])('without memory on %s', (device) => {
  it('every op refuses with ERR_OOM or succeeds', { timeout: 300_000 }, async () => {
    const control = join(folder, device);
    writeFileSync(control, Buffer.alloc(24));
    const rows = reportOf<Row[]>(
      await runProgram('malloc-failure', [device], {
        nodeArgs: ['--expose-gc'],
        timeout: 290_000,
        env: {
          LD_PRELOAD: join(folder, 'shim.so'),
          FAILING_MALLOC_CONTROL: control,
          FAILING_MALLOC_MODULE: basename(bindingPath()),
        },
      }),
    );
    expect(rows.length).toBeGreaterThan(30);
    expect(rows.filter(({ other }) => other.length > 0)).toEqual([]);
    expect(rows.filter(({ leaked }) => leaked !== '')).toEqual([]);
    // The shim must have been there: most ops allocate, and a failure is mostly fatal to the call.
    const sites = rows.reduce((sum, row) => sum + row.sites, 0);
    const refused = rows.reduce((sum, row) => sum + row.refused, 0);
    expect(sites).toBeGreaterThan(300);
    expect(refused).toBeGreaterThan(sites / 2);
  });
});
