/** Files that the library writes, loaded by llama.cpp: it must compute what the recorded folders do. */
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { peftToGguf } from '../../lib/cli/convert/convert-adapter.js';
import { folderToGguf } from '../../lib/cli/convert/folder-to-gguf.js';
import { mergeIntoModel } from '../../lib/cli/merge/merge-model.js';
import {
  Decoder,
  DecoderWeights,
  type GgufType,
  loadAdapters,
  ModelTape,
  openGguf,
  openModel,
  scope,
  writeGguf,
} from '../../lib/index.js';
import { ggufTokenizer } from '../../lib/text/gguf-tokenizer.js';
import { tempFolder } from '../checkpoint/raw-file.js';
import { writeTinyCheckpoint } from '../finetune/tiny-checkpoint.js';
import { ModelCase } from '../golden/models/cases.js';
import { folderOf, type GgufCase, ggufCases, text, u32 } from '../model/gguf/made-model.js';
import { i32s, sentencePieces, texts } from '../model/gguf/made-vocabulary.js';
import { idsOf, type Llama, nextLogs, openLlama } from './llama.js';

let llama: Llama;
beforeAll(async () => {
  llama = await openLlama();
});
afterAll(() => llama?.dispose());

const quiet = () => {};

/** A file with a vocabulary, which node-llama-cpp needs: a token for each row of the embedding. */
function withVocabulary(path: string): string {
  const file = openGguf(path);
  const size = file.info('token_embd.weight')?.shape[0] as number;
  const tokens = Array.from({ length: size }, (_, id) => String.fromCodePoint(0x4e00 + id));
  const metadata = new Map([
    ...file.metadata,
    ['tokenizer.ggml.model', text('gpt2')] as const,
    ['tokenizer.ggml.pre', text('gpt-2')] as const,
    ['tokenizer.ggml.tokens', texts(tokens)] as const,
    ['tokenizer.ggml.token_type', i32s(new Array(size).fill(1))] as const,
    ['tokenizer.ggml.merges', texts([])] as const,
    ['tokenizer.ggml.eos_token_id', u32(0)] as const,
    ['tokenizer.ggml.bos_token_id', u32(0)] as const,
  ]);
  const named = path.replace('.gguf', '-named.gguf');
  writeGguf(named, { metadata, tensors: file.tensors() });
  return named;
}

/** The logarithms of probabilities after `ids`, here. */
function ours(path: string, ids: readonly number[], adapter?: string): Float64Array {
  return scope(() => {
    const model = openModel(path);
    const decoder = new Decoder(model.decoder, DecoderWeights.load(model, { device: 'cpu' }));
    const adapters = adapter === undefined ? undefined : loadAdapters(decoder, adapter);
    const tape = new ModelTape({ recording: false });
    const call = { dtype: 'f32', ...(adapters === undefined ? {} : { adapters }) } as const;
    const tokens = { B: 1, T: ids.length, ids: Int32Array.from(ids) };
    const { features } = decoder.forward(tape, tokens, call);
    const all = decoder.logits(tape, features, call).tensor.readSync();
    return logs(Float64Array.from(all.slice(-model.decoder.vocabSize) as Float32Array));
  });
}

function logs(logits: Float64Array): Float64Array {
  const most = logits.reduce((a, b) => Math.max(a, b));
  const total = logits.reduce((sum, value) => sum + Math.exp(value - most), 0);
  return logits.map((value) => value - most - Math.log(total));
}

/** The largest difference of logarithms, over every token. */
function difference(theirs: ReadonlyMap<number, number>, mine: Float64Array): number {
  expect(theirs.size).toBe(mine.length);
  return [...theirs].reduce(
    (most, [id, log]) => Math.max(most, Math.abs(log - (mine[id] as number))),
    0,
  );
}

/** llama.cpp looks GELU up in a table of f16. */
const boundOf = (id: string): number => (id.startsWith('gemma') ? 3e-3 : 2e-4);
/** llama.cpp rounds a context up to 256 tokens, and takes the factors of Phi-3 by its length instead of the text's. */
function withLongContext(each: GgufCase, golden: ModelCase): GgufCase {
  const rope = golden.config('v5').rope_parameters as { rope_type?: string };
  if (rope.rope_type !== 'longrope') return each;
  return {
    ...each,
    config: { rope_parameters: { ...rope, original_max_position_embeddings: 256 } },
  };
}

/** A folder whose config names no path of another machine. */
function adapterOf(golden: ModelCase): string {
  const folder = join(tempFolder(), 'adapter');
  cpSync(golden.adapter, folder, { recursive: true });
  const file = join(folder, 'adapter_config.json');
  const config = JSON.parse(readFileSync(file, 'utf8'));
  writeFileSync(file, JSON.stringify({ ...config, base_model_name_or_path: 'base' }));
  return folder;
}

/** llama.cpp ignores the windows of these architectures. */
const short = (id: string, ids: readonly number[]) =>
  /window|mistral/.test(id) ? ids.slice(0, 4) : ids;

describe('a converted model', () => {
  it.each(ggufCases)('$id: probabilities, and those with its adapter', async (each) => {
    const golden = new ModelCase(each.id);
    const bound = boundOf(each.id);
    const folder = folderOf(withLongContext(each, golden));
    const out = tempFolder();
    const [written, adapter] = [join(out, 'model.gguf'), join(out, 'adapter.gguf')];
    folderToGguf.run(folder, written, { requantize: 'F32' }, quiet);
    const file = withVocabulary(written);
    const [, T] = golden.tensor('in.ids').shape as [number, number];
    const ids = short(each.id, [...golden.integers('in.ids')].slice(0, T));
    const plain = await nextLogs(llama, file, ids);
    expect(difference(plain, ours(folder, ids))).toBeLessThan(bound);
    expect(difference(plain, ours(file, ids))).toBeLessThan(bound);
    if (each.config === undefined && !each.id.includes('longrope') && ids.length === T) {
      const V = golden.tensor('out.base_logits').shape.at(-1) as number;
      const recorded = golden.numbers('out.base_logits').slice((T - 1) * V, T * V);
      expect(difference(plain, logs(recorded))).toBeLessThan(0.05);
    }
    const own = adapterOf(golden);
    peftToGguf.run(own, adapter, { base: file }, quiet);
    const adapted = await nextLogs(llama, file, ids, adapter);
    expect(difference(adapted, ours(file, ids, own))).toBeLessThan(bound);
    expect(difference(adapted, ours(file, ids))).toBeGreaterThan(10 * bound);
    const merged = join(out, 'merged.gguf');
    await mergeIntoModel({ model: folder, adapter: own, out: merged, format: 'f32' }, quiet);
    const whole = await nextLogs(llama, withVocabulary(merged), ids);
    expect(difference(whole, ours(folder, ids, own))).toBeLessThan(bound);
  });

  const types: GgufType[] = [
    'Q8_0',
    'Q4_0',
    'Q5_1',
    'Q2_K',
    'Q3_K',
    'Q4_K',
    'Q5_K',
    'Q6_K',
    'IQ4_NL',
    'IQ4_XS',
    'MXFP4',
    'TQ2_0',
    'F16',
    'BF16',
  ];
  it.each(types)('%s: weights that the library quantised', async (type) => {
    const out = tempFolder();
    const [folder, written] = [join(out, 'folder'), join(out, 'model.gguf')];
    writeTinyCheckpoint(folder, {
      hiddenSize: 256,
      intermediateSize: 256,
      numHiddenLayers: 1,
      headDim: 64,
    });
    folderToGguf.run(folder, written, { requantize: type, noVocabulary: true }, quiet);
    const file = withVocabulary(written);
    const ids = [72, 101, 108, 108, 111, 32];
    const theirs = await nextLogs(llama, file, ids);
    // llama.cpp rounds activations to 8 or 16 bits beside such weights.
    expect(difference(theirs, ours(file, ids))).toBeLessThan(0.15);
  });
});

describe('a vocabulary', () => {
  const kTexts = [
    "Once upon a time, there were 12345 pigs.\n\nI'VE don't  ",
    'Köln 日本語 😀 --- x_y',
    '<|endoftext|>again',
  ];

  it('of byte pairs gives the ids of tokenizer.json', async () => {
    const model = join(import.meta.dirname, '../../examples/base-model/model');
    const file = join(tempFolder(), 'model.gguf');
    folderToGguf.run(model, file, {}, quiet);
    const json = ggufTokenizer('test', openGguf(file));
    const tokenizer = new Tokenizer(json, {});
    for (const input of kTexts) {
      const { ids } = tokenizer.encode(input, { add_special_tokens: false });
      expect(await idsOf(llama, file, input), input).toEqual(ids);
    }
  });

  it('of pieces gives the ids of the tokenizer that is made from it', async () => {
    const out = tempFolder();
    const [folder, file, named] = ['folder', 'model.gguf', 'named.gguf'].map((name) =>
      join(out, name),
    ) as [string, string, string];
    mkdirSync(folder);
    const letters = [...'\u2581abcdetnhOup.,o'];
    const joins = [
      'th',
      'he',
      '\u2581t',
      '\u2581th',
      '\u2581the',
      'the',
      'en',
      'ou',
      'ab',
      '\u2581a',
      'ce',
    ];
    const pieces = [...joins, ...letters].map((piece, i): [string, number] => [piece, -i]);
    writeTinyCheckpoint(join(folder, 'model'), {
      vocabSize: 259 + pieces.length,
      hiddenSize: 32,
      intermediateSize: 32,
      headDim: 8,
    });
    cpSync(join(folder, 'model'), folder, { recursive: true });
    folderToGguf.run(folder, file, { noVocabulary: true }, quiet);
    const opened = openGguf(file);
    const metadata = new Map([
      ...opened.metadata,
      ...sentencePieces(pieces),
      ['tokenizer.ggml.pre', text('default')] as const,
    ]);
    writeGguf(named, { metadata, tensors: opened.tensors() });
    const tokenizer = new Tokenizer(ggufTokenizer('test', openGguf(named)), {});
    for (const input of ['the hen, then', ' ce  abet', 'Zoé the']) {
      const { ids } = tokenizer.encode(input, { add_special_tokens: false });
      expect(await idsOf(llama, named, input), input).toEqual(ids);
    }
  });
});
