/** GGUF files as models: what a Hugging Face folder of the same weights computes, tensor by tensor and logit by logit. */
import { cpSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { isBlockType } from '../../../lib/checkpoint/gguf/blocks/parts.js';
import {
  type BaseWeight,
  Decoder,
  DecoderWeights,
  dequantize,
  GgufModel,
  type GgufType,
  ggufToFloat32,
  ggufToPlanar,
  HfModel,
  hfToGguf,
  type ModelFiles,
  ModelTape,
  openGgufModel,
  openHfModel,
  openModel,
  planarToFloat32,
  type RawTensor,
  scope,
  writeSafetensors,
} from '../../../lib/index.js';
import type { DecoderLayerConfig } from '../../../lib/model/config/decoder-config.js';
import { linearsOf } from '../../../lib/model/decoder-weights.js';
import { parseDecoderConfig } from '../../../lib/model/read-config.js';
import { tempFolder } from '../../checkpoint/raw-file.js';
import { DEVICES } from '../../conformance/operands.js';
import { writeTinyCheckpoint } from '../../finetune/tiny-checkpoint.js';
import { numbersOf, readTensors } from '../../golden/case-file.js';
import { source } from '../../oracle/inputs.js';
import { exact } from '../../oracle.js';
import { folderOf, type GgufCase, ggufCases, permuted, u32, writeModel } from './made-model.js';

const recorded = join(import.meta.dirname, '../../golden/formats/gguf_file/llama_q8_0');

/** Logits of twelve tokens. */
function logits(model: ModelFiles): Float32Array {
  return scope(() => {
    const weights = DecoderWeights.load(model, { device: 'cpu' });
    const decoder = new Decoder(model.decoder, weights);
    const from = source(5);
    const ids = Int32Array.from({ length: 12 }, () => from.integer(0, model.decoder.vocabSize - 1));
    const tape = new ModelTape({ recording: false });
    const call = { dtype: 'f32' } as const;
    const { features } = decoder.forward(tape, { B: 1, T: 12, ids }, call);
    return decoder.logits(tape, features, call).tensor.readSync() as Float32Array;
  });
}

/** A case of 256 columns, which every type divides. */
const wide: GgufCase = {
  id: '',
  architecture: 'llama',
  keys: {
    context_length: u32(64),
    embedding_length: u32(256),
    feed_forward_length: u32(256),
    block_count: u32(1),
    'attention.head_count': u32(4),
    'attention.head_count_kv': u32(2),
  },
};

function wideFolder(): string {
  const folder = join(tempFolder(), 'wide');
  writeTinyCheckpoint(folder, {
    hiddenSize: 256,
    intermediateSize: 256,
    numHiddenLayers: 1,
    headDim: 64,
    dtype: 'BF16',
  });
  return folder;
}

describe('a GGUF model', () => {
  it.each(ggufCases)('$id: the logits of its folder', (each) => {
    const folder = folderOf(each);
    const file = join(tempFolder(), 'model.gguf');
    writeModel(file, folder, each);
    const [gguf, hf] = [openModel(file), openModel(folder)];
    expect(gguf).toBeInstanceOf(GgufModel);
    expect(hf).toBeInstanceOf(HfModel);
    const { norm, ...decoder } = gguf.decoder;
    const { norm: own, bosTokenId: _, eosTokenIds: __, ...expected } = hf.decoder;
    // The file holds 1 + weight of Gemma's norms; nothing else differs.
    expect({ ...decoder, eosTokenIds: [] }).toEqual({ ...expected, eosTokenIds: [] });
    expect(norm).toEqual({ ...own, plusOne: false });
    expect(gguf.layouts).toEqual([]);
    exact('logits', logits(gguf), logits(hf));
  });

  it('reads weights in bf16 as the folder has them', () => {
    const file = join(tempFolder(), 'model.gguf');
    const folder = wideFolder();
    writeModel(file, folder, wide, () => 'BF16');
    const [gguf, hf] = [openGgufModel(file), openHfModel(folder)];
    for (const name of ['model.layers.0.self_attn.q_proj.weight', 'model.embed_tokens.weight']) {
      const [mine, wanted] = [gguf.read(name), hf.read(name)];
      expect([mine.dtype, mine.shape]).toEqual([wanted.dtype, wanted.shape]);
      exact(name, mine.data as Uint16Array, wanted.data as Uint16Array);
      expect(gguf.info(name)).toEqual(hf.info(name));
    }
    exact('logits', logits(gguf), logits(hf));
  });

  it.each(DEVICES)('%s: recorded weights of llama.cpp in Q8_0', (device) => {
    const golden = readTensors('formats/gguf_file/llama_q8_0.safetensors');
    const model = openGgufModel(join(recorded, 'model.gguf'));
    expect(model.decoder).toEqual(recordedConfig());
    expect(model.layouts).toEqual(['Q8_0']);
    expect(model.tokenizerPath).toBeUndefined();
    using weights = DecoderWeights.load(model, { device });
    const { layers, head, embedding, norm } = weights;
    const linears = [...layers.flatMap(linearsOf), head];
    const places = new Map(linears.map(({ place, w }) => [place.weight.name, w]));
    for (const [key, tensor] of golden) {
      scope(() => {
        const name = key.slice('out.'.length);
        const dense = { 'model.embed_tokens.weight': embedding, 'model.norm.weight': norm }[name];
        const w = dense ?? dequantize(places.get(name) as never, { dtype: 'f32' });
        exact(name, w.readSync(), numbersOf(tensor));
      });
    }
    expect(golden.size).toBe(10);
  });

  const types: readonly GgufType[] = ['Q4_0', 'Q5_1', 'Q8_0', 'Q2_K', 'Q3_K', 'Q4_K', 'Q6_K'];
  const others: readonly GgufType[] = ['IQ4_NL', 'IQ4_XS', 'MXFP4', 'NVFP4', 'TQ2_0'];
  it.each([...types, ...others])(
    '%s: quantised rows of q and k in the order of the folder',
    (type) => {
      const folder = wideFolder();
      const file = join(tempFolder(), 'model.gguf');
      writeModel(file, folder, wide, () => type);
      const model = openGgufModel(file);
      expect(model.layouts).toEqual([type]);
      expect(model.info('model.layers.0.self_attn.q_proj.weight')).toBeUndefined();
      using weights = DecoderWeights.load(model, { device: 'cpu' });
      const linears = weights.layers.flatMap(linearsOf);
      expect(new Set(linears.map(({ w }) => format(w))).size).toBe(1);
      expect(format(linears[0]?.w as BaseWeight)).not.toBe('f32');
      const hf = openHfModel(decodedFolder(model, folder));
      for (const { place, w } of [...linears, weights.head]) {
        scope(() => {
          const values = dequantize(w as never, { dtype: 'f32' }).readSync();
          exact(place.module, values, hf.readFloat32(place.weight.name));
        });
      }
      const [mine, wanted] = [logits(model), logits(hf)];
      const most = wanted.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
      wanted.forEach((value, i) => {
        expect(Math.abs((mine[i] as number) - value)).toBeLessThan(1e-5 * most);
      });
    },
  );

  it('tells of the bytes of every tensor once', () => {
    const file = join(tempFolder(), 'model.gguf');
    writeModel(file, wideFolder(), wide, (name) => (name === 'output.weight' ? 'F32' : 'Q4_K'));
    const model = openGgufModel(file);
    const told: string[] = [];
    using _ = DecoderWeights.load(model, { device: 'cpu', onTensor: (name) => told.push(name) });
    expect(told).toHaveLength(model.file.names().length);
    expect(new Set(told).size).toBe(told.length);
  });
});

/** The decoder of the recorded config.json, which has no ids of special tokens either. */
function recordedConfig() {
  const json = JSON.parse(readFileSync(join(recorded, 'config.json'), 'utf8'));
  return parseDecoderConfig('test', 'config.json', json);
}

const format = (w: BaseWeight): string => ('format' in w ? String(w.format) : w.dtype);

/** The folder with the values that the blocks of a file stand for. */
function decodedFolder(model: GgufModel, folder: string): string {
  const hf = openHfModel(folder);
  const { heads, kvHeads } = (model.decoder.layers[0] as DecoderLayerConfig).attention;
  const tensors = hf.names().map((name): [string, RawTensor] => {
    const tensor = model.file.read(hfToGguf('llama', name)?.name as string);
    const rows = tensor.shape[0] as number;
    let data = isBlockType(tensor.type)
      ? planarToFloat32(ggufToPlanar(tensor))
      : ggufToFloat32(tensor);
    const [, part] = /self_attn\.([qk])_proj/.exec(name) ?? [];
    if (part !== undefined) data = permuted(data, rows, part === 'q' ? heads : kvHeads, 'hf');
    return [name, { dtype: 'F32', shape: tensor.shape, data }];
  });
  const decoded = join(tempFolder(), 'decoded');
  mkdirSync(decoded);
  cpSync(join(folder, 'config.json'), join(decoded, 'config.json'));
  writeSafetensors(join(decoded, 'model.safetensors'), new Map(tensors));
  return decoded;
}
