/** What machine code is made of: the front end's PTX without its lines, and Hopper's with what waits for a launch. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

const tool = resolve(import.meta.dirname, '../../cuda/tools/machine-ptx.mjs');

/** As nvcc -lineinfo writes it; `kernel` alone is what is executed. */
const ptx = (target: string, kernel: string) => `.version 8.0
.target ${target}
.address_size 64
\t.file\t1 "cuda/some.cu"
.visible .entry some_kernel()
{
\t.loc\t1 12 3
${kernel}
\t.loc\t1 13 1, function_name $L__info_string0, inlined_at 1 20 5
\tret;
}
\t.section\t.debug_str
\t{
$L__info_string0:
.b8 95,90
.b8 0
\t}
`;
const executed = (target: string, kernel: string) => `.version 8.0
.target ${target}
.address_size 64
.visible .entry some_kernel()
{
${kernel}
\tret;
}
`;
const comment = '\t// sm_90: griddepcontrol.wait;';
const wait = '\tgriddepcontrol.wait;';

describe('machine-ptx', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'lowrank-ptx-'));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  function make(text: string, targets: string[], options: string[] = []) {
    const input = join(folder, 'in.ptx');
    writeFileSync(input, text);
    const outputs = targets.map((target) => join(folder, `${target}.ptx`));
    for (const file of outputs) rmSync(file, { force: true });
    const pairs = targets.map((target, i) => `${target}=${outputs[i]}`);
    const run = spawnSync(process.execPath, [tool, ...options, input, ...pairs], {
      encoding: 'utf8',
    });
    const made = outputs.map((file) => (existsSync(file) ? readFileSync(file, 'utf8') : ''));
    return { made, status: run.status, stderr: run.stderr };
  }

  it('leaves what is executed, and has sm_90 wait', () => {
    const { made, status, stderr } = make(ptx('sm_80', comment), ['sm_80', 'sm_90']);
    expect(status, stderr).toBe(0);
    expect(made).toEqual([executed('sm_80', comment), executed('sm_90', wait)]);
    expect(make(ptx('sm_90a', wait), ['sm_90a']).made).toEqual([executed('sm_90a', wait)]);
  });

  it('keeps lines where they are asked for', () => {
    const { made } = make(ptx('sm_80', comment), ['sm_80', 'sm_90'], ['--lines']);
    expect(made).toEqual([ptx('sm_80', comment), ptx('sm_90', wait)]);
  });

  it('refuses lines that it would leave', () => {
    for (const other of ['\t.loc 1 12 3', ' .section .debug_line\n { }']) {
      const text = ptx('sm_80', other);
      const { made, status, stderr } = make(text, ['sm_80']);
      expect({ made, status }).toEqual({ made: [''], status: 1 });
      expect(stderr).toContain('lines that are written in another way');
      expect(make(text, ['sm_80'], ['--lines']).made).toEqual([text]);
    }
  });

  it('refuses a target that the PTX is not for', () => {
    for (const [own, target] of [
      ['sm_90a', 'sm_90'],
      ['sm_90a', 'sm_80'],
      ['sm_80', 'sm_86'],
    ] as const) {
      const { made, status, stderr } = make(ptx(own, wait), [target]);
      expect({ made, status }).toEqual({ made: [''], status: 1 });
      expect(stderr).toContain(`PTX for ${own}, which is not made into that for ${target}`);
    }
  });
});
