/** `lowrank merge MODEL ADAPTER OUT`: bases that are quantised or in GGUF, files beside the weights, and messages. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { ModelTape, scope } from '../../lib/index.js';
import { Decoder } from '../../lib/model/decoder.js';
import { DecoderWeights } from '../../lib/model/decoder-weights.js';
import { openModel } from '../../lib/model/gguf/open-model.js';
import { loadDecoderAdapters } from '../../lib/model/load-adapters.js';
import { requireBuilt, run } from '../finetune/command.js';
import { temporaryFolder } from '../finetune/setup.js';
import { writeTinyCheckpoint } from '../finetune/tiny-checkpoint.js';

const folder = temporaryFolder();
const inFolder = (name: string) => path.join(folder, name);
const lowrank = async (...args: string[]) => {
  const result = await run(args);
  expect(result.code, result.stderr).toBe(0);
  return result;
};

beforeAll(async () => {
  requireBuilt();
  const sizes = { hiddenSize: 64, intermediateSize: 96, headDim: 16 };
  writeTinyCheckpoint(inFolder('model'), {
    ...sizes,
    special: ['<b>'],
    chatTemplate: '{{ messages[0].content }}',
  });
  const line = (i: number) => `Document ${i} says that ${i} times ${i} is ${i * i}.`;
  fs.writeFileSync(
    inFolder('text.txt'),
    Array.from({ length: 40 }, (_, i) => line(i)).join('\n\n'),
  );
  await lowrank(
    ...['finetune', '--model', inFolder('model'), '--data', inFolder('text.txt')],
    ...['--out', inFolder('adapter'), '--steps', '20', '--seq-len', '32', '--lr', '0.02'],
    ...['--no-report', '--no-compare', '--sample-tokens', '0', '--format', 'none'],
  );
});

function logitsAt(file: string, adapter?: string): Float32Array {
  return scope(() => {
    const model = openModel(file);
    const decoder = new Decoder(model.decoder, DecoderWeights.load(model, { device: 'cpu' }));
    const call = adapter === undefined ? {} : loadDecoderAdapters(decoder, adapter);
    const tape = new ModelTape({ recording: false });
    const tokens = { ids: Int32Array.from([68, 111, 99, 32]), B: 1, T: 4 };
    const { features } = decoder.forward(tape, tokens, call);
    return decoder.logits(tape, features, call).tensor.readSync();
  });
}

function apart(a: Float32Array, b: Float32Array): number {
  const scale = Math.max(...a.map(Math.abs));
  return Math.max(...a.map((z, i) => Math.abs(z - (b[i] as number)))) / scale;
}

describe('a merge into a model', () => {
  it('takes a base that is quantised, or a GGUF file, with the values that it has', async () => {
    await lowrank(
      'quantize',
      inFolder('model'),
      inFolder('int4'),
      '--format',
      'int4',
      '--group-size',
      '32',
    );
    await lowrank('quantize', inFolder('model'), inFolder('nf4'), '--format', 'nf4');
    const [q8, dense] = [inFolder('q8.gguf'), inFolder('dense.gguf')];
    await lowrank('convert', inFolder('model'), q8, '--requantize', 'q8_0');
    await lowrank('convert', inFolder('model'), dense);
    for (const base of [inFolder('int4'), inFolder('nf4'), q8, dense]) {
      const expected = logitsAt(base, inFolder('adapter'));
      expect(apart(expected, logitsAt(base))).toBeGreaterThan(0.05);
      for (const name of ['merged', 'merged.gguf']) {
        const out = `${base}-${name}`;
        await lowrank('merge', base, inFolder('adapter'), out, '--format', 'f32');
        expect(apart(expected, logitsAt(out)), out).toBeLessThan(2e-5);
      }
      const config = JSON.parse(
        fs.readFileSync(path.join(`${base}-merged`, 'config.json'), 'utf8'),
      );
      expect(config.quantization_config).toBe(undefined);
      expect(config.torch_dtype).toBe('float32');
    }
  });

  it('has the tokenizer and the template, and generates', async () => {
    const out = inFolder('whole');
    const { stdout } = await lowrank('merge', inFolder('model'), inFolder('adapter'), out);
    expect(stdout).toMatch(
      /architecture +llama\nlayers merged +14\nweights in +bf16\nrounding +0\.1\d+ % of the weights' norm\nwritten to +".*whole"\n$/,
    );
    const file = (name: string) => fs.readFileSync(path.join(out, name), 'utf8');
    const own = (name: string) => fs.readFileSync(path.join(inFolder('model'), name), 'utf8');
    expect(file('tokenizer.json')).toBe(own('tokenizer.json'));
    expect(file('tokenizer_config.json')).toBe(own('tokenizer_config.json'));
    expect(JSON.parse(file('config.json'))).toEqual({
      ...JSON.parse(own('config.json')),
      torch_dtype: 'bfloat16',
    });
    const greedy = ['--prompt', 'Document 3', '--temperature', '0', '--tokens', '12', '--json'];
    const [a, b] = [
      await lowrank('generate', '--model', out, ...greedy),
      await lowrank(
        'generate',
        '--model',
        inFolder('model'),
        '--adapter',
        inFolder('adapter'),
        ...greedy,
      ),
    ];
    expect(JSON.parse(a.stdout).ids.slice(0, 3)).toEqual(JSON.parse(b.stdout).ids.slice(0, 3));
    const gguf = inFolder('whole.gguf');
    const { stdout: told } = await lowrank(
      'merge',
      inFolder('model'),
      inFolder('adapter'),
      gguf,
      '--format',
      'q8_0',
      '--json',
    );
    expect(JSON.parse(told)).toMatchObject({ architecture: 'llama', layers: 14, format: 'q8_0' });
    fs.writeFileSync(inFolder('input'), 'Hi\n');
    const chat = await run(['chat', '--model', gguf, '--tokens', '3'], {
      wrap: `"$@" < ${inFolder('input')}`,
    });
    expect(chat.code, chat.stderr).toBe(0);
  });

  it.each<[string[], number, RegExp]>([
    [['model', 'adapter'], 2, /takes MODEL, ADAPTER and OUT/],
    [['model', 'adapter', 'model'], 3, /must be a new or empty folder/],
    [
      ['model', 'adapter', 'new', '--by', 'ties'],
      2,
      /--by must be left out for a model and its adapter/,
    ],
    [
      ['model', 'adapter', 'new', '--format', 'q8_0'],
      2,
      /--format must be one of bf16, f16, f32, nf4/,
    ],
    [
      ['model', 'adapter', 'new.gguf', '--format', 'nf4'],
      2,
      /--format must be one of bf16, f16, f32, q4_0/,
    ],
    [
      ['adapter', 'adapter', 'new', '--by', 'linear', '--format', 'f32'],
      2,
      /--format must be left out for adapters alone/,
    ],
    [['model', 'nothing', 'new'], 3, /nothing.*must exist/],
    [['model', 'model', 'new'], 3, /adapter_config\.json" must exist/],
    [['nothing.gguf', 'adapter', 'new'], 3, /nothing\.gguf" must exist/],
  ])('%j is rejected', async (args, code, message) => {
    const given = args.map((arg, i) => (i < 3 ? inFolder(arg) : arg));
    const before = fs.readdirSync(folder).sort();
    const result = await run(['merge', ...given]);
    expect(result.stderr).toMatch(message);
    expect(result.code).toBe(code);
    expect(fs.readdirSync(folder).sort()).toEqual(before);
  });
});
