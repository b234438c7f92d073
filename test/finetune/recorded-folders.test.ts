/** `lowrank finetune` on every quantised folder and GGUF file that other libraries wrote: the loss falls. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { readPeftAdapter } from '../../lib/index.js';
import { requireBuilt, run } from './command.js';
import { temporaryFolder } from './setup.js';

const recorded = path.join(import.meta.dirname, '..', 'golden', 'formats');
const folders = path.join(recorded, 'folder');
const names = fs
  .readdirSync(folders)
  .filter((name) => fs.existsSync(path.join(folders, name, 'config.json')));
const temporary = temporaryFolder();
const inFolder = (name: string) => path.join(temporary, name);

/** The models have 40 tokens and no tokenizer: letters, digits, and four more. */
function tokenizer(): unknown {
  const tokens = [...'abcdefghijklmnopqrstuvwxyz0123456789', 'Ġ', 'Ċ', '.', '<|end|>'];
  const byteLevel = {
    type: 'ByteLevel',
    add_prefix_space: false,
    trim_offsets: true,
    use_regex: true,
  };
  return {
    version: '1.0',
    added_tokens: [{ id: 39, content: '<|end|>', special: true }],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: {
      type: 'BPE',
      unk_token: null,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: [],
    },
  };
}

const finetune = (model: string, out: string) =>
  run([
    'finetune',
    ...['--model', model, '--tokenizer', inFolder('tokenizer'), '--data', inFolder('text.txt')],
    ...['--out', inFolder(out), '--steps', '12', '--seq-len', '16', '--batch', '2', '--lr', '0.05'],
    ...['--no-compare', '--no-report', '--sample-tokens', '0', '--eval-every', '0', '--json'],
  ]);

beforeAll(() => {
  requireBuilt();
  fs.mkdirSync(inFolder('tokenizer'));
  fs.writeFileSync(inFolder('tokenizer/tokenizer.json'), JSON.stringify(tokenizer()));
  const line = (i: number) => `row ${i} says that ${i} times ${i} is ${i * i}.`;
  fs.writeFileSync(
    inFolder('text.txt'),
    Array.from({ length: 40 }, (_, i) => line(i)).join('\n\n'),
  );
});

describe('a base that another library quantised', () => {
  it('is recorded for every layout', () => {
    expect(names).toHaveLength(10);
  });

  const bases = [
    ...names.map((name) => [name, path.join(folders, name)] as const),
    ['llama_q8_0', path.join(recorded, 'gguf_file', 'llama_q8_0', 'model.gguf')] as const,
  ];
  it.each(bases)('%s', async (name, base) => {
    const made = await finetune(base, name);
    if (name === 'gptoss_mxfp4') {
      // The recorded file has one layer's experts and nothing else of the model.
      expect([made.code, made.stdout]).toEqual([3, '']);
      expect(made.stderr).toContain('must hold tensor model.layers.0.input_layernorm.weight [64]');
      return;
    }
    expect(made.code, made.stderr).toBe(0);
    const { lossBefore, lossAfter } = JSON.parse(made.stdout);
    expect(lossAfter).toBeLessThan(0.95 * lossBefore);
    expect(readPeftAdapter(inFolder(name)).modules.length).toBeGreaterThan(0);
  });
});
