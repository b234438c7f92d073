/** Vocabularies of GGUF files. */
import { readFileSync } from 'node:fs';
import type { GgufValue } from '../../../lib/index.js';
import { text, u32 } from './made-model.js';

export const texts = (value: readonly string[]): GgufValue => ({
  type: 'array',
  of: 'string',
  value,
});
export const i32s = (value: readonly number[]): GgufValue => ({
  type: 'array',
  of: 'i32',
  value: Int32Array.from(value),
});
export const f32s = (value: readonly number[]): GgufValue => ({
  type: 'array',
  of: 'f32',
  value: Float32Array.from(value),
});

export type Vocabulary = (readonly [string, GgufValue])[];

interface TokenizerJson {
  readonly added_tokens: readonly { id: number; content: string; special: boolean }[];
  readonly model: {
    readonly vocab: Record<string, number>;
    readonly merges: readonly (string | string[])[];
  };
}

export const readJson = (file: string): TokenizerJson => JSON.parse(readFileSync(file, 'utf8'));

/** A byte-level tokenizer.json as llama.cpp's converter writes it, with every id up to the size of the embedding. */
export function bytePairs(file: string, size: number, pre: string): Vocabulary {
  const { model, added_tokens } = readJson(file);
  const added = new Map(added_tokens.map((token) => [token.id, token]));
  const byId = new Map(Object.entries(model.vocab).map(([token, id]) => [id, token]));
  const tokens = Array.from(
    { length: size },
    (_, id) => added.get(id)?.content ?? byId.get(id) ?? `[PAD${id}]`,
  );
  const types = Array.from({ length: size }, (_, id) =>
    added.has(id) ? (added.get(id)?.special === true ? 3 : 4) : byId.has(id) ? 1 : 5,
  );
  const merges = model.merges.map((merge) => (typeof merge === 'string' ? merge : merge.join(' ')));
  const [first = 0] = added.keys();
  return [
    ['tokenizer.ggml.model', text('gpt2')],
    ['tokenizer.ggml.pre', text(pre)],
    ['tokenizer.ggml.tokens', texts(tokens)],
    ['tokenizer.ggml.token_type', i32s(types)],
    ['tokenizer.ggml.merges', texts(merges)],
    ['tokenizer.ggml.bos_token_id', u32(first)],
    ['tokenizer.ggml.eos_token_id', u32(first)],
  ];
}

/** Bytes, and pieces with their scores. */
export function sentencePieces(pieces: readonly (readonly [string, number])[]): Vocabulary {
  const bytes = Array.from(
    { length: 256 },
    (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`,
  );
  const tokens = ['<unk>', '<s>', '</s>', ...bytes, ...pieces.map(([piece]) => piece)];
  const types = [2, 3, 3, ...bytes.map(() => 6), ...pieces.map(() => 1)];
  return [
    ['tokenizer.ggml.model', text('llama')],
    ['tokenizer.ggml.tokens', texts(tokens)],
    [
      'tokenizer.ggml.scores',
      f32s([...new Array(259).fill(0), ...pieces.map(([, score]) => score)]),
    ],
    ['tokenizer.ggml.token_type', i32s(types)],
    ['tokenizer.ggml.bos_token_id', u32(1)],
    ['tokenizer.ggml.eos_token_id', u32(2)],
  ];
}
