/** `lowrank info PATH`: what a checkpoint holds, in words and in JSON. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { checkpointFacts } from '../../lib/cli/inspect/checkpoint-facts.js';
import { describeCheckpoint } from '../../lib/cli/inspect/describe-checkpoint.js';
import { type GgufValue, writeGguf, writeSafetensors } from '../../lib/index.js';
import { codeOf, tempFolder } from '../checkpoint/raw-file.js';
import { requireBuilt, run } from '../finetune/command.js';

beforeAll(requireBuilt);

const golden = path.join(import.meta.dirname, '..', 'golden');
const llama = path.join(golden, 'formats', 'gguf_file', 'llama_q8_0', 'model.gguf');
const sharded = path.join(golden, 'models', 'llama', 'mqa_linear_bias_sharded', 'base');

describe('info PATH', () => {
  it('a GGUF file, in words and in JSON', async () => {
    const plain = await run(['info', llama]);
    expect([plain.code, plain.stderr]).toEqual([0, '']);
    expect(plain.stdout).toBe(
      [
        'format        GGUF version 3, 0.04 MiB',
        'name          M',
        'architecture  llama',
        'quantisation  Q8_0',
        'layers        1',
        'context       128',
        'vocabulary    40',
        'weights       36,032 in 12 tensors, 8.63 bits a weight',
        '',
        'type  tensors  bits a weight  bytes',
        'Q8_0        9           8.50  0.04 MiB',
        'F32         3          32.00  0.00 MiB',
        '',
      ].join('\n'),
    );
    const json = await run(['info', llama, '--json']);
    expect(JSON.parse(json.stdout)).toEqual({
      path: llama,
      kind: 'GGUF version 3',
      name: 'M',
      architecture: 'llama',
      layers: 1,
      context: 128,
      vocabulary: 40,
      quantisation: 'Q8_0',
      files: 1,
      bytes: 40_224,
      tensors: 12,
      elements: 36_032,
      bitsPerWeight: 8.6252,
      types: [
        { type: 'Q8_0', tensors: 9, elements: 35_840, bytes: 38_080, bitsPerWeight: 8.5 },
        { type: 'F32', tensors: 3, elements: 192, bytes: 768, bitsPerWeight: 32 },
      ],
    });
  });

  it('a model folder of shards, and one of its files', () => {
    const facts = checkpointFacts(sharded);
    expect(facts).toMatchObject({
      kind: 'safetensors',
      architecture: 'llama',
      layers: 3,
      context: 64,
      vocabulary: 97,
      files: 4,
      tensors: 51,
      bitsPerWeight: 16,
      types: [{ type: 'BF16', tensors: 51, bitsPerWeight: 16 }],
    });
    expect(facts.quantisation).toBeUndefined();
    expect(facts.types[0]?.bytes).toBe(2 * facts.elements);
    const shard = fs.readdirSync(sharded).find((name) => name.endsWith('.safetensors')) ?? '';
    const one = checkpointFacts(path.join(sharded, shard));
    expect(one).toMatchObject({ kind: 'safetensors', files: 1 });
    expect(one.tensors).toBeLessThan(51);
    expect(one.architecture).toBeUndefined();
  });

  it('a folder of packed weights, of any architecture, says no bits of all weights', () => {
    const folder = tempFolder();
    const tensors = { w: { dtype: 'I32', shape: [2], data: new Int32Array(2) } } as const;
    writeSafetensors(path.join(folder, 'model.safetensors'), tensors);
    const config = {
      model_type: 'mamba',
      vocab_size: '40',
      quantization_config: { quant_method: 'gptq', bits: 4 },
    };
    fs.writeFileSync(path.join(folder, 'config.json'), JSON.stringify(config));
    const facts = checkpointFacts(folder);
    expect(facts).toMatchObject({ architecture: 'mamba', quantisation: 'gptq', elements: 2 });
    expect([facts.bitsPerWeight, facts.vocabulary]).toEqual([null, undefined]);
    expect(describeCheckpoint(facts)).toMatch(/^elements {6}2 in 1 tensor$/m);
  });

  it('takes the vocabulary from the tokens, says what is an adapter, and steers no terminal', () => {
    const folder = tempFolder();
    const write = (name: string, metadata: Record<string, GgufValue>) => {
      const file = path.join(folder, name);
      writeGguf(file, { metadata, tensors: {} });
      return file;
    };
    const facts = checkpointFacts(
      write('a.GGUF', {
        'general.type': { type: 'string', value: 'adapter' },
        'general.name': { type: 'string', value: 'a\u001b[2J\u202eb' },
        'tokenizer.ggml.tokens': { type: 'array', of: 'string', value: ['a', 'b', 'c'] },
      }),
    );
    expect(facts).toMatchObject({ kind: 'GGUF version 3, adapter', vocabulary: 3, tensors: 0 });
    const words = describeCheckpoint(facts);
    expect(words).toMatch(/^name {8}a\\u001b\[2J\\u202eb$/m);
    expect(words).toMatch(/^elements {4}0 in 0 tensors$/m);
  });

  it('refuses what is no checkpoint', async () => {
    const folder = tempFolder();
    expect(codeOf(() => checkpointFacts(path.join(folder, 'none')))).toBe('ERR_FILE_NOT_FOUND');
    expect(codeOf(() => checkpointFacts(folder))).toBe('ERR_FILE_NOT_FOUND');
    const text = path.join(folder, 'a.txt');
    fs.writeFileSync(text, 'x');
    expect(codeOf(() => checkpointFacts(text))).toBe('ERR_UNSUPPORTED');
    const bad = path.join(folder, 'bad.gguf');
    fs.writeFileSync(bad, 'GGUF');
    const { code, stdout, stderr } = await run(['info', bad, '--json']);
    expect([code, stdout]).toEqual([3, '']);
    expect(stderr).toMatch(/^lowrank: openGguf: ".*bad\.gguf": bytes must fit the 0 bytes/);
    const two = await run(['info', bad, bad]);
    expect(two.code).toBe(2);
    expect(two.stderr).toMatch(/takes at most one PATH, got/);
    const both = await run(['info', bad, '--explain', '1x64x64']);
    expect(both.code).toBe(2);
    expect(both.stderr).toMatch(/takes either PATH or --explain/);
  });
});
