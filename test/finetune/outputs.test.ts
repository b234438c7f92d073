/** Where a fine-tune writes: one run at a time, nothing lost to a full disk, nothing left by a run that was killed. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it, vi } from 'vitest';
import {
  type FinetuneObserver,
  type FinetuneOptions,
  finetune,
} from '../../lib/finetune/finetune.js';
import { methodNamed } from '../../lib/train/adapter-set.js';
import { requireBuilt, run, start } from './command.js';
import { temporaryFolder } from './setup.js';
import { writeTinyCheckpoint } from './tiny-checkpoint.js';

const folder = temporaryFolder();
const inFolder = (name: string) => path.join(folder, name);
const weights = (out: string) => fs.readFileSync(inFolder(`${out}/adapter_model.safetensors`));
/** Files beside the inputs that belong to a run. */
const left = (out: string) => fs.readdirSync(folder).filter((name) => name.includes(out));

beforeAll(() => {
  requireBuilt();
  writeTinyCheckpoint(inFolder('model'));
  const line = (i: number) => `Document ${i} says that ${i} times ${i} is ${i * i}.`;
  fs.writeFileSync(inFolder('text'), Array.from({ length: 40 }, (_, i) => line(i)).join('\n\n'));
});

describe('a disk that fills up', () => {
  const options = (out: string): FinetuneOptions => ({
    model: inFolder('model'),
    data: [inFolder('text')],
    out: inFolder(out),
    separator: '\n\n',
    seqLen: 16,
    format: { format: 'nf4' },
    adapter: { method: methodNamed('test', 'lora'), settings: { r: 2 }, targets: ['q_proj'] },
    train: {
      ...{ steps: 6, batch: 2, accumulate: 1, lr: 0.01, warmup: 1, weightDecay: 0, clip: 1 },
      seed: 1,
      dtype: 'f32',
      recompute: false,
    },
    evalEvery: 0,
    saveEvery: 0,
    resume: false,
    compare: false,
    prompts: [],
    sampleTokens: 0,
    device: 'cpu',
  });

  /** Runs on a disk that is full from `when` on, but for what the run itself frees. */
  async function onFullDisk(
    run: FinetuneOptions,
    observer: (fill: () => void) => FinetuneObserver,
    frees: boolean,
  ): Promise<string> {
    let reserve: string | undefined;
    const fill = () => {
      const names = left(`.${path.basename(run.out)}.checkpoint.`);
      expect(names).toHaveLength(1);
      reserve = inFolder(names[0] as string);
    };
    const write = fs.writeSync as (...args: unknown[]) => number;
    const spy = vi.spyOn(fs, 'writeSync').mockImplementation(((...args: unknown[]) => {
      if (reserve !== undefined && (!frees || fs.existsSync(reserve))) {
        throw Object.assign(new Error('no space'), { code: 'ENOSPC' });
      }
      return write(...args);
    }) as never);
    try {
      await finetune(run, observer(fill));
      return 'no error';
    } catch (error) {
      return `${(error as { code?: string }).code} ${(error as Error).message}`;
    } finally {
      spy.mockRestore();
    }
  }
  const atWriting = (fill: () => void): FinetuneObserver => ({
    phase: (text) => {
      if (text === 'writing') fill();
    },
  });

  it('at the end loses no step: --resume writes the adapter', async () => {
    await finetune(options('whole'));
    expect(left('whole')).toEqual(['whole']);
    const message = await onFullDisk(options('full'), atWriting, true);
    expect(message).toMatch(
      /^ERR_DISK_FULL .*full disk.*All 6 steps are in ".*full\.checkpoint": make room, .*--resume/,
    );
    expect(left('full')).toEqual(['full.checkpoint']);
    const { steps } = await finetune({ ...options('full'), resume: true });
    expect(steps).toBe(6);
    expect(weights('full').equals(weights('whole'))).toBe(true);
    expect(left('full')).toEqual(['full']);
  });

  it('at a checkpoint loses no step', async () => {
    const own = { ...options('early'), saveEvery: 3 };
    const observer = (fill: () => void): FinetuneObserver => ({
      step: ({ step }) => {
        if (step === 3) fill();
      },
    });
    expect(await onFullDisk(own, observer, true)).toMatch(/^ERR_DISK_FULL .*All 3 steps are in/);
    expect(left('early')).toEqual(['early.checkpoint']);
    await finetune({ ...own, resume: true });
    expect(weights('early').equals(weights('whole'))).toBe(true);
  });

  it('and stays full, says so, and leaves nothing', async () => {
    const message = await onFullDisk(options('stuck'), atWriting, false);
    expect(message).toMatch(/^ERR_DISK_FULL .*full disk/);
    expect(message).not.toContain('steps are in');
    expect(left('stuck')).toEqual([]);
  });
});

describe('two runs', () => {
  const args = (out: string, ...more: string[]) => [
    ...['finetune', '--model', inFolder('model'), '--data', inFolder('text'), '--rank', '2'],
    ...[
      '--out',
      inFolder(out),
      '--steps',
      '100000',
      '--seq-len',
      '16',
      '--batch',
      '2',
      '--no-report',
    ],
    ...['--eval-every', '3', '--sample-tokens', '0', '--no-compare', '--save-every', '1', ...more],
  ];

  it('into one folder: the second is refused, and the first does not notice', async () => {
    const first = start(args('both'));
    await first.until('step 3: held-out');
    for (const more of [[], ['--resume']]) {
      const second = await run(args('both', ...more));
      expect(second.stderr).toMatch(
        new RegExp(
          `both" must be written by one run at a time, got process ${first.child.pid} on `,
        ),
      );
      expect(second.code).toBe(3);
    }
    first.child.kill('SIGINT');
    const { code, stderr } = await first.finished;
    expect(code, stderr).toBe(130);
    expect(left('both')).toEqual(['both.checkpoint']);
  });

  it('one after the other was killed: its lock, room and temporary files go', async () => {
    const killed = start(args('gone'));
    await killed.until('step 3: held-out');
    killed.child.kill('SIGKILL');
    await killed.finished;
    expect(left('gone').length).toBeGreaterThan(2);
    // As if it had been killed while it wrote the adapter.
    const [reserve = ''] = left('.gone.checkpoint.');
    fs.mkdirSync(inFolder(reserve.replace('.checkpoint', '')));
    const next = start(args('gone', '--resume'));
    await next.until('held-out');
    next.child.kill('SIGINT');
    const { code, stderr } = await next.finished;
    expect(code, stderr).toBe(130);
    expect(left('gone')).toEqual(['gone.checkpoint']);
  });
});
