/**
 * PTX mode's own tests: each instruction against exact arithmetic in integers, the emulator's planted
 * bugs in what nvcc makes of them, and what the translator does not understand.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildTargets, emulatorRuns, hasNvcc, outputFolder, root, run } from './build-folder.js';

const folder = mkdtempSync(path.join(tmpdir(), 'lowrank-ptx-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const withNvcc = emulatorRuns && hasNvcc();
if (!withNvcc) console.warn('not run: what nvcc makes of the planted bugs, since there is no nvcc');
const kHead = '.version 8.7\n.target sm_90a\n.address_size 64\n';

/** Translates the body of one kernel; the error text, or the C++. */
function translate(body: string, before = ''): { error: string; code: string } {
  const input = path.join(folder, 'case.ptx');
  const output = path.join(folder, 'case.cpp');
  const text = `${kHead}${before}.visible .entry k(.param .u64 p)\n{\n.reg .b32 %r<9>;\n.reg .b64 %rd<9>;\n.reg .pred %p<9>;\n${body}\nret;\n}\n`;
  writeFileSync(input, text);
  const script = path.join(root, 'cuda', 'emulator', 'ptx', 'translate.mjs');
  const { status, stderr } = spawnSync(process.execPath, [script, '--root', root, input, output], {
    encoding: 'utf8',
  });
  return { error: stderr, code: status === 0 ? readFileSync(output, 'utf8') : '' };
}

describe('the translator', () => {
  it.each([
    ['an unknown instruction', 'frobnicate.b32 %r1, %r2;'],
    ['a modifier', 'add.rz.f32 %r1, %r2, %r3;'],
    ['a modifier', 'ld.global.newhint.u32 %r1, [%rd1];'],
    ['an operand', 'add.s32 %r1, %r2, %nosuch;', '%nosuch'],
    ['a label', 'bra NOWHERE;', 'NOWHERE'],
    [
      'a product',
      'mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%rd1}, {%rd2}, {%rd3}, {%rd4};',
    ],
  ])(
    'refuses %s that it does not understand, with its line',
    (_, body, named = body.replace(/;$/, '')) => {
      const { error } = translate(body);
      expect(error).toMatch(/case\.ptx:9: /);
      expect(error).toContain(named);
    },
  );

  it('names the line of the kernel that called a wrapper', () => {
    const files = ['cuda/ptx.cuh', 'cuda/k.cu'].map(
      (file, i) => `.file ${i + 1} "${path.join(root, file)}"\n`,
    );
    const { code } = translate(
      '.loc 2 10 3\nmov.u32 %r1, 0;\n.loc 1 77 3, function_name $L, inlined_at 2 12 5\nst.global.u32 [%rd1], %r1;',
      files.join(''),
    );
    expect(code).toContain('"cuda/k.cu"');
    expect(code).toMatch(/Access\(.*Site::Line\(kFile0, 12\)/);
  });
});

describe.runIf(emulatorRuns)('PTX mode', () => {
  beforeAll(() => buildTargets('ptx_instructions_check'), 600_000);

  it('gives what PTX defines, instruction by instruction', async () => {
    const { stdout } = await run(path.join(outputFolder(), 'ptx_instructions_check'), []).catch(
      (error) => error,
    );
    expect(stdout).toMatch(/^[3-9]\d\d instructions, 0 wrong\n$/);
  });

  it.runIf(withNvcc)(
    'finds every planted bug in what nvcc made of it',
    async () => {
      await buildTargets('ptx_selftest');
      const { stdout } = await run(path.join(outputFolder(), 'ptx_selftest'), [], {
        timeout: 120_000,
      }).catch((error) => error);
      expect(String(stdout).trim()).toMatch(/^\d+ cases in \d+ schedules, 0 runs failed$/);
    },
    600_000,
  );
});
