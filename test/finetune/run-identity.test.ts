/** `--resume` goes on with the same run alone: every file that it reads and every setting, by name. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { readSafetensors, writeSafetensors } from '../../lib/checkpoint/safetensors.js';
import type { FinetuneOptions } from '../../lib/finetune/finetune-files.js';
import { identityOf } from '../../lib/finetune/run-identity.js';
import { methodNamed } from '../../lib/train/adapter-set.js';
import { requireBuilt, run, start } from './command.js';
import { temporaryFolder } from './setup.js';
import { writeTinyCheckpoint } from './tiny-checkpoint.js';

const folder = temporaryFolder();
const inFolder = (name: string) => path.join(folder, name);
const model = (file: string) => path.join(inFolder('model'), file);
const text = inFolder('text.txt');
const checkpoint = inFolder('out.checkpoint');
const args = (...more: string[]) => [
  ...['finetune', '--model', inFolder('model'), '--data', text, '--out', inFolder('out')],
  ...[
    '--steps',
    '100000',
    '--seq-len',
    '16',
    '--batch',
    '2',
    '--rank',
    '2',
    '--sample-tokens',
    '0',
  ],
  ...['--no-compare', '--no-report', '--eval-every', '3', '--save-every', '1', ...more],
];
const changed = (file: string, change: (json: Record<string, unknown>) => void): void => {
  const json = fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, 'utf8')) : {};
  change(json);
  fs.writeFileSync(file, JSON.stringify(json));
};
const sha = '"[0-9a-f]{64}"';

beforeAll(async () => {
  requireBuilt();
  writeTinyCheckpoint(inFolder('model'));
  const line = (i: number) => `Document ${i} says that ${i} times ${i} is ${i * i}.`;
  fs.writeFileSync(text, Array.from({ length: 40 }, (_, i) => line(i)).join('\n\n'));
  const running = start(args());
  await running.until('step 3: held-out');
  running.child.kill('SIGINT');
  expect((await running.finished).code).toBe(130);
});

/** The files as the run found them, put back after a change. */
async function withChange(change: () => void, body: () => Promise<void>): Promise<void> {
  const kept = inFolder('kept');
  fs.cpSync(inFolder('model'), kept, { recursive: true });
  const [words, state] = [fs.readFileSync(text), fs.readFileSync(checkpoint)];
  try {
    change();
    await body();
    // Refused: the state is as it was.
    expect(fs.readFileSync(checkpoint).equals(state)).toBe(true);
  } finally {
    fs.rmSync(inFolder('model'), { recursive: true });
    fs.renameSync(kept, inFolder('model'));
    fs.writeFileSync(text, words);
  }
}

describe('--resume', () => {
  const cases: [string, () => void, RegExp][] = [
    [
      'tokenizer.json with two tokens exchanged',
      () =>
        changed(model('tokenizer.json'), (json) => {
          const { vocab } = json.model as { vocab: Record<string, number> };
          [vocab.a, vocab.b] = [vocab.b as number, vocab.a as number];
        }),
      new RegExp(`tokenizer\\.json \\(SHA-256\\) ${sha} instead of ${sha}`),
    ],
    [
      'a tokenizer_config.json that was not there',
      () => changed(model('tokenizer_config.json'), (json) => Object.assign(json, { a: 1 })),
      new RegExp(`tokenizer_config\\.json \\(SHA-256\\) left out instead of ${sha}`),
    ],
    [
      'rope_theta of config.json',
      () => changed(model('config.json'), (json) => Object.assign(json, { rope_theta: 777 })),
      /config\.json rope_theta \d+ instead of 777\./,
    ],
    [
      'rms_norm_eps of config.json',
      () => changed(model('config.json'), (json) => Object.assign(json, { rms_norm_eps: 0.01 })),
      /config\.json rms_norm_eps \S+ instead of 0\.01\./,
    ],
    [
      'rope_scaling of config.json, which was not there',
      () =>
        changed(model('config.json'), (json) =>
          Object.assign(json, { rope_scaling: { rope_type: 'linear', factor: 2 } }),
        ),
      /config\.json rope_scaling\.type "default" instead of "linear"\./,
    ],
    [
      'a weight',
      () => {
        const file = model('model.safetensors');
        const { tensors, metadata } = readSafetensors(file);
        (tensors.get('model.norm.weight')?.data as Float32Array)[0] = 0.5;
        writeSafetensors(file, tensors, metadata);
      },
      new RegExp(`model weights \\(SHA-256\\) ${sha} instead of ${sha}`),
    ],
    [
      'a letter of the text',
      () => fs.appendFileSync(text, '!'),
      new RegExp(` text \\(SHA-256\\) ${sha} instead of ${sha}`),
    ],
  ];

  it.each(cases)('refuses %s', async (_, change, message) => {
    await withChange(change, async () => {
      const { code, stderr } = await run(args('--resume'));
      expect(stderr).toMatch(message);
      expect(stderr).toMatch(/out\.checkpoint" must be of this run, got one with /);
      expect(code).toBe(5);
    });
  });

  it('refuses another separator', async () => {
    await withChange(
      () => {},
      async () => {
        const { code, stderr } = await run(args('--resume', '--separator', ' '));
        expect(stderr).toMatch(/separator "\\u000a\\u000a" instead of " "\./);
        expect(code).toBe(5);
      },
    );
  });

  it('goes on where nothing changed', async () => {
    const running = start(args('--resume'));
    await running.until('held-out');
    running.child.kill('SIGINT');
    const { code, stderr } = await running.finished;
    expect(code, stderr).toBe(130);
  });
});

it('a method from a file is part of the run, by its bytes', () => {
  const file = inFolder('mine.mjs');
  const options = {
    format: { format: 'nf4' },
    adapter: { method: methodNamed('test', 'lora'), settings: {}, targets: ['q_proj'] },
    adapterFile: file,
    train: {},
  } as unknown as FinetuneOptions;
  const inputs = { config: {}, weights: '', tokenizer: {}, text: '' };
  const hash = (content: string) => {
    fs.writeFileSync(file, content);
    return identityOf(options, inputs as unknown as Parameters<typeof identityOf>[1])[
      '--adapter file (SHA-256)'
    ];
  };
  expect(hash('export default 1')).toMatch(/^[0-9a-f]{64}$/);
  expect(hash('export default 1')).not.toBe(hash('export default 2'));
});
