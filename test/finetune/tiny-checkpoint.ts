/**
 * Random tiny Llama checkpoints in Hugging Face layout: any sizes, grouped-query ratios, tied or
 * untied head, one file or shards, with a byte-level tokenizer.
 */

import fs from 'node:fs';
import path from 'node:path';
import type { RawTensor } from '../../lib/checkpoint/raw-tensor.js';
import { writeSafetensors } from '../../lib/checkpoint/safetensors.js';
import { type LlamaConfig, llamaTensorShapes } from '../../lib/model/llama-config.js';

export interface TinyCheckpointOptions {
  readonly hiddenSize?: number;
  readonly intermediateSize?: number;
  readonly numHiddenLayers?: number;
  readonly numAttentionHeads?: number;
  readonly numKeyValueHeads?: number;
  readonly headDim?: number;
  /** At least 257: the bytes and one end-of-text token. */
  readonly vocabSize?: number;
  readonly tieWordEmbeddings?: boolean;
  readonly maxPositionEmbeddings?: number;
  readonly seed?: number;
  /** Number of files; more than one writes an index. */
  readonly shards?: number;
  readonly dtype?: 'F32' | 'BF16';
  /** Special tokens of the tokenizer behind the end-of-text token; default none. */
  readonly special?: readonly string[];
  /** A chat template for tokenizer_config.json. */
  readonly chatTemplate?: string;
  /** Further or other fields of config.json. */
  readonly config?: Readonly<Record<string, unknown>>;
}

const kEndOfText = 256;

/** Numbers of a linear congruential generator, in (-1, 1). */
export function noise(seed: number): () => number {
  let state = BigInt(seed) * 2n + 1n;
  return () => {
    state = (state * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn;
    return Number(state >> 11n) / 2 ** 52 - 1;
  };
}

/** Writes the folder and returns its configuration. */
export function writeTinyCheckpoint(
  folder: string,
  options: TinyCheckpointOptions = {},
): LlamaConfig {
  const {
    hiddenSize = 24,
    intermediateSize = 40,
    numHiddenLayers = 2,
    numAttentionHeads = 4,
    numKeyValueHeads = 2,
    headDim = 6,
    vocabSize = 260,
    tieWordEmbeddings = false,
    maxPositionEmbeddings = 64,
    seed = 1,
    shards = 1,
    dtype = 'F32',
  } = options;
  const config: LlamaConfig = {
    hiddenSize,
    intermediateSize,
    numHiddenLayers,
    numAttentionHeads,
    numKeyValueHeads,
    headDim,
    vocabSize,
    tieWordEmbeddings,
    maxPositionEmbeddings,
    rmsNormEps: 1e-5,
    ropeTheta: 10_000,
    ropeScaling: { type: 'default' },
    eosTokenIds: [kEndOfText],
  };
  fs.mkdirSync(folder, { recursive: true });
  writeJson(path.join(folder, 'config.json'), {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_size: hiddenSize,
    intermediate_size: intermediateSize,
    num_hidden_layers: numHiddenLayers,
    num_attention_heads: numAttentionHeads,
    num_key_value_heads: numKeyValueHeads,
    head_dim: headDim,
    vocab_size: vocabSize,
    tie_word_embeddings: tieWordEmbeddings,
    max_position_embeddings: maxPositionEmbeddings,
    rms_norm_eps: config.rmsNormEps,
    rope_theta: config.ropeTheta,
    hidden_act: 'silu',
    bos_token_id: kEndOfText,
    eos_token_id: kEndOfText,
    ...options.config,
  });
  writeJson(path.join(folder, 'tokenizer.json'), byteTokenizer(options.special));
  if (options.chatTemplate !== undefined) {
    const own = (token: string) => (options.special?.includes(token) ? token : '<|endoftext|>');
    const tokens = { bos_token: own('<s>'), eos_token: own('</s>') };
    const config = { ...tokens, chat_template: options.chatTemplate };
    writeJson(path.join(folder, 'tokenizer_config.json'), config);
  }
  writeWeights(folder, randomWeights(config, seed, dtype), shards);
  return config;
}

function randomWeights(
  config: LlamaConfig,
  seed: number,
  dtype: 'F32' | 'BF16',
): Map<string, RawTensor> {
  const random = noise(seed);
  const tensors = new Map<string, RawTensor>();
  for (const [name, shape] of llamaTensorShapes(config)) {
    const size = shape.reduce((product, dim) => product * dim, 1);
    const bound = shape.length === 1 ? 0.2 : Math.sqrt(3 / (shape[1] as number));
    const center = shape.length === 1 ? 1 : 0;
    const values = Float32Array.from({ length: size }, () => center + bound * random());
    const bits = new Uint32Array(values.buffer);
    tensors.set(
      name,
      dtype === 'F32'
        ? { dtype, shape, data: values }
        : { dtype, shape, data: Uint16Array.from(bits, (word) => word >>> 16) },
    );
  }
  return tensors;
}

function writeWeights(folder: string, tensors: Map<string, RawTensor>, shards: number): void {
  if (shards === 1) {
    writeSafetensors(path.join(folder, 'model.safetensors'), tensors, { format: 'pt' });
    return;
  }
  const weightMap: Record<string, string> = {};
  const names = [...tensors.keys()];
  const number = (n: number) => String(n).padStart(5, '0');
  for (let shard = 0; shard < shards; shard++) {
    const file = `model-${number(shard + 1)}-of-${number(shards)}.safetensors`;
    const own = names.filter((_, i) => i % shards === shard);
    for (const name of own) weightMap[name] = file;
    const part = new Map(own.map((name) => [name, tensors.get(name) as RawTensor]));
    writeSafetensors(path.join(folder, file), part, { format: 'pt' });
  }
  writeJson(path.join(folder, 'model.safetensors.index.json'), {
    metadata: {},
    weight_map: weightMap,
  });
}

/** Byte-level BPE without merges: one token a byte, as GPT-2 spells bytes. */
function byteTokenizer(special: readonly string[] = []): object {
  const printable = [
    [0x21, 0x7e],
    [0xa1, 0xac],
    [0xae, 0xff],
  ].flatMap(([from, to]) =>
    Array.from({ length: (to as number) - (from as number) + 1 }, (_, i) => (from as number) + i),
  );
  const others = Array.from({ length: 256 }, (_, byte) => byte).filter(
    (byte) => !printable.includes(byte),
  );
  const vocab: Record<string, number> = {};
  for (const byte of printable) vocab[String.fromCharCode(byte)] = byte;
  for (const [i, byte] of others.entries()) vocab[String.fromCharCode(256 + i)] = byte;
  const added = ['<|endoftext|>', ...special];
  for (const [i, content] of added.entries()) vocab[content] = kEndOfText + i;
  const byteLevel = {
    type: 'ByteLevel',
    add_prefix_space: false,
    trim_offsets: true,
    use_regex: true,
  };
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added.map((content, i) => ({
      id: kEndOfText + i,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab,
      merges: [],
    },
  };
}

function writeJson(file: string, value: object): void {
  fs.writeFileSync(file, `${JSON.stringify(value, null, 2)}\n`);
}
