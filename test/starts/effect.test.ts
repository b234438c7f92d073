// What a start is for, on the bundled model: sixty steps from PiSSA end lower than from LoRA's own start.
import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { readAdapterFolder } from '../../lib/index.js';
import { requireBuilt, run } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';

beforeAll(requireBuilt);

const quiet = [
  '--no-compare',
  '--no-report',
  '--sample-tokens',
  '0',
  '--eval-every',
  '0',
  '--json',
];

async function finetune(...args: readonly string[]) {
  const out = path.join(temporaryFolder(), 'out');
  const done = await run(['finetune', '--out', out, ...quiet, ...args]);
  return { ...done, out };
}

describe('lowrank finetune --init', () => {
  it('pissa: the held-out loss after 60 steps is at least 0.1 nats below that of LoRA', async () => {
    const settings = ['--steps', '60', '--lr', '0.001', '--rank', '8', '--lora-alpha', '8'];
    const [plain, pissa] = [
      await finetune(...settings),
      await finetune(...settings, '--init', 'pissa'),
    ];
    const lossOf = ({ stdout, stderr, code }: typeof plain): number => {
      expect([code, code === 0 ? '' : stderr]).toEqual([0, '']);
      return Number(/"lossAfter": *([\d.]+)/.exec(stdout)?.[1]);
    };
    expect(lossOf(pissa)).toBeLessThan(lossOf(plain) - 0.1);
    const { config } = readAdapterFolder(pissa.out);
    expect(config).toMatchObject({ r: 16, lora_alpha: 16, init_lora_weights: true });
  });

  it('takes a file of one’s own, with its settings, and says what is wrong with others', async () => {
    const own = path.join('examples', 'own-start', 'orthonormal-rows.ts');
    const steps = ['--steps', '2', '--seq-len', '32'];
    const done = await finetune(
      ...steps,
      '--init',
      own,
      '--set',
      'share=0.2',
      '--set',
      'dropout=0.1',
    );
    expect([done.code, done.code === 0 ? '' : done.stderr]).toEqual([0, '']);
    expect(fs.existsSync(path.join(done.out, 'adapter_config.json'))).toBe(true);
    for (const [args, message] of [
      [['--init', own, '--set', 'share=0'], /share must be above 0, got 0/],
      [['--init', 'pisa'], /--init|init must be one of .*did you mean pissa/],
      [['--init', './nothing.ts'], /must be a file, got nothing there/],
      [['--init', 'pissa', '--adapter', 'vera'], /one of lora, which pissa starts, got vera/],
      [['--init', 'loftq', '--format', 'none'], /a quantised format \(loftq needs one\), got none/],
      [['--init', 'goat'], /--init goat with --adapter loramoe must leave the base as it is/],
      [['--init-batches', '3'], /init-batches must be left out without --init/],
      [['--init', 'pissa', '--set', 'passes=3'], /--set must be NAME=VALUE with a setting of lora/],
    ] as const) {
      const refused = await finetune(...steps, ...args);
      expect(refused.code, args.join(' ')).not.toBe(0);
      expect(refused.stderr, args.join(' ')).toMatch(message);
      expect(fs.existsSync(refused.out)).toBe(false);
    }
  });
});
