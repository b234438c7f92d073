/**
 * A chat fine-tune of each architecture: the model sees the recorded rendering and learns what is marked in it, the loss
 * falls, and what is exported has the logits of the adapter on its base.
 */

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
import {
  type ArchitectureName,
  kFields,
  writeTinyArchitecture,
} from '../finetune/tiny-architecture.js';

const chatFolder = path.join(import.meta.dirname, 'chat');
const read = (name: string) => fs.readFileSync(path.join(chatFolder, name), 'utf8');
interface Recorded {
  readonly text: string;
  readonly spans: readonly (readonly [number, number])[];
}
const renderings = JSON.parse(read('renderings.json')) as Record<string, Record<string, Recorded>>;
const conversations = JSON.parse(read('conversations.json')) as { readonly name: string }[];

/** A template of the folder for each architecture. */
const templates: Readonly<Record<ArchitectureName, string>> = {
  llama: 'headers',
  mistral: 'brackets',
  qwen2: 'marks',
  qwen3: 'thinking',
  phi3: 'marks',
  gemma2: 'renamed',
  gemma3: 'renamed',
  mixtral: 'brackets',
  qwen3_moe: 'thinking',
  gpt_oss: 'headers',
};
/** llama.cpp's names of experts are not written. */
const withoutGguf = ['mixtral', 'qwen3_moe', 'gpt_oss'];
const special = [
  ...['<s>', '</s>', '<|begin|>', '<|end|>', '<|head|>', '<|tail|>', '<|stop|>'],
  ...['<turn>', '</turn>'],
];
const names = ['one turn', 'three turns'];

const folder = temporaryFolder();
const data = path.join(folder, 'chat.jsonl');
beforeAll(() => {
  requireBuilt();
  const chosen = names.map((name) => conversations.find((each) => each.name === name));
  const lines = Array.from({ length: 20 }, (_, i) => JSON.stringify(chosen[i % 2]));
  fs.writeFileSync(data, lines.join('\n'));
});

const prompt = [...Buffer.from('What is'), 257, 258, 10];

/** The logits of a model on disk, with an adapter. */
function logitsAt(file: string, adapter?: string): Float32Array {
  return scope(() => {
    const model = openModel(file);
    const decoder = new Decoder(model.decoder, DecoderWeights.load(model, { device: 'cpu' }));
    const call = adapter === undefined ? {} : loadDecoderAdapters(decoder, adapter);
    const tape = new ModelTape({ recording: false });
    const tokens = { ids: Int32Array.from(prompt), B: 1, T: prompt.length };
    const { features } = decoder.forward(tape, tokens, call);
    return decoder.logits(tape, features, call).tensor.readSync();
  });
}

/** Largest difference, relative to the largest logit. */
function apart(a: Float32Array, b: Float32Array): number {
  const scale = Math.max(...a.map(Math.abs));
  return Math.max(...a.map((z, i) => Math.abs(z - (b[i] as number)))) / scale;
}

describe.each(Object.keys(kFields) as ArchitectureName[])('%s', (name) => {
  const model = path.join(folder, name);
  const out = path.join(folder, `${name}-adapter`);
  const exports = withoutGguf.includes(name)
    ? ['merged:f32']
    : ['merged:f32', 'gguf:f32', 'lora-gguf'];
  const args = (...more: string[]) => [
    ...['finetune', '--model', model, '--data', data, '--out', out, '--seq-len', '320'],
    ...['--batch', '2', '--rank', '4', '--format', 'none', '--lr', '0.02', '--steps', '12'],
    ...['--no-compare', '--no-report', '--sample-tokens', '0', '--device', 'cpu', ...more],
  ];
  beforeAll(() => {
    writeTinyArchitecture(model, name, {
      ...{ special, vocabSize: 272, maxPositionEmbeddings: 512 },
      chatTemplate: read(`${templates[name]}.jinja`),
    });
  });

  it('sees the recorded rendering, with its mask', async () => {
    const { stdout } = await run(args('--show-data', '2', '--json'));
    const { texts } = JSON.parse(stdout) as {
      texts: { parts: { text: string; learned: boolean }[] }[];
    };
    for (const [i, { parts }] of texts.entries()) {
      const recorded = renderings[templates[name]] as Readonly<Record<string, Recorded>>;
      const { text, spans } = recorded[names[i] as string] as Recorded;
      const last = spans.at(-1)?.[1];
      expect(parts.map((part) => part.text).join('')).toBe(text.slice(0, last));
      const learned = parts.filter((part) => part.learned).map((part) => part.text);
      expect(learned).toEqual(spans.map(([begin, end]) => text.slice(begin, end)));
    }
    expect(texts.length).toBe(2);
  });

  it('learns, and its exports have the logits of the adapter on the base', async () => {
    const { stdout, stderr, code } = await run(args('--json', '--export', exports.join()));
    expect(code, stderr).toBe(0);
    const result = JSON.parse(stdout) as {
      readonly lossBefore: number;
      readonly lossAfter: number;
      readonly exported: readonly string[];
    };
    expect(result.lossAfter).toBeLessThan(0.8 * result.lossBefore);
    expect(result.exported.length).toBe(exports.length);
    const expected = logitsAt(model, out);
    expect(apart(expected, logitsAt(model))).toBeGreaterThan(0.05);
    expect(apart(expected, logitsAt(path.join(out, 'merged')))).toBeLessThan(2e-5);
    if (withoutGguf.includes(name)) return;
    expect(apart(expected, logitsAt(path.join(out, 'model.gguf')))).toBeLessThan(2e-5);
    const back = path.join(folder, `${name}-back`);
    const converted = await run([
      ...['convert', path.join(out, 'adapter.gguf'), back, '--base', model],
    ]);
    expect(converted.code, converted.stderr).toBe(0);
    expect(apart(expected, logitsAt(model, back))).toBeLessThan(1e-6);
  });
});

describe.each(['mixtral', 'qwen3_moe', 'gpt_oss'] as const)('experts of %s', (name) => {
  it('merge with LoRA of their own', async () => {
    const model = path.join(folder, `${name}-experts`);
    writeTinyArchitecture(model, name, { vocabSize: 272, maxPositionEmbeddings: 512 });
    const text = path.join(folder, 'text.txt');
    const line = (i: number) => `Document ${i} says that ${i} times ${i} is ${i * i}.`;
    fs.writeFileSync(text, Array.from({ length: 40 }, (_, i) => line(i)).join('\n\n'));
    const out = path.join(folder, `${name}-experts-adapter`);
    const targets = 'v_proj,experts.gate_up_proj,experts.down_proj';
    const { code, stderr } = await run([
      ...['finetune', '--model', model, '--data', text, '--out', out, '--seq-len', '32'],
      ...['--batch', '2', '--rank', '4', '--format', 'none', '--lr', '0.02', '--steps', '8'],
      ...['--no-compare', '--no-report', '--sample-tokens', '0', '--device', 'cpu'],
      ...['--targets', targets, '--export', 'merged:f32'],
    ]);
    expect(code, stderr).toBe(0);
    const expected = logitsAt(model, out);
    expect(apart(expected, logitsAt(model))).toBeGreaterThan(0.05);
    expect(apart(expected, logitsAt(path.join(out, 'merged')))).toBeLessThan(2e-5);
  });
});

describe('an export that is impossible', () => {
  const model = path.join(folder, 'mixtral');
  const out = path.join(folder, 'none');
  it.each([
    [['--export', 'gguf'], 4, /mixtral/],
    [['--export', 'lora-gguf'], 4, /--export lora-gguf must be of a model of llama, .*got mixtral/],
    [['--export', 'lora-gguf', '--adapter', 'dora'], 4, /must be of the method lora, got dora/],
    [['--export', 'onnx'], 2, /--export must be a list of merged, gguf, lora-gguf/],
    [['--export', 'gguf:nf4'], 2, /with a format of bf16, .*got "gguf:nf4"/],
    [['--export', 'lora-gguf:f16'], 2, /--export must be a list/],
  ])('%j is rejected before training', async (more, code, message) => {
    const result = await run([
      ...['finetune', '--model', model, '--data', data, '--out', out, '--seq-len', '320', ...more],
    ]);
    expect(result.stderr).toMatch(message);
    expect(result.code).toBe(code);
    expect(fs.existsSync(out)).toBe(false);
  });
});
