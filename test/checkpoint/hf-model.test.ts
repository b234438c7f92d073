import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import type { RawTensor } from '../../lib/checkpoint/raw-tensor.js';
import { writeSafetensors } from '../../lib/checkpoint/safetensors.js';
import { openHfModel } from '../../lib/model/hf-model.js';
import { llamaTensorShapes, parseLlamaConfig } from '../../lib/model/llama-config.js';
import { codeOf, tempFolder } from './raw-file.js';

const kConfig = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_size: 12,
  intermediate_size: 20,
  num_hidden_layers: 2,
  num_attention_heads: 3,
  num_key_value_heads: 1,
  rms_norm_eps: 1e-5,
  rope_theta: 5000,
  vocab_size: 7,
  tie_word_embeddings: false,
  max_position_embeddings: 64,
  bos_token_id: 1,
  eos_token_id: [2, 3],
};

const parse = (changes: Record<string, unknown>) => {
  const config = { ...kConfig, ...changes };
  for (const key of Object.keys(config) as (keyof typeof config)[]) {
    if (config[key] === undefined) delete config[key];
  }
  return parseLlamaConfig('test', 'config', config);
};

function weights(config = parse({}), dtype: 'F32' | 'BF16' = 'F32'): Map<string, RawTensor> {
  const tensors = new Map<string, RawTensor>();
  let seed = 0;
  for (const [name, shape] of llamaTensorShapes(config)) {
    const length = shape.reduce((product, dim) => product * dim, 1);
    const data =
      dtype === 'F32'
        ? Float32Array.from({ length }, () => seed++)
        : Uint16Array.from({ length }, () => 0x3f80);
    tensors.set(name, { dtype, shape, data });
  }
  return tensors;
}

function modelFolder(tensors = weights(), config: unknown = kConfig): string {
  const folder = path.join(tempFolder(), 'model');
  fs.mkdirSync(folder);
  fs.writeFileSync(path.join(folder, 'config.json'), JSON.stringify(config));
  writeSafetensors(path.join(folder, 'model.safetensors'), tensors, { format: 'pt' });
  return folder;
}

/** A sharded folder; `change` may damage the index before it is written. */
function shardedFolder(
  change: (index: { weight_map: Record<string, unknown>; metadata: unknown }) => void = () => {},
): string {
  const folder = modelFolder();
  fs.rmSync(path.join(folder, 'model.safetensors'));
  const names = [...weights().keys()];
  const shards = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'];
  const weight_map: Record<string, unknown> = {};
  let total_size = 0;
  for (const [index, shard] of shards.entries()) {
    const part = [...weights()].filter(([name]) => names.indexOf(name) % 2 === index);
    for (const [name, tensor] of part) {
      weight_map[name] = shard;
      total_size += tensor.data.byteLength;
    }
    writeSafetensors(path.join(folder, shard), new Map(part), { format: 'pt' });
  }
  const index = { metadata: { total_size }, weight_map };
  change(index);
  fs.writeFileSync(path.join(folder, 'model.safetensors.index.json'), JSON.stringify(index));
  return folder;
}

describe('config.json', () => {
  it('reads a config and fills in defaults', () => {
    expect(parse({})).toEqual({
      hiddenSize: 12,
      intermediateSize: 20,
      numHiddenLayers: 2,
      numAttentionHeads: 3,
      numKeyValueHeads: 1,
      headDim: 4,
      rmsNormEps: 1e-5,
      ropeTheta: 5000,
      ropeScaling: { type: 'default' },
      vocabSize: 7,
      tieWordEmbeddings: false,
      maxPositionEmbeddings: 64,
      bosTokenId: 1,
      eosTokenIds: [2, 3],
    });
    const bare = parse({
      architectures: undefined,
      num_key_value_heads: null,
      head_dim: 6,
      rms_norm_eps: undefined,
      rope_theta: undefined,
      max_position_embeddings: undefined,
      bos_token_id: null,
      eos_token_id: undefined,
    });
    expect(bare).toMatchObject({
      numKeyValueHeads: 3,
      headDim: 6,
      rmsNormEps: 1e-6,
      ropeTheta: 10_000,
      maxPositionEmbeddings: 2048,
      eosTokenIds: [],
    });
    expect(bare).not.toHaveProperty('bosTokenId');
  });

  it('reads both spellings of rope scaling', () => {
    const llama3 = {
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
    };
    const scaling = {
      type: 'llama3',
      factor: 8,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositionEmbeddings: 8192,
    };
    expect(parse({ rope_scaling: { rope_type: 'llama3', ...llama3 } }).ropeScaling).toEqual(
      scaling,
    );
    const newer = parse({
      rope_theta: undefined,
      rope_parameters: { rope_type: 'llama3', rope_theta: 500_000, ...llama3 },
    });
    expect(newer).toMatchObject({ ropeTheta: 500_000, ropeScaling: scaling });
    expect(parse({ rope_scaling: { type: 'linear', factor: 2 } }).ropeScaling).toEqual({
      type: 'linear',
      factor: 2,
    });
    expect(parse({ rope_parameters: { rope_type: 'default', rope_theta: 7 } }).ropeTheta).toBe(7);
  });

  it.each<[string, Record<string, unknown>]>([
    ['another architecture', { architectures: ['GPT2LMHeadModel'], model_type: 'gpt2' }],
    ['another model type', { architectures: undefined, model_type: 'mistral' }],
    ['attention bias', { attention_bias: true }],
    ['MLP bias', { mlp_bias: true }],
    ['another activation', { hidden_act: 'gelu' }],
    ['yarn', { rope_scaling: { rope_type: 'yarn', factor: 4 } }],
    ['dynamic', { rope_scaling: { type: 'dynamic', factor: 4 } }],
    ['a rope type of escapes', { rope_scaling: { type: '\u001b[2J', factor: 4 } }],
  ])('refuses as unsupported: %s', (_, changes) => {
    expect(codeOf(() => parse(changes))).toBe('ERR_UNSUPPORTED');
  });

  it('names the architecture and what is supported', () => {
    expect(() => parse({ architectures: ['GPT2LMHeadModel'] })).toThrow(
      /LlamaForCausalLM.*GPT2LMHeadModel/,
    );
  });

  it.each<[string, Record<string, unknown>]>([
    ['no architecture at all', { architectures: undefined, model_type: undefined }],
    ['hidden_size missing', { hidden_size: undefined }],
    ['hidden_size 0', { hidden_size: 0 }],
    ['hidden_size negative', { hidden_size: -12 }],
    ['hidden_size fractional', { hidden_size: 12.5 }],
    ['hidden_size text', { hidden_size: '12' }],
    ['hidden_size 2^31', { hidden_size: 2 ** 31 }],
    ['hidden_size not a multiple of the heads', { hidden_size: 13 }],
    ['heads 0', { num_attention_heads: 0 }],
    ['kv heads do not divide', { num_key_value_heads: 2 }],
    ['more kv heads than heads', { num_key_value_heads: 6 }],
    ['odd head_dim', { head_dim: 5 }],
    ['head_dim overflows', { head_dim: 2 ** 31 - 2 }],
    ['layers 0', { num_hidden_layers: 0 }],
    ['layers 10^9', { num_hidden_layers: 1e9 }],
    ['eps 0', { rms_norm_eps: 0 }],
    ['eps as text', { rms_norm_eps: '1e-5' }],
    ['theta negative', { rope_theta: -1 }],
    ['vocab missing', { vocab_size: undefined }],
    ['tie as a number', { tie_word_embeddings: 1 }],
    ['rope_scaling a list', { rope_scaling: [1] }],
    ['factor below 1', { rope_scaling: { type: 'linear', factor: 0.5 } }],
    ['factor missing', { rope_scaling: { type: 'linear' } }],
    [
      'frequencies reversed',
      {
        rope_scaling: { type: 'llama3', factor: 8, low_freq_factor: 4, high_freq_factor: 1 },
      },
    ],
    ['eos negative', { eos_token_id: -1 }],
    ['architectures a number', { architectures: 5 }],
  ])('refuses as malformed: %s', (_, changes) => {
    expect(codeOf(() => parse(changes))).toBe('ERR_FILE');
  });
});

describe('a single-file model', () => {
  it('reads tensors one by one', () => {
    const folder = modelFolder();
    const model = openHfModel(folder);
    const expected = weights();
    expect(model.names().sort()).toEqual([...expected.keys()].sort());
    for (const [name, tensor] of expected) {
      expect(model.info(name)?.shape).toEqual(tensor.shape);
      expect(model.readFloat32(name)).toEqual(tensor.data);
    }
    expect(model.warnings).toEqual([]);
    expect(model.tokenizerPath).toBeUndefined();
    fs.writeFileSync(path.join(folder, 'tokenizer.json'), '{}');
    expect(model.tokenizerPath).toBe(path.join(folder, 'tokenizer.json'));
    expect(codeOf(() => model.read('nope'))).toBe('ERR_FILE');
  });

  it('takes bf16, a tied head, and tensors that the architecture does not use', () => {
    const config = { ...kConfig, tie_word_embeddings: true };
    const tensors = weights(parse({ tie_word_embeddings: true }), 'BF16');
    expect(tensors.has('lm_head.weight')).toBe(false);
    const data = new Float32Array(2);
    tensors.set('model.layers.0.self_attn.rotary_emb.inv_freq', { dtype: 'F32', shape: [2], data });
    const model = openHfModel(modelFolder(tensors, config));
    expect(model.config.tieWordEmbeddings).toBe(true);
    expect(model.readFloat32('model.norm.weight')).toEqual(new Float32Array(12).fill(1));
  });

  it.each<[string, string, (folder: string) => void]>([
    ['no folder', 'ERR_FILE_NOT_FOUND', (f) => fs.rmSync(f, { recursive: true })],
    [
      'a file in its place',
      'ERR_FILE_NOT_FOUND',
      (f) => {
        fs.rmSync(f, { recursive: true });
        fs.writeFileSync(f, '');
      },
    ],
    ['no config', 'ERR_FILE_NOT_FOUND', (f) => fs.rmSync(path.join(f, 'config.json'))],
    ['no weights', 'ERR_FILE_NOT_FOUND', (f) => fs.rmSync(path.join(f, 'model.safetensors'))],
    [
      'pickled weights alone',
      'ERR_PICKLE_REFUSED',
      (f) => fs.renameSync(path.join(f, 'model.safetensors'), path.join(f, 'pytorch_model.bin')),
    ],
    [
      'a pickle behind the name',
      'ERR_PICKLE_REFUSED',
      (f) => fs.writeFileSync(path.join(f, 'model.safetensors'), 'PK\x03\x04 and so on'),
    ],
    ['config cut', 'ERR_FILE', (f) => fs.writeFileSync(path.join(f, 'config.json'), '{"a":')],
    [
      'config with a BOM',
      'ERR_FILE',
      (f) => {
        const file = path.join(f, 'config.json');
        fs.writeFileSync(file, `\ufeff${fs.readFileSync(file)}`);
      },
    ],
    [
      'config with NaN',
      'ERR_FILE',
      (f) => fs.writeFileSync(path.join(f, 'config.json'), '{"hidden_size": NaN}'),
    ],
    ['config an array', 'ERR_FILE', (f) => fs.writeFileSync(path.join(f, 'config.json'), '[]')],
    [
      'config of 5 MB',
      'ERR_FILE',
      (f) => fs.writeFileSync(path.join(f, 'config.json'), `{"a":"${'x'.repeat(5e6)}"}`),
    ],
    [
      'config a folder',
      'ERR_PATH',
      (f) => {
        fs.rmSync(path.join(f, 'config.json'));
        fs.mkdirSync(path.join(f, 'config.json'));
      },
    ],
    [
      'nested a million deep',
      'ERR_FILE',
      (f) => fs.writeFileSync(path.join(f, 'config.json'), '['.repeat(1e6)),
    ],
  ])('says what is wrong: %s', (_, code, damage) => {
    const folder = modelFolder();
    damage(folder);
    expect(codeOf(() => openHfModel(folder))).toBe(code);
  });

  it('refuses missing tensors, wrong shapes and integer weights', () => {
    const damaged = (change: (tensors: Map<string, RawTensor>) => void) => {
      const tensors = weights();
      change(tensors);
      return codeOf(() => openHfModel(modelFolder(tensors)));
    };
    const name = 'model.layers.1.mlp.up_proj.weight';
    expect(damaged((t) => t.delete(name))).toBe('ERR_FILE');
    expect(damaged((t) => t.delete('lm_head.weight'))).toBe('ERR_FILE');
    const data = new Float32Array(240);
    expect(damaged((t) => t.set(name, { dtype: 'F32', shape: [12, 20], data }))).toBe('ERR_FILE');
    expect(damaged((t) => t.set(name, { dtype: 'F32', shape: [240], data }))).toBe('ERR_FILE');
    const ints = new Int32Array(240);
    expect(damaged((t) => t.set(name, { dtype: 'I32', shape: [20, 12], data: ints }))).toBe(
      'ERR_FILE',
    );
    expect(damaged(() => {})).toBe('no error');
  });
});

describe('a sharded model', () => {
  const first = 'model-00001-of-00002.safetensors';

  it('reads tensors of all shards', () => {
    const model = openHfModel(shardedFolder());
    for (const [name, tensor] of weights()) expect(model.readFloat32(name)).toEqual(tensor.data);
    expect(model.warnings).toEqual([]);
  });

  it('only warns about a wrong total_size', () => {
    const model = openHfModel(shardedFolder((index) => (index.metadata = { total_size: 5 })));
    expect(model.warnings).toHaveLength(1);
    expect(model.warnings[0]).toContain('total_size');
  });

  it.each<[string, string, Parameters<typeof shardedFolder>[0]]>([
    ['no weight_map', 'ERR_FILE', (i) => (i.weight_map = undefined as never)],
    ['weight_map a list', 'ERR_FILE', (i) => (i.weight_map = [] as never)],
    ['weight_map empty', 'ERR_FILE', (i) => (i.weight_map = {})],
    ['a number as a shard', 'ERR_FILE', (i) => (i.weight_map.a = 5)],
    [
      '10,001 shards',
      'ERR_FILE',
      (i) => {
        for (let n = 0; n <= 10_000; n++) i.weight_map[`t${n}`] = `s${n}.safetensors`;
      },
    ],
    ['a tensor that no shard holds', 'ERR_FILE', (i) => (i.weight_map.extra = first)],
    [
      'a tensor that the map does not list',
      'ERR_FILE',
      (i) => delete i.weight_map['model.norm.weight'],
    ],
    [
      'a tensor in the other shard',
      'ERR_FILE',
      (i) => {
        const name = Object.keys(i.weight_map).find((n) => i.weight_map[n] !== first) as string;
        i.weight_map[name] = first;
      },
    ],
    ['total_size text', 'ERR_FILE', (i) => (i.metadata = { total_size: '5' })],
    ['total_size negative', 'ERR_FILE', (i) => (i.metadata = { total_size: -5 })],
    ['metadata a list', 'ERR_FILE', (i) => (i.metadata = [1])],
    ['a missing shard', 'ERR_FILE_NOT_FOUND', (i) => (i.weight_map.a = 'none.safetensors')],
    ['traversal', 'ERR_PATH', (i) => (i.weight_map.a = '../x.safetensors')],
    ['absolute', 'ERR_PATH', (i) => (i.weight_map.a = '/etc/passwd')],
    ['NUL', 'ERR_PATH', (i) => (i.weight_map.a = 'x\0')],
    ['backslash', 'ERR_PATH', (i) => (i.weight_map.a = 'a\\b')],
    ['drive letter', 'ERR_PATH', (i) => (i.weight_map.a = 'C:x')],
    ['case-folding collision', 'ERR_PATH', (i) => (i.weight_map.a = first.toUpperCase())],
    ['the folder itself', 'ERR_PATH', (i) => (i.weight_map.a = '.')],
    ['a pickled shard', 'ERR_PICKLE_REFUSED', (i) => (i.weight_map.a = 'pytorch_model.bin')],
  ])('refuses: %s', (_, code, change) => {
    expect(codeOf(() => openHfModel(shardedFolder(change)))).toBe(code);
  });

  it('refuses a tensor that stands in two shards', () => {
    const folder = shardedFolder();
    const name = 'model.norm.weight';
    const norm = weights().get(name) as RawTensor;
    const index = JSON.parse(
      fs.readFileSync(path.join(folder, 'model.safetensors.index.json'), 'utf8'),
    ) as { weight_map: Record<string, string> };
    const other = Object.values(index.weight_map).find(
      (s) => s !== index.weight_map[name],
    ) as string;
    const part = [...weights()].filter(([n]) => index.weight_map[n] === other);
    writeSafetensors(path.join(folder, other), new Map([...part, [name, norm]]));
    expect(codeOf(() => openHfModel(folder))).toBe('ERR_FILE');
  });

  it('refuses shards that are links out of the folder, FIFOs and folders', () => {
    const folder = shardedFolder();
    const shard = path.join(folder, first);
    fs.renameSync(shard, path.join(folder, '..', 'outside.safetensors'));
    fs.symlinkSync('../outside.safetensors', shard);
    expect(codeOf(() => openHfModel(folder))).toBe('ERR_PATH');
    fs.rmSync(shard);
    fs.mkdirSync(shard);
    expect(codeOf(() => openHfModel(folder))).toBe('ERR_PATH');
  });

  it('reads a hub cache, where every file is a link into blobs', () => {
    const source = shardedFolder();
    const repo = path.join(source, '..', 'models--a--b');
    const snapshot = path.join(repo, 'snapshots', 'f00');
    fs.mkdirSync(snapshot, { recursive: true });
    fs.mkdirSync(path.join(repo, 'blobs'));
    for (const [index, name] of fs.readdirSync(source).entries()) {
      fs.renameSync(path.join(source, name), path.join(repo, 'blobs', `sha${index}`));
      fs.symlinkSync(`../../blobs/sha${index}`, path.join(snapshot, name));
    }
    const model = openHfModel(snapshot);
    for (const [name, tensor] of weights()) expect(model.readFloat32(name)).toEqual(tensor.data);
  });
});
