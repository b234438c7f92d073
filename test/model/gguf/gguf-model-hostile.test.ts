/** GGUF models whose keys or tensors are missing, contradict each other, or ask for what the library does not compute. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  encodeGguf,
  type GgufTensorSource,
  type GgufValue,
  openGguf,
  openGgufModel,
  openModel,
  writeGguf,
} from '../../../lib/index.js';
import { codeOf, tempFolder } from '../../checkpoint/raw-file.js';
import {
  f32,
  flags,
  folderOf,
  type GgufCase,
  ggufCases,
  text,
  u32,
  writeModel,
} from './made-model.js';

type Parts = { metadata: Map<string, GgufValue>; tensors: Map<string, GgufTensorSource> };

/** The parts of a recorded case's file. */
function partsOf(id: string): Parts {
  const each = ggufCases.find((one) => one.id === id) as GgufCase;
  const file = join(tempFolder(), 'model.gguf');
  writeModel(file, folderOf(each), each);
  const opened = openGguf(file);
  return { metadata: new Map(opened.metadata), tensors: new Map(opened.tensors()) };
}

/** Opens a file with other parts. */
function openChanged(id: string, change: (parts: Parts) => void): () => unknown {
  const parts = partsOf(id);
  change(parts);
  const file = join(tempFolder(), 'changed.gguf');
  writeGguf(file, parts);
  return () => openGgufModel(file);
}

const zeros = (shape: number[]): GgufTensorSource => ({
  type: 'F32',
  shape,
  data: new Float32Array(shape.reduce((a, b) => a * b, 1)),
});
const array = (value: Int32Array<ArrayBuffer>): GgufValue => ({ type: 'array', of: 'i32', value });

const kLlama = 'llama/mha_untied_f32';

describe('openGgufModel refuses', () => {
  it.each<[string, string, string, RegExp, (parts: Parts) => void]>([
    [
      kLlama,
      'no architecture',
      'ERR_FILE',
      /general.architecture must be in the file, got none/,
      ({ metadata }) => metadata.delete('general.architecture'),
    ],
    [
      kLlama,
      'another architecture',
      'ERR_UNSUPPORTED',
      /must be llama, qwen2, qwen3, phi3, gemma2 or gemma3, got "mamba"/,
      ({ metadata }) => metadata.set('general.architecture', text('mamba')),
    ],
    [
      kLlama,
      'an adapter',
      'ERR_FILE',
      /must be a model, got an adapter/,
      ({ metadata }) => metadata.set('general.type', text('adapter')),
    ],
    [
      kLlama,
      'a part',
      'ERR_UNSUPPORTED',
      /split.count must be 1, got 3: a part. Join the parts/,
      ({ metadata }) => metadata.set('split.count', { type: 'u16', value: 3 }),
    ],
    [
      kLlama,
      'no depth',
      'ERR_FILE',
      /metadata llama.block_count must be in the file, got none. Convert/,
      ({ metadata }) => metadata.delete('llama.block_count'),
    ],
    [
      kLlama,
      'no epsilon',
      'ERR_FILE',
      /llama.attention.layer_norm_rms_epsilon must be in the file/,
      ({ metadata }) => metadata.delete('llama.attention.layer_norm_rms_epsilon'),
    ],
    [
      kLlama,
      'no heads',
      'ERR_FILE',
      /llama.attention.head_count must be in the file/,
      ({ metadata }) => metadata.delete('llama.attention.head_count'),
    ],
    [
      kLlama,
      'a depth of text',
      'ERR_FILE',
      /block_count must be an integer from 1 to 10000, got "2"/,
      ({ metadata }) => metadata.set('llama.block_count', text('2')),
    ],
    [
      kLlama,
      'a huge depth',
      'ERR_FILE',
      /block_count must be an integer from 1 to 10000, got 4294967295/,
      ({ metadata }) => metadata.set('llama.block_count', u32(2 ** 32 - 1)),
    ],
    [
      kLlama,
      'a width by u64',
      'ERR_FILE',
      /embedding_length must be an integer .* got 18446744073709551615/,
      ({ metadata }) =>
        metadata.set('llama.embedding_length', { type: 'u64', value: 2n ** 64n - 1n }),
    ],
    [
      kLlama,
      'key heads that do not divide',
      'ERR_FILE',
      /head_count_kv must be a divisor of attention.head_count \(4\), got 3/,
      ({ metadata }) => metadata.set('llama.attention.head_count_kv', u32(3)),
    ],
    [
      kLlama,
      'heads of other layers',
      'ERR_UNSUPPORTED',
      /head_count must be the same for all layers, got 4 and 2/,
      ({ metadata }) => metadata.set('llama.attention.head_count', array(Int32Array.of(4, 2))),
    ],
    [
      kLlama,
      'heads of too few layers',
      'ERR_FILE',
      /head_count must be one for each of the 2 layers, got 1 of them/,
      ({ metadata }) => metadata.set('llama.attention.head_count', array(Int32Array.of(4))),
    ],
    [
      kLlama,
      'a width that heads do not divide',
      'ERR_FILE',
      /embedding_length must be a multiple of attention.head_count \(3\)/,
      ({ metadata }) => {
        metadata.set('llama.attention.head_count', u32(3));
        metadata.delete('llama.attention.head_count_kv');
      },
    ],
    [
      kLlama,
      'odd heads',
      'ERR_FILE',
      /attention.key_length must be such that heads have an even size/,
      ({ metadata }) => metadata.set('llama.attention.key_length', u32(7)),
    ],
    [
      kLlama,
      'other values',
      'ERR_UNSUPPORTED',
      /value_length must be the size of a key \(8\), got 16/,
      ({ metadata }) => metadata.set('llama.attention.value_length', u32(16)),
    ],
    [
      kLlama,
      'a partial rotation',
      'ERR_UNSUPPORTED',
      /rope.dimension_count must be the size of a head \(8\), got 4/,
      ({ metadata }) => metadata.set('llama.rope.dimension_count', u32(4)),
    ],
    [
      kLlama,
      'experts',
      'ERR_UNSUPPORTED',
      /expert_count must be 0, got 8: experts/,
      ({ metadata }) => metadata.set('llama.expert_count', u32(8)),
    ],
    [
      kLlama,
      'no causality',
      'ERR_UNSUPPORTED',
      /attention.causal must be true, got false/,
      ({ metadata }) => metadata.set('llama.attention.causal', { type: 'bool', value: false }),
    ],
    [
      kLlama,
      'an epsilon that is not finite',
      'ERR_FILE',
      /rms_epsilon must be in \(0, 1\), got/,
      ({ metadata }) => metadata.set('llama.attention.layer_norm_rms_epsilon', f32(Number.NaN)),
    ],
    [
      kLlama,
      'another scaling',
      'ERR_UNSUPPORTED',
      /rope.scaling.type must be "none", "linear", "yarn" or "longrope", got "ntk"/,
      ({ metadata }) => metadata.set('llama.rope.scaling.type', text('ntk')),
    ],
    [
      kLlama,
      'a longrope without lists',
      'ERR_FILE',
      /rope.scaling.type must be beside rope_factors_long.weight/,
      ({ metadata }) => metadata.set('llama.rope.scaling.type', text('longrope')),
    ],
    [
      kLlama,
      'lists of another length',
      'ERR_FILE',
      /tensor rope_freqs.weight must be F32 \[4\], got F32 \[5\]/,
      ({ tensors }) => tensors.set('rope_freqs.weight', zeros([5])),
    ],
    [
      kLlama,
      'a list of zeros',
      'ERR_FILE',
      /rope_freqs.weight must be of positive numbers, got 0/,
      ({ tensors }) => tensors.set('rope_freqs.weight', zeros([4])),
    ],
    [
      'phi3/partial_longrope_short',
      'one list of two',
      'ERR_FILE',
      /must hold rope_factors_long.weight beside rope_factors_short.weight/,
      ({ tensors }) => tensors.delete('rope_factors_long.weight'),
    ],
    [
      kLlama,
      'a missing tensor',
      'ERR_FILE',
      /must hold tensor blk.1.ffn_up.weight \[45, 32\], got no such tensor/,
      ({ tensors }) => tensors.delete('blk.1.ffn_up.weight'),
    ],
    [
      kLlama,
      'a tensor of another shape',
      'ERR_FILE',
      /tensor blk.0.attn_v.weight must be \[32, 32\], as the metadata says, got \[16, 32\]/,
      ({ tensors }) => tensors.set('blk.0.attn_v.weight', zeros([16, 32])),
    ],
    [
      kLlama,
      'integers',
      'ERR_FILE',
      /tensor blk.0.attn_v.weight must be floats or quantised, got I32/,
      ({ tensors }) =>
        tensors.set('blk.0.attn_v.weight', {
          type: 'I32',
          shape: [32, 32],
          data: new Int32Array(1024),
        }),
    ],
    [
      kLlama,
      'a quantised norm',
      'ERR_FILE',
      /tensor output_norm.weight must be F32, F16, BF16, F64, got Q8_0/,
      ({ tensors }) =>
        tensors.set('output_norm.weight', { type: 'Q8_0', shape: [32], data: new Uint8Array(34) }),
    ],
    [
      kLlama,
      'a tensor that it does not use',
      'ERR_UNSUPPORTED',
      /must hold the tensors of llama alone, got "blk.0.attn_q_norm.weight"/,
      ({ tensors }) => tensors.set('blk.0.attn_q_norm.weight', zeros([8])),
    ],
    [
      kLlama,
      'one bias of four',
      'ERR_FILE',
      /must hold tensor blk.0.attn_k.bias \[32\]/,
      ({ tensors }) => tensors.set('blk.0.attn_q.bias', zeros([32])),
    ],
    [
      kLlama,
      'a factor beside a dense weight',
      'ERR_FILE',
      /blk.0.attn_q.weight must be NVFP4 beside blk.0.attn_q.scale, got F32/,
      ({ tensors }) => tensors.set('blk.0.attn_q.scale', zeros([1])),
    ],
    [
      'gemma3/default_rope_f32',
      'a pattern of too few layers',
      'ERR_FILE',
      /sliding_window_pattern must be a number, or a flag for each of the 3 layers/,
      ({ metadata }) => metadata.set('gemma3.attention.sliding_window_pattern', flags([true])),
    ],
  ])('%s with %s', (id, _, code, message, change) => {
    const open = openChanged(id, change);
    expect(codeOf(open)).toBe(code);
    expect(open).toThrow(message);
  });

  it('a path that is no file, and a folder by its ending', () => {
    const folder = tempFolder();
    expect(codeOf(() => openModel(join(folder, 'none.gguf')))).toBe('ERR_FILE_NOT_FOUND');
    expect(codeOf(() => openModel(join(folder, 'none')))).toBe('ERR_FILE_NOT_FOUND');
    expect(codeOf(() => openModel(3 as never))).toBe('ERR_TYPE');
    expect(codeOf(() => openGgufModel(new Uint8Array(3) as never))).toBe('ERR_TYPE');
  });

  it('reads of what is not there', () => {
    const file = join(tempFolder(), 'model.gguf');
    writeGguf(file, partsOf(kLlama));
    const model = openGgufModel(file);
    expect(codeOf(() => model.read('model.norm'))).toBe('ERR_FILE');
    expect(() => model.readQuantized('lm_head')).toThrow(
      /must hold quantised layer "lm_head", got a dense one/,
    );
    expect(codeOf(() => model.read(1 as never))).toBe('ERR_TYPE');
    expect(
      encodeGguf({ metadata: model.file.metadata, tensors: model.file.tensors() }).length,
    ).toBe(model.byteLength);
  });
});

describe('rotations', () => {
  it.each<[string, Record<string, GgufValue>, object]>([
    [
      'yarn',
      {
        'rope.scaling.type': text('yarn'),
        'rope.scaling.factor': f32(4),
        'rope.scaling.original_context_length': u32(16),
      },
      {
        type: 'yarn',
        factor: 4,
        originalMaxPositionEmbeddings: 16,
        attentionFactor: 0.1 * Math.log(4) + 1,
        betaFast: 32,
        betaSlow: 1,
        truncate: true,
      },
    ],
    [
      'yarn with another attention',
      {
        'rope.scaling.type': text('yarn'),
        'rope.scaling.factor': f32(4),
        'rope.scaling.attn_factor': f32(0.5),
      },
      { attentionFactor: 0.5 * (0.1 * Math.log(4) + 1), originalMaxPositionEmbeddings: 64 },
    ],
    [
      'none',
      { 'rope.scaling.type': text('none'), 'rope.scaling.factor': f32(4) },
      { type: 'default' },
    ],
    ['a factor of before its type', { 'rope.scale_linear': f32(4) }, { type: 'linear', factor: 4 }],
    ['a factor of 0', { 'rope.scaling.factor': f32(0) }, { type: 'default' }],
  ])('%s', (_, keys, expected) => {
    const open = openChanged(kLlama, ({ metadata }) => {
      for (const [key, value] of Object.entries(keys)) metadata.set(`llama.${key}`, value);
    });
    const { decoder } = open() as ReturnType<typeof openGgufModel>;
    expect(decoder.layers[0]?.attention.rotary.scaling).toMatchObject(expected);
  });

  it('factors that no Llama 3.1 has are one list for all lengths', () => {
    const list = [1, 1.5, 2, 4];
    const open = openChanged(kLlama, ({ tensors }) =>
      tensors.set('rope_freqs.weight', { type: 'F32', shape: [4], data: Float32Array.from(list) }),
    );
    const { decoder } = open() as ReturnType<typeof openGgufModel>;
    expect(decoder.layers[0]?.attention.rotary.scaling).toEqual({
      type: 'longrope',
      shortFactors: list,
      longFactors: list,
      originalMaxPositionEmbeddings: 64,
      attentionFactor: 1,
    });
  });

  it('the ids of special tokens, and those that a text ends with', () => {
    const open = openChanged(kLlama, ({ metadata }) => {
      metadata.set('tokenizer.ggml.bos_token_id', u32(1));
      metadata.set('tokenizer.ggml.eos_token_id', u32(2));
      metadata.set('tokenizer.ggml.eot_token_id', u32(5));
      metadata.set('tokenizer.ggml.padding_token_id', u32(2 ** 32 - 1));
    });
    const { decoder } = open() as ReturnType<typeof openGgufModel>;
    expect([decoder.bosTokenId, decoder.eosTokenIds]).toEqual([1, [2, 5]]);
    const without = openChanged(kLlama, ({ metadata }) => {
      metadata.set('tokenizer.ggml.bos_token_id', u32(1));
      metadata.set('tokenizer.ggml.add_bos_token', { type: 'bool', value: false });
      metadata.set('tokenizer.ggml.eos_token_id', u32(71));
    });
    const other = (without() as ReturnType<typeof openGgufModel>).decoder;
    expect([other.bosTokenId, other.eosTokenIds]).toEqual([undefined, []]);
  });
});
