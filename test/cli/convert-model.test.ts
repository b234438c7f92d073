/** `lowrank convert` of models: values, configurations and vocabularies there and back, and what is rejected. */

import fs from 'node:fs';
import path from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { beforeAll, describe, expect, it } from 'vitest';
import { exactGguf } from '../../lib/checkpoint/gguf/quantize/exact.js';
import { folderToGguf } from '../../lib/cli/convert/folder-to-gguf.js';
import { convertToFolder, ggufToFolder } from '../../lib/cli/convert/gguf-to-folder.js';
import { ggufToGguf } from '../../lib/cli/convert/requantize-gguf.js';
import {
  type GgufType,
  ggufToPlanar,
  openGguf,
  openGgufModel,
  openHfModel,
  planarToFloat32,
  rawToFloat32,
} from '../../lib/index.js';
import { tensorShapes } from '../../lib/model/decoder-tensors.js';
import { ggufTokenizer } from '../../lib/text/gguf-tokenizer.js';
import { ggufVocabulary } from '../../lib/text/gguf-vocabulary.js';
import { codeOf, tempFolder } from '../checkpoint/raw-file.js';
import { requireBuilt, run } from '../finetune/command.js';
import { writeTinyCheckpoint } from '../finetune/tiny-checkpoint.js';
import { folderOf, type GgufCase, ggufCases, metadataOf } from '../model/gguf/made-model.js';
import { bytePairs, readJson, sentencePieces } from '../model/gguf/made-vocabulary.js';
import { exact } from '../oracle.js';

beforeAll(requireBuilt);

const quiet = () => {};
const bundled = path.join(import.meta.dirname, '../../examples/base-model/model');
const quantised = path.join(import.meta.dirname, '../golden/formats/folder');
const places = () => {
  const out = tempFolder();
  return {
    folder: path.join(out, 'folder'),
    file: path.join(out, 'model.gguf'),
    back: path.join(out, 'back'),
  };
};

/** A Llama whose rows every type divides. */
function wideFolder(options: object = {}): string {
  const { folder } = places();
  writeTinyCheckpoint(folder, {
    hiddenSize: 256,
    intermediateSize: 256,
    numHiddenLayers: 1,
    headDim: 64,
    ...options,
  });
  return folder;
}

/** What two Hugging Face models have in common: configuration and every value. */
function sameModel(mine: string, wanted: string, norms = 0): void {
  const [a, b] = [openHfModel(mine), openHfModel(wanted)];
  expect(a.decoder).toEqual(b.decoder);
  for (const name of tensorShapes(b.places).keys()) {
    const [own, other] = [a.readFloat32(name), b.readFloat32(name)];
    if (norms > 0 && name.endsWith('norm.weight')) {
      const most = own.reduce(
        (max, value, i) => Math.max(max, Math.abs(value - (other[i] as number))),
        0,
      );
      expect(most, name).toBeLessThan(norms);
    } else exact(name, own, other);
  }
}

describe('a folder to GGUF and back', () => {
  it.each(ggufCases)('$id', (each) => {
    const { file, back } = places();
    const folder = folderOf(each);
    const facts = folderToGguf.run(folder, file, {}, quiet);
    expect(facts.errors).toEqual([]);
    const hf = openHfModel(folder);
    const gguf = openGgufModel(file);
    const { norm, ...decoder } = gguf.decoder;
    const { norm: own, ...expected } = hf.decoder;
    expect(decoder).toEqual(expected);
    expect(norm).toEqual({ ...own, plusOne: false });
    // The keys that are written by hand for the same model.
    const { metadata } = gguf.file;
    for (const [key, value] of metadataOf(each, own.eps))
      expect(metadata.get(key), key).toEqual(value);
    for (const name of tensorShapes(hf.places).keys()) {
      const dtype = hf.info(name)?.dtype;
      expect(gguf.info(name)?.dtype, name).toBe(hf.info(name)?.shape.length === 1 ? 'F32' : dtype);
    }
    ggufToFolder.run(file, back, {}, quiet);
    // The file has 1 + weight of Gemma's norms, in f32.
    sameModel(back, folder, each.id.startsWith('gemma') ? 2 ** -22 : 0);
    const warned = /window/.test(each.id) && !each.id.startsWith('gemma');
    expect(facts.warnings.some((text) => text.includes('llama.cpp attends to all'))).toBe(warned);
  });

  it('writes shards of a large model', () => {
    const { folder, file, back } = places();
    writeTinyCheckpoint(folder);
    folderToGguf.run(folder, file, {}, quiet);
    convertToFolder(file, back, {}, quiet, 10_000);
    const shards = fs.readdirSync(back).filter((name) => name.endsWith('.safetensors'));
    expect(shards.length).toBeGreaterThan(3);
    expect(shards[0]).toBe(`model-00001-of-${String(shards.length).padStart(5, '0')}.safetensors`);
    sameModel(back, folder);
    expect(openHfModel(back).warnings).toEqual([]);
  });

  it('keeps the vocabulary of byte pairs', () => {
    const { file, back } = places();
    folderToGguf.run(bundled, file, { name: 'tiny' }, quiet);
    const { metadata } = openGguf(file);
    expect(metadata.get('general.name')?.value).toBe('tiny');
    for (const [key, value] of bytePairs(path.join(bundled, 'tokenizer.json'), 1024, 'gpt-2')) {
      expect(metadata.get(key), key).toEqual(value);
    }
    ggufToFolder.run(file, back, {}, quiet);
    sameModel(back, bundled);
    const json = readJson(path.join(back, 'tokenizer.json'));
    expect(json).toEqual(ggufTokenizer('test', openGguf(file)));
    const config = JSON.parse(fs.readFileSync(path.join(back, 'tokenizer_config.json'), 'utf8'));
    expect(config).toMatchObject({ bos_token: '<|endoftext|>', eos_token: '<|endoftext|>' });
    const again = path.join(tempFolder(), 'again.gguf');
    folderToGguf.run(back, again, { name: 'tiny' }, quiet);
    expect(Buffer.compare(fs.readFileSync(again), fs.readFileSync(file))).toBe(0);
  });

  it('keeps the vocabulary of SentencePiece', () => {
    const letters = [...'\u2581abcdet'];
    const joins = ['ab', '\u2581a', 'bc', 'abc', '\u2581ab', 'de', 'cde'];
    const pieces = [...joins, ...letters].map((piece, i): [string, number] => [piece, -i]);
    const made = new Map(sentencePieces(pieces));
    const json = ggufTokenizer('test', { metadata: made, path: 'made' } as never);
    const file = path.join(tempFolder(), 'tokenizer.json');
    fs.writeFileSync(file, JSON.stringify(json));
    const size = 259 + pieces.length;
    const written = ggufVocabulary('test', file, size);
    for (const key of ['model', 'tokens', 'token_type']) {
      expect(written.get(`tokenizer.ggml.${key}`), key).toEqual(made.get(`tokenizer.ggml.${key}`));
    }
    const again = ggufTokenizer('test', { metadata: written, path: 'made' } as never);
    const idsOf = (own: object, input: string) =>
      new Tokenizer(own, {}).encode(input, { add_special_tokens: false }).ids;
    for (const input of ['abcde abc de', 'a  bcd', 'cdeabcab x']) {
      expect(idsOf(again, input)).toEqual(idsOf(json, input));
    }
    // Merges that no scores give.
    const model = (json as { model: { merges: unknown[] } }).model;
    const other = { ...json, model: { ...model, merges: model.merges.slice(1) } };
    fs.writeFileSync(file, JSON.stringify(other));
    expect(() => ggufVocabulary('test', file, size)).toThrow(
      /must merge every two pieces whose join is a piece/,
    );
    expect(() => ggufVocabulary('test', file, 20)).toThrow(
      /ids below the model's vocab_size \(20\), got/,
    );
  });

  it.each<[string, RegExp, (json: Record<string, never>) => object]>([
    [
      'Unigram',
      /must be a tokenizer of byte pairs \(BPE\), got "Unigram"/,
      (json) => ({ ...json, model: { type: 'Unigram', vocab: [] } }),
    ],
    [
      'another way to cut',
      /must cut texts as "gpt-2", "llama-bpe", "qwen2", "smollm"/,
      (json) => ({ ...json, pre_tokenizer: { type: 'Whitespace' } }),
    ],
    [
      'another normalizer',
      /got another pre_tokenizer or normalizer. Convert the model with llama.cpp, or/,
      (json) => ({ ...json, normalizer: { type: 'Lowercase' } }),
    ],
  ])('rejects a tokenizer of %s', (_, message, change) => {
    const { folder, file } = places();
    writeTinyCheckpoint(folder);
    const tokenizer = path.join(folder, 'tokenizer.json');
    fs.writeFileSync(
      tokenizer,
      JSON.stringify(change(JSON.parse(fs.readFileSync(tokenizer, 'utf8')))),
    );
    const convert = () => folderToGguf.run(folder, file, {}, quiet);
    expect(codeOf(convert)).toBe('ERR_UNSUPPORTED');
    expect(convert).toThrow(message);
    expect(fs.existsSync(file)).toBe(false);
    folderToGguf.run(folder, file, { noVocabulary: true }, quiet);
    expect(openGguf(file).metadata.get('tokenizer.ggml.model')?.value).toBe('none');
  });

  it.each<[string, string, Record<string, unknown>, RegExp]>([
    [
      'another scale of scores',
      'gemma2/softcap_window',
      { query_pre_attn_scalar: 24 },
      /query_pre_attn_scalar must be 16, as llama.cpp has it in a GGUF file of gemma2, got 24/,
    ],
    [
      'an activation',
      'qwen3/untied_f32',
      { hidden_act: 'gelu' },
      /hidden_act must be silu in a GGUF file of qwen3, got gelu/,
    ],
    [
      'a rotation of Llama 3.1',
      'qwen3/untied_f32',
      {
        rope_parameters: {
          rope_type: 'llama3',
          factor: 8,
          low_freq_factor: 1,
          high_freq_factor: 4,
          original_max_position_embeddings: 32,
          rope_theta: 1e4,
        },
      },
      /rope_scaling must be of another type in a GGUF file of qwen3, got llama3/,
    ],
  ])('rejects %s', (_, id, config, message) => {
    const each = ggufCases.find((one) => one.id === id) as GgufCase;
    const folder = folderOf({ ...each, config });
    const convert = () => folderToGguf.run(folder, places().file, {}, quiet);
    expect(codeOf(convert)).toBe('ERR_UNSUPPORTED');
    expect(convert).toThrow(message);
  });
});

describe('quantised layers', () => {
  it.each<[string, GgufType | undefined]>([
    // Groups of act-order.
    ['gptq', undefined],
    ['ct_w4a16', 'Q4_0'],
    // A layer of 96 columns, which blocks of 64 do not divide; and scales that are divided.
    ['modelopt_nvfp4', undefined],
    ['ct_nvfp4', undefined],
    ['awq', 'Q5_0'],
    ['bnb_nf4', undefined],
    ['hqq', undefined],
    ['fp8_block', undefined],
    ['ct_fp8_dynamic', undefined],
  ])('%s to GGUF: %s', (name, type) => {
    const { file } = places();
    const folder = path.join(quantised, name);
    const convert = () => folderToGguf.run(folder, file, {}, quiet);
    const hf = openHfModel(folder);
    if (type === undefined) {
      expect(codeOf(convert)).toBe('ERR_UNSUPPORTED');
      expect(convert).toThrow(
        /layer "model.layers.0.(self_attn.[qo]_proj|mlp.down_proj)" must have an exact type in GGUF, got one in .*Give --requantize/,
      );
      expect(fs.existsSync(file)).toBe(false);
      const facts = folderToGguf.run(folder, file, { requantize: 'F32' }, quiet);
      expect(facts.error).toBe(0);
    } else {
      expect(convert().types).toContain(type);
      expect(openGgufModel(file).layouts).toEqual([type]);
    }
    const gguf = openGgufModel(file);
    for (const tensor of tensorShapes(hf.places).keys()) {
      const module = tensor.replace('.weight', '');
      const values =
        gguf.layoutOf(module) === undefined
          ? undefined
          : planarToFloat32(gguf.readQuantized(module).weight);
      const wanted = hf.readFloat32(tensor);
      // Both zeros of e2m1 are +0 in GGUF.
      if (values !== undefined)
        exact(
          tensor,
          values.map((v) => v + 0),
          wanted.map((v) => v + 0),
        );
    }
  });

  it('NVFP4 with a factor that multiplies', () => {
    const model = openHfModel(path.join(quantised, 'modelopt_nvfp4'));
    const { weight } = model.readQuantized('model.layers.0.self_attn.q_proj');
    const made = exactGguf(weight);
    expect([made?.tensor.type, made?.scale?.type]).toEqual(['NVFP4', 'F32']);
    // A divided factor rounds otherwise than a multiplied one.
    const divided = openHfModel(path.join(quantised, 'ct_nvfp4'));
    expect(
      exactGguf(divided.readQuantized('model.layers.0.self_attn.o_proj').weight),
    ).toBeUndefined();
    // A scale that f16 does not hold, and codes that no integer type has.
    const { weight: own } = openHfModel(path.join(quantised, 'ct_w4a16')).readQuantized(
      'model.layers.0.self_attn.q_proj',
    );
    expect(exactGguf(own)?.tensor.type).toBe('Q4_0');
    const plane = rawToFloat32({
      dtype: 'BF16',
      shape: [(own.scale.values as { data: Uint16Array }).data.length],
      data: (own.scale.values as { data: Uint16Array }).data,
    });
    const wide = {
      ...own,
      scale: {
        values: { dtype: 'f32' as const, data: plane.map((value) => value * (1 + 2 ** -20)) },
      },
    };
    expect(exactGguf(wide)).toBeUndefined();
    const half = own.levels.map((level) => level / 2);
    expect(exactGguf({ ...own, levels: half })).toBeUndefined();
  });

  it.each<GgufType>(['Q8_0', 'Q4_0', 'MXFP4'])(
    '%s: to a folder and back with the same blocks',
    (type) => {
      const { file, back } = places();
      folderToGguf.run(wideFolder(), file, { requantize: type }, quiet);
      const facts = ggufToFolder.run(file, back, {}, quiet);
      expect([facts.types, facts.errors]).toEqual([[type], []]);
      const [gguf, hf] = [openGgufModel(file), openHfModel(back)];
      expect(hf.layouts).toHaveLength(1);
      const module = 'model.layers.0.self_attn.k_proj';
      exact(
        module,
        hf.readFloat32(`${module}.weight`).map((v) => v + 0),
        planarToFloat32(gguf.readQuantized(module).weight).map((v) => v + 0),
      );
      // An embedding is not quantised in a folder.
      expect(hf.info('model.embed_tokens.weight')?.dtype).toBe('F32');
      const again = path.join(tempFolder(), 'again.gguf');
      folderToGguf.run(back, again, {}, quiet);
      const [one, two] = [openGguf(file), openGguf(again)];
      for (const name of one.names().filter((each) => each.startsWith('blk.'))) {
        expect(two.info(name), name).toMatchObject({ type: one.info(name)?.type });
        // MXFP4 writes either zero as the first.
        if (type !== 'MXFP4')
          expect(Buffer.compare(two.read(name).data, one.read(name).data), name).toBe(0);
      }
    },
  );

  it('K-quants become floats alone, exactly in f32', () => {
    const { file, back } = places();
    folderToGguf.run(wideFolder(), file, { requantize: 'Q4_K' }, quiet);
    const convert = () => ggufToFolder.run(file, back, {}, quiet);
    expect(codeOf(convert)).toBe('ERR_UNSUPPORTED');
    expect(convert).toThrow(
      /must have its quantised layers in one of Q4_0, Q8_0, MXFP4, got Q4_K. Give --requantize f32/,
    );
    expect(fs.existsSync(back)).toBe(false);
    expect(ggufToFolder.run(file, back, { requantize: 'F32' }, quiet).error).toBe(0);
    const rounded = path.join(tempFolder(), 'bf16');
    const facts = ggufToFolder.run(file, rounded, { requantize: 'BF16' }, quiet);
    expect(facts.error).toBeGreaterThan(1e-4);
    expect(facts.error).toBeLessThan(4e-3);
    expect(facts.errors).toHaveLength(9);
    expect(openHfModel(rounded).info('lm_head.weight')?.dtype).toBe('BF16');
  });

  it('another type keeps the vocabulary and tells what each layer lost', () => {
    const { file } = places();
    folderToGguf.run(wideFolder(), file, {}, quiet);
    const target = path.join(tempFolder(), 'small.gguf');
    const facts = ggufToGguf.run(file, target, { requantize: 'Q4_K' }, quiet);
    const [before, after] = [openGguf(file), openGguf(target)];
    for (const [key, value] of before.metadata) {
      if (key !== 'general.file_type') expect(after.metadata.get(key), key).toEqual(value);
    }
    expect(after.metadata.get('general.file_type')?.value).toBe(14);
    const name = 'blk.0.attn_k.weight';
    const [own, loss] = [before.read(name), facts.errors?.find(({ layer }) => layer === name)];
    const was = new Float32Array(own.data.buffer);
    const is = planarToFloat32(ggufToPlanar(after.read(name)));
    const norm = (values: Float32Array) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));
    const error = norm(was.map((value, i) => value - (is[i] as number))) / norm(was);
    expect(loss?.type).toBe('Q4_K');
    expect(loss?.error).toBeCloseTo(error, 6);
    expect(facts.error).toBeGreaterThan(0.02);
    expect(after.info('output_norm.weight')).toMatchObject({ type: 'F32' });
  });
});

describe('the command', () => {
  const refused = async (args: string[], code: number, message: string) => {
    const done = await run(['convert', ...args]);
    expect(done.stderr).toContain(message);
    expect([done.code, done.stdout, done.stderr.trimEnd().split('\n').length]).toEqual([
      code,
      '',
      1,
    ]);
  };

  it('tells layers and the total, as text and JSON', async () => {
    const { file, back } = places();
    const folder = wideFolder();
    const text = await run(['convert', folder, file, '--requantize', 'q8_0', '--to', 'gguf']);
    expect([text.code, text.stderr]).toEqual([0, '']);
    expect(text.stdout).toMatch(/blk\.0\.ffn_down\.weight +Q8_0 +0\.\d+ %/);
    expect(text.stdout).toMatch(/added error +0\.\d+ % of the weights' norm/);
    const json = await run(['convert', file, back, '--json']);
    expect(JSON.parse(json.stdout)).toMatchObject({
      from: 'GGUF model',
      to: 'Hugging Face folder',
      types: ['Q8_0'],
      errors: [],
    });
    const generated = await run([
      'generate',
      '--model',
      back,
      '--prompt',
      'a',
      '--tokens',
      '4',
      '--json',
    ]);
    expect(JSON.parse(generated.stdout).ids.length).toBeGreaterThan(0);
    expect(fs.readdirSync(path.dirname(file)).sort()).toEqual(['back', 'model.gguf']);
  });

  it('rejects what does not fit', async () => {
    const { file, back } = places();
    const folder = wideFolder();
    await refused([folder, back], 2, 'OUT must be a file with the ending .gguf');
    await refused(
      [folder, file, '--to', 'hf'],
      2,
      '--to must be gguf for a Hugging Face folder, got hf',
    );
    await refused([folder, file, '--to', 'onnx'], 2, '--to must be one of');
    await refused([folder, file, '--requantize', 'q9'], 2, '--requantize must be one of');
    await refused(
      [folder, file, '--base', folder],
      2,
      '--base must be left out for a Hugging Face folder, which becomes a GGUF model',
    );
    expect((await run(['convert', folder, file])).code).toBe(0);
    await refused(
      [file, `${file}.gguf`],
      2,
      '--requantize must be given for a GGUF model that stays one',
    );
    await refused(
      [file, back, '--requantize', 'q4_k'],
      2,
      '--requantize must be f32, f16 or bf16 for a Hugging Face folder',
    );
    await refused([folder, file], 3, 'must be a new file');
    expect(fs.readdirSync(path.dirname(file))).toEqual(['model.gguf']);
  });
});
