/** `lowrank merge` and `lowrank aggregate`: results, messages, and that nothing appears where they fail. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { combineAdapters, readAdapterFolder } from '../../lib/index.js';
import { tempFolder } from '../checkpoint/raw-file.js';
import { requireBuilt, run } from '../finetune/command.js';

beforeAll(requireBuilt);

const golden = path.join(import.meta.dirname, '..', 'golden', 'merging');
const [a, b, c] = ['a', 'b', 'c'].map((name) => path.join(golden, 'ties', name)) as [
  string,
  string,
  string,
];

describe('merge', () => {
  it('gives what combineAdapters gives, as a table and as JSON', async () => {
    const folder = tempFolder();
    const [one, two] = [path.join(folder, 'one'), path.join(folder, 'two')];
    const options = [
      '--by',
      'ties',
      '--weights',
      '0.6,1,-0.8',
      '--set',
      'density=0.5',
      '--set',
      'sign=frequency',
    ];
    const shown = await run(['merge', a, b, c, one, ...options]);
    expect([shown.code, shown.stderr]).toEqual([0, '']);
    expect(shown.stdout).toBe(
      [
        `adapters    "${a}", "${b}", "${c}"`,
        'by          ties',
        'settings    density 0.5, sign frequency',
        'weights     0.6, 1, -0.8',
        'modules     2',
        'rank        4',
        `written to  "${one}"`,
        '',
      ].join('\n'),
    );
    const told = await run(['merge', a, b, c, two, ...options, '--json']);
    expect(JSON.parse(told.stdout)).toEqual({
      in: [a, b, c],
      out: two,
      by: 'ties',
      settings: { density: 0.5, sign: 'frequency' },
      weights: [0.6, 1, -0.8],
      modules: 2,
      ranks: [4],
      warnings: [],
    });
    const wanted = await combineAdapters([a, b, c].map(readAdapterFolder), [0.6, 1, -0.8], {
      by: 'ties',
      density: 0.5,
      sign: 'frequency',
    });
    for (const out of [one, two]) expect(readAdapterFolder(out).tensors).toEqual(wanted.tensors);
  });

  it('averages the adapters of clients', async () => {
    const folder = tempFolder();
    const clients = ['a', 'b', 'c'].map((name) => path.join(golden, 'cat', name));
    const out = path.join(folder, 'out');
    const done = await run([
      'aggregate',
      ...clients,
      out,
      '--by',
      'flexlora',
      '--weights',
      '10,0,30',
      '--set',
      'rank=3',
      '--json',
    ]);
    expect([done.code, done.stderr]).toEqual([0, '']);
    expect(JSON.parse(done.stdout)).toMatchObject({ by: 'flexlora', modules: 2, ranks: [3] });
  });

  it.each([
    [['merge', a, b], 2, '--by must be given: one of cat,'],
    [['merge', a, '--by', 'ties'], 2, 'takes one ADAPTER or more, and OUT'],
    [['merge', a, b, 'OUT', '--by', 'tie'], 2, '--by must be one of cat,'],
    [['merge', a, b, 'OUT', '--by', 'fedavg'], 2, 'or a file (lowrank aggregate has fedavg)'],
    [['aggregate', a, b, 'OUT', '--by', 'ties'], 2, 'or a file (lowrank merge has ties)'],
    [['merge', a, b, 'OUT', '--by', './nowhere.ts'], 3, 'must be a file, got nothing there'],
    [
      ['merge', a, b, 'OUT', '--by', 'ties', '--weights', '1'],
      2,
      '--weights must be 2 finite numbers',
    ],
    [
      ['merge', a, b, 'OUT', '--by', 'ties', '--weights', '1,x'],
      2,
      '--weights must be 2 finite numbers',
    ],
    [
      ['merge', a, b, 'OUT', '--by', 'ties', '--set', 'density'],
      2,
      '--set must be NAME=VALUE with a setting of ties (density, sign)',
    ],
    [
      ['merge', a, b, 'OUT', '--by', 'ties', '--set', 'density=x'],
      2,
      '--set must be density=<number>, got "density=x"',
    ],
    [
      ['merge', a, b, 'OUT', '--by', 'ties', '--set', 'density=-1'],
      2,
      'density must be in [0, 1], got -1',
    ],
    [
      ['merge', a, path.join(golden, 'cat', 'b'), 'OUT', '--by', 'ties'],
      2,
      'r of fc1 must be the same in all adapters',
    ],
    [['merge', a, path.join(golden, 'nowhere'), 'OUT', '--by', 'ties'], 3, 'nowhere'],
    [
      ['merge', a, b, a, '--by', 'ties'],
      3,
      'must be a new or empty folder, got a folder with files in it',
    ],
  ])('%j', async (args, code, message) => {
    const folder = tempFolder();
    const out = path.join(folder, 'out');
    const done = await run(args.map((word) => (word === 'OUT' ? out : word)));
    expect(done.code, done.stderr).toBe(code);
    expect(done.stdout).toBe('');
    expect(done.stderr).toContain(message);
    expect(fs.existsSync(out)).toBe(false);
  });

  it('lists the rules in its help', async () => {
    const { stdout } = await run(['merge', '--help']);
    expect(stdout).toContain('  ties-svd            density=0.2 sign=total rank=0 clamp=0\n');
    expect(stdout).not.toContain('fedavg');
    expect((await run(['aggregate', '--help'])).stdout).toContain('  hetlora             rank=0\n');
  });
});
