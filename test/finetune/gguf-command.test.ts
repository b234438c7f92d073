/** `lowrank finetune` and `lowrank generate` on a GGUF file, and its adapter in GGUF. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { openGguf, readPeftAdapter } from '../../lib/index.js';
import { type GgufCase, u32, writeModel } from '../model/gguf/made-model.js';
import { bytePairs } from '../model/gguf/made-vocabulary.js';
import { requireBuilt, run } from './command.js';
import { temporaryFolder } from './setup.js';
import { writeTinyCheckpoint } from './tiny-checkpoint.js';

const folder = temporaryFolder();
const inFolder = (name: string) => path.join(folder, name);

const sizes: GgufCase = {
  id: '',
  architecture: 'llama',
  keys: {
    context_length: u32(64),
    embedding_length: u32(32),
    feed_forward_length: u32(64),
    block_count: u32(2),
    'attention.head_count': u32(4),
    'attention.head_count_kv': u32(2),
  },
};

const short = [
  '--steps',
  '10',
  '--seq-len',
  '16',
  '--batch',
  '2',
  '--lr',
  '0.05',
  '--dtype',
  'f32',
];
const quick = [
  '--no-compare',
  '--no-report',
  '--sample-tokens',
  '0',
  '--eval-every',
  '0',
  '--json',
];
const finetune = (model: string, out: string, ...more: string[]) =>
  run([
    'finetune',
    '--model',
    inFolder(model),
    '--data',
    inFolder('text'),
    '--out',
    inFolder(out),
    ...short,
    ...quick,
    ...more,
  ]);

beforeAll(() => {
  requireBuilt();
  writeTinyCheckpoint(inFolder('folder'), { hiddenSize: 32, intermediateSize: 64, headDim: 8 });
  const typeOf = (name: string) =>
    name === 'output.weight' ? 'F32' : name.includes('ffn') ? 'Q4_0' : 'Q8_0';
  const vocabulary = bytePairs(path.join(inFolder('folder'), 'tokenizer.json'), 260, 'gpt-2');
  writeModel(inFolder('model.gguf'), inFolder('folder'), sizes, typeOf, vocabulary);
  const ids = vocabulary.filter(([key]) => key.endsWith('_id'));
  writeModel(inFolder('bare.gguf'), inFolder('folder'), sizes, typeOf, ids);
  const line = (i: number) => `Document ${i} says that ${i} times ${i} is ${i * i}.`;
  fs.writeFileSync(inFolder('text'), Array.from({ length: 40 }, (_, i) => line(i)).join('\n\n'));
});

describe('a GGUF file as a base', () => {
  it('is trained on with its own vocabulary, and its adapter goes to llama.cpp and back', async () => {
    const made = await finetune('model.gguf', 'adapter');
    expect([made.code, made.stderr]).toEqual([0, '']);
    const { lossBefore, lossAfter, layouts } = JSON.parse(made.stdout);
    expect(lossAfter).toBeLessThan(0.9 * lossBefore);
    expect(layouts).toEqual(['Q8_0', 'Q4_0']);
    const adapter = readPeftAdapter(inFolder('adapter'));
    expect(adapter.modules.map(({ module }) => module)).toContain(
      'model.layers.1.self_attn.k_proj',
    );
    expect(adapter.config.baseModelNameOrPath).toBe(inFolder('model.gguf'));

    const args = ['convert', inFolder('adapter'), inFolder('adapter.gguf'), '--base'];
    const converted = await run([...args, inFolder('model.gguf'), '--json']);
    expect([converted.code, converted.stderr]).toEqual([0, '']);
    const gguf = openGguf(inFolder('adapter.gguf'));
    expect(gguf.info('blk.1.attn_k.weight.lora_b')).toMatchObject({ shape: [16, 8] });
    expect(gguf.names()).toHaveLength(28);
  });

  it('with another tokenizer gives the bytes of its own, which says alike', async () => {
    const tokenizer = ['--tokenizer', inFolder('folder')];
    const made = await finetune('bare.gguf', 'other', ...tokenizer);
    expect([made.code, made.stderr]).toEqual([0, '']);
    const weights = (name: string) =>
      fs.readFileSync(path.join(inFolder(name), 'adapter_model.safetensors'));
    expect(Buffer.compare(weights('other'), weights('adapter'))).toBe(0);
    const vocabulary = await finetune('bare.gguf', 'third', '--tokenizer', inFolder('model.gguf'));
    expect(vocabulary.code, vocabulary.stderr).toBe(0);
    expect(Buffer.compare(weights('third'), weights('adapter'))).toBe(0);
  });

  it('says what is missing', async () => {
    const bare = await finetune('bare.gguf', 'none');
    expect([bare.code, bare.stdout]).toEqual([3, '']);
    expect(bare.stderr).toContain(
      'bare.gguf" must hold a vocabulary, got a file without one. Give a folder',
    );
    const wrong = await finetune('bare.gguf', 'none', '--tokenizer', folder);
    expect(wrong.stderr).toContain('must hold tokenizer.json, got a folder without one');
    const none = await finetune('none.gguf', 'none');
    expect([none.code, none.stderr.includes('none.gguf')]).toEqual([3, true]);
    expect(fs.existsSync(inFolder('none'))).toBe(false);
  });

  it('is planned before it is read', async () => {
    const plan = await finetune('model.gguf', 'adapter', '--dry-run');
    const { architecture, memory } = JSON.parse(plan.stdout);
    expect(architecture).toBe('llama');
    // The embedding is decoded; all else is as in the file.
    const embedding = openGguf(inFolder('model.gguf')).info('token_embd.weight')
      ?.byteLength as number;
    const stored = openGguf(inFolder('bare.gguf'))
      .names()
      .reduce(
        (sum, name) => sum + (openGguf(inFolder('bare.gguf')).info(name)?.byteLength as number),
        0,
      );
    expect(memory.base).toBe(stored - embedding + 4 * 260 * 32);
  });

  it('goes on with a text', async () => {
    const args = [
      'generate',
      '--model',
      inFolder('model.gguf'),
      '--prompt',
      'To be',
      '--tokens',
      '8',
    ];
    const same = ['--temperature', '0', '--dtype', 'f32', '--json'];
    const plain = JSON.parse((await run([...args, ...same])).stdout);
    const adapted = await run([...args, ...same, '--adapter', inFolder('adapter')]);
    expect(adapted.stderr).toBe('');
    expect(JSON.parse(adapted.stdout).ids).not.toEqual(plain.ids);
    const bare = args.map((each) => each.replace('model.gguf', 'bare.gguf'));
    const other = await run([...bare, ...same, '--tokenizer', inFolder('folder')]);
    expect(JSON.parse(other.stdout).ids).toEqual(plain.ids);
    const without = await run([...bare, ...same]);
    expect([without.code, without.stdout]).toEqual([3, '']);
  });
});
