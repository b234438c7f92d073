// The example of a method of one's own: as the guide shows it, checked, trained and measured.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { type adapterMethods, checkAdapter, defineAdapter } from '../../lib/index.js';
import { requireBuilt, run } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';

const root = join(import.meta.dirname, '..', '..');
const example = join('examples', 'own-adapter', 'gated-lora.ts');
const source = readFileSync(join(root, example), 'utf8');

beforeAll(() => {
  requireBuilt();
});

describe('a method of one’s own', () => {
  it('is in the guide as it is in the example', () => {
    const guide = readFileSync(join(root, 'docs', 'write-an-adapter.md'), 'utf8');
    expect(guide).toContain(source.slice(source.indexOf('import ')));
  });

  it('is trained, compared and measured by the command line', async () => {
    const out = join(temporaryFolder(), 'out');
    const short = ['--steps', '2', '--seq-len', '16', '--eval-every', '0', '--json', '--out', out];
    const trained = await run(['finetune', '--adapter', `ia3,${example}`, ...short]);
    expect(trained.code, trained.stderr).toBe(0);
    const { runs } = JSON.parse(trained.stdout) as { runs: { method: string }[] };
    expect(runs.map(({ method }) => method)).toEqual(['ia3', 'gated-lora']);
    expect(readFileSync(join(out, 'methods.html'), 'utf8')).toContain('gated-lora');
    const config = readFileSync(join(out, 'gated-lora', 'adapter_config.json'), 'utf8');
    expect(JSON.parse(config)).toMatchObject({
      peft_type: 'LOWRANK',
      lowrank_method: 'gated-lora',
      settings: { r: 8 },
    });
    const quick = [
      '--repeats',
      '2',
      '--trials',
      '1',
      '--seconds',
      '0.1',
      '--no-roofline',
      '--json',
    ];
    const sizes = ['--op', 'loraForward,loraBackward,lora', '--shape', '3x40x24'];
    const cases = ['--case', example, '--case', 'dora', '--peers', 'none'];
    const measured = await run(['bench', ...sizes, ...cases, ...quick]);
    expect(measured.code, measured.stderr).toBe(0);
    const result = JSON.parse(measured.stdout) as { cases: { rows: { subject: string }[] }[] };
    expect(result.cases).toHaveLength(3);
    for (const { rows } of result.cases) {
      expect(rows.map(({ subject }) => subject)).toEqual(['lowrank', 'gated-lora', 'dora']);
    }
  }, 120_000);

  it.each([
    [['--adapter', 'examples/own-adapter/nowhere.ts'], 'must be a file, got nothing there'],
    [['--adapter', 'examples/own-case/merged.mjs'], 'what defineAdapter returns'],
    [['--adapter', './examples/own-adapter'], 'must be a file, got a folder'],
    [['--adapter', `${example},./${example}`], 'methods with distinct names, got "gated-lora"'],
    [['--adapter', 'lorra'], 'must be one of'],
    [['--adapter', 'lora,lora'], 'distinct'],
    [
      ['--adapter', 'ia3', '--rank', '4'],
      '--rank must be left out (ia3 has no r; its settings: kernel), got "4"',
    ],
    [
      ['--adapter', 'examples/own-adapter/gated-lora.ts', '--rslora'],
      '--rslora must be left out (gated-lora has no rslora; its settings: r, loraAlpha, dropout), got "--rslora"',
    ],
    [['--adapter', 'vera', '--set', 'dInitial=much'], 'dInitial=<number>'],
    [['--adapter', 'vera', '--set', 'colour=1'], 'a setting of vera'],
  ])('is refused in words: %j', async (args, words) => {
    const { code, stderr } = await run(['finetune', ...args]);
    expect(code).not.toBe(0);
    expect(stderr).toContain(words);
  });

  it.each([
    ["import { gate } from 'no-such-package';", "Cannot find package 'no-such-package'"],
    ["import { gate } from './gone.mjs';", 'gone.mjs'],
  ])('is named where an import of its own is missing: %s', async (line, missing) => {
    const file = join(temporaryFolder(), 'mine.ts');
    writeFileSync(file, `${line}\nconst own: unknown = gate;\nexport default own;\n`);
    const { code, stderr } = await run(['finetune', '--adapter', file]);
    expect(code).toBe(3);
    expect(stderr).toContain(missing);
    expect(stderr).toContain(`imported from ${file}`);
    expect(stderr).not.toMatch(/\.mine\.ts|\d\.mjs/);
  });

  it('is refused under a name of the library’s, which is another method', async () => {
    const file = join(temporaryFolder(), 'dora.mjs');
    const library = pathToFileURL(join(root, 'dist', 'index.js')).href;
    const imported = `import { adapters, defineAdapter } from '${library}';\n`;
    const copy = "export default defineAdapter({ ...adapters.lora.definition, method: 'dora' });\n";
    writeFileSync(file, imported + copy);
    const { code, stderr } = await run(['finetune', '--adapter', file]);
    expect([code, stderr]).toEqual([2, expect.stringContaining('none of the library')]);
    writeFileSync(file, `${imported}export default adapters.dora;\n`);
    // What the library has itself is that, from wherever it comes.
    const known = await run(['finetune', '--adapter', file, '--set', 'colour=1']);
    expect(known.stderr).toContain('a setting of dora');
  });

  it('has its gradients checked by one call, which finds a wrong one', () => {
    const shapes = ({ N }: { N: number }) => ({ u: [N] as const });
    const make = (factor: number) =>
      defineAdapter({
        method: 'planted',
        reference: 'nobody',
        defaults: {},
        trained: ['u'],
        shapes,
        init: (fresh) => ({ u: fresh.zeros('u') }),
        forward: (t, { x, w, bias, p }) => {
          const y = t.linear(x, w, bias);
          return t.record(t.add(y, p.u).tensor, [y, p.u], [], (dy, pass) => {
            pass.give(y, dy);
            pass.give(p.u, t.affine(t.sum(t.constant(dy), 0), factor).tensor);
          });
        },
      }) as unknown as (typeof adapterMethods)[number];
    expect(checkAdapter(make(1)).every(({ passed }) => passed)).toBe(true);
    const wrong = checkAdapter(make(0.9)).filter(({ passed }) => !passed);
    expect(wrong.map(({ name }) => name)).toEqual(['u']);
  });
});
