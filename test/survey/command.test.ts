// `lowrank finetune --method` and `lowrank methods`, as a user runs them.
import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { requireBuilt, run } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';

const SHORT = [
  '--steps',
  '2',
  '--seq-len',
  '16',
  '--batch',
  '1',
  '--no-compare',
  '--sample-tokens',
  '0',
];

beforeAll(requireBuilt);

const finetune = (...args: string[]) => run(['finetune', ...SHORT, ...args]);

describe('lowrank finetune --method', () => {
  it('trains with the parts of the method, and options of the command line win', async () => {
    const out = path.join(temporaryFolder(), 'out');
    const { code, stdout, stderr } = await finetune(
      ...['--method', 'lora_plus', '--rank', '4', '--set', 'ratio=8', '--out', out, '--json'],
    );
    expect(code, stderr).toBe(0);
    expect(stdout).toContain('; lora-plus, ratio 8, rate 0.003');
    const config = JSON.parse(fs.readFileSync(path.join(out, 'adapter_config.json'), 'utf8'));
    expect(config.r).toBe(4);
    const other = path.join(temporaryFolder(), 'out');
    const replaced = await finetune(
      ...['--method', 'lora-plus', '--optimizer', 'lion', '--out', other, '--json'],
    );
    expect(replaced.code, replaced.stderr).toBe(0);
    expect(replaced.stdout).toContain('; lion, rate ');
    expect(replaced.stdout).not.toContain('; lora-plus, ');
  });

  it('compares several in one report', async () => {
    const out = path.join(temporaryFolder(), 'out');
    const { code, stdout, stderr } = await finetune(
      ...[
        '--method',
        'lora,pissa,relora',
        '--set',
        'relora.every=2',
        '--set',
        'rewarm=1',
        '--rank',
        '2',
        '--out',
        out,
      ],
    );
    expect(code, stderr).toBe(0);
    for (const name of ['lora', 'pissa', 'relora']) {
      expect(stdout).toMatch(new RegExp(`^${name} +\\d`, 'm'));
      expect(fs.existsSync(path.join(out, name, 'adapter_model.safetensors'))).toBe(true);
    }
    const report = fs.readFileSync(path.join(out, 'methods.html'), 'utf8');
    expect(report).toContain('<li>pissa (lora, start pissa): r 2');
    expect(report).toContain('<li>relora (lora, rule relora): r 2');
  });

  const wrong: readonly (readonly [string, readonly string[], string])[] = [
    ['a mistyped name', ['pisa'], '"pisa" (did you mean pissa?)'],
    ['the same twice', ['pissa,pissa'], 'a list without repetitions, got "pissa,pissa"'],
    ['a merge', ['ties-merge'], 'lists, got "ties-merge"'],
    ['no training run', ['compeft'], 'instead: lowrank merge ADAPTER... OUT --by compeft'],
    [
      'a method outside',
      ['longlora'],
      '(plain lora; shifted sparse attention belongs to the model)',
    ],
    ['privacy without a bound', ['dp-lora'], 'given with --epsilon 8 --delta 1e-5 --clip 0.5'],
    ['several adapters', ['pissa', '--adapter', 'lora,dora'], 'one adapter beside --method'],
    ['a setting of none', ['lora,pissa', '--set', 'evry=2'], 'a setting of one of the methods'],
  ];
  it.each(wrong)('rejects %s', async (_, args, text) => {
    const out = path.join(temporaryFolder(), 'out');
    const { code, stderr } = await finetune('--method', ...args, '--out', out);
    expect(code).toBe(2);
    expect(stderr).toContain(text);
    expect(fs.existsSync(out)).toBe(false);
  });

  it('rejects an adapter that a rule of the method does not fit', async () => {
    const out = path.join(temporaryFolder(), 'out');
    const { code, stderr } = await finetune(
      '--method',
      'relora',
      '--adapter',
      'dora',
      '--out',
      out,
    );
    expect(code).toBe(4);
    expect(stderr).toContain('lora, which the rule relora is for, got dora');
  });
});

describe('lowrank methods', () => {
  it('lists all methods, or those that are named', async () => {
    const all = await run(['methods']);
    expect(all.code).toBe(0);
    expect(all.stdout).toMatch(/^pissa +PiSSA +lowrank finetune --method pissa$/m);
    const two = await run(['methods', 'slora', 'byom', '--json']);
    const { methods } = JSON.parse(two.stdout) as { methods: { method: string }[] };
    expect(methods.map(({ method }) => method)).toEqual(['slora', 'byom']);
    const wrong = await run(['methods', 'pisa']);
    expect(wrong.code).toBe(2);
    expect(wrong.stderr).toContain('(did you mean pissa?)');
  });
});
