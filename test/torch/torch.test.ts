/** The package for PyTorch, by programs in Python, where a Python has torch. */
import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { findPython } from '../../lib/bench/peers/torch.js';
import { cRuns, library, sanitized } from '../c-api/library.js';
import { buildTargets, root, run } from '../emulator/build-folder.js';
import { TIME_SCALE } from '../reliability/program.js';

const python = cRuns && !sanitized ? findPython('torch', 'numpy') : undefined;
if (sanitized) console.warn('not run: Python with torch is not started under a sanitizer');
else if (cRuns && python === undefined) {
  console.warn(
    'not run: the package for PyTorch needs torch (apt install python3-torch python3-numpy)',
  );
}

const timeout = 300_000 * TIME_SCALE;
/** Settings of the user of the machine, such as threads, stay out. */
const env = { ...process.env, LOWRANK_LIBRARY: library, OMP_WAIT_POLICY: 'passive' };

/** What a program printed; it fails with the end of that. */
async function output(file: string, ...args: string[]): Promise<{ out: string; err: string }> {
  const command = python?.command as string;
  const done = await run(command, [path.join(root, file), ...args], { env }).catch(
    (error) => error,
  );
  if (done.code) throw new Error(`${file}:\n${done.stdout}${done.stderr}`.slice(-6000));
  return { out: done.stdout, err: done.stderr };
}

describe.runIf(python !== undefined)('lowrank_torch', () => {
  beforeAll(() => buildTargets('lowrank_c'), 1_200_000);

  const programs = fs
    .readdirSync(import.meta.dirname)
    .filter((file) => file.endsWith('.py') && file !== 'shapes.py')
    .sort();

  it.each(programs)('%s', { timeout }, async (program) => {
    const { err } = await output(path.join('test', 'torch', program));
    const [, count] = /^Ran (\d+) tests/m.exec(err) ?? [];
    expect(Number(count)).toBeGreaterThan(3);
    expect(err).toMatch(/^OK$/m);
  });

  it('runs the example', { timeout }, async () => {
    const { out } = await output(path.join('examples', 'torch', 'train.py'));
    const losses = [...out.matchAll(/^step \d+ loss ([\d.]+)$/gm)].map(([, loss]) => Number(loss));
    expect(losses).toHaveLength(4);
    expect(losses[3]).toBeLessThan(2.5);
    expect(losses[0]).toBeGreaterThan(losses[3] as number);
    expect(out).toContain('16 adapter tensors');
  });

  it('measures a step and layers', { timeout }, async () => {
    const small = { width: 32, heads: 2, layers: 1, vocabulary: 16, tokens: 8, batch: 1, steps: 3 };
    const step = await output(
      path.join('bench', 'torch_step.py'),
      JSON.stringify({ ...small, format: 'nf4', keep: false }),
    );
    const { plain, patched, layers, frozen, base_bytes: bytes } = JSON.parse(step.out);
    expect([layers, frozen]).toEqual([4, 1]);
    expect(plain.losses).toHaveLength(5);
    for (const [i, loss] of plain.losses.entries()) {
      expect(Math.abs(patched.losses[i] - loss)).toBeLessThan(0.05 * loss);
    }
    expect(Math.min(plain.min_ms, patched.min_ms)).toBeGreaterThan(0);
    expect(bytes.patched).toBeLessThan(0.15 * bytes.plain);
    const job = JSON.stringify({ layers: [[2, 64, 64, 4]], dtypes: ['f32'], seconds: 0 });
    const layer = JSON.parse((await output(path.join('bench', 'torch_layers.py'), job)).out);
    expect(Object.keys(layer)).toEqual(['dtype', 'layer', 'torch', 'dense', 'nf4']);
    await expect(output(path.join('bench', 'torch_step.py'), '{"wdith": 1}')).rejects.toThrow(
      /fields must be of width, .*, got wdith/,
    );
  });

  it('is documented', () => {
    const page = fs.readFileSync(path.join(root, 'docs', 'pytorch.md'), 'utf8');
    const example = /```python\n([\s\S]*?)```/.exec(page)?.[1] ?? '';
    expect(example.trimEnd().split('\n').length).toBeLessThan(15);
    const main = path.join(root, 'python', 'lowrank_torch', '__init__.py');
    const [, names = ''] = /__all__ = \[([\s\S]*?)\]/.exec(fs.readFileSync(main, 'utf8')) ?? [];
    const exported = [...names.matchAll(/"(\w+)"/g)].map(([, name]) => name as string);
    expect(exported.length).toBeGreaterThan(8);
    expect(exported.filter((name) => !page.includes(name))).toEqual([]);
  });
});
