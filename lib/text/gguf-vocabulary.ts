/** A `tokenizer.json` as the vocabulary of a GGUF file. */

import { isDeepStrictEqual } from 'node:util';
import { jsonBounds } from '../checkpoint/files/json-bounds.js';
import { type JsonObject, readJsonObject } from '../checkpoint/files/json-file.js';
import type { GgufValue } from '../checkpoint/gguf/values.js';
import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { type PreTokenizer, preTokenizers } from './gguf-pre.js';
import { kSpace, pairsOfPieces, tokenTypes } from './gguf-tokenizer.js';

/** What cannot be written, with a way out. */
const kWay = 'Convert the model with llama.cpp, or leave out the tokenizer with --no-vocabulary';

interface Added {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
}

interface Parsed {
  readonly vocab: ReadonlyMap<string, number>;
  readonly merges: readonly (readonly [string, string])[];
  readonly added: readonly Added[];
  readonly json: JsonObject;
  readonly model: JsonObject;
}

type Refuse = (what: string, code?: 'ERR_FILE' | 'ERR_UNSUPPORTED') => never;

/**
 * The keys of a vocabulary, without the ids of special tokens.
 *
 * - Byte pairs over bytes become `gpt2`, if their texts are cut in one of the ways of {@link preTokenizers}.
 * - Pieces with a byte fallback become `llama`. The scores follow from the merges: llama.cpp merges pieces in the same order.
 *
 * @param size rows of the embedding; ids without a token are unused
 * @throws LowrankError `ERR_UNSUPPORTED` for another kind of tokenizer · `ERR_FILE` if it is malformed
 */
export function ggufVocabulary(op: string, file: string, size: number): Map<string, GgufValue> {
  const refuse: Refuse = (what, code = 'ERR_UNSUPPORTED') => {
    const way = code === 'ERR_UNSUPPORTED' ? `. ${kWay}` : '';
    throw new LowrankError(code, `${op}: ${printable(file)} ${what}${way}`, { op });
  };
  const parsed = parse(readJsonObject(op, file, jsonBounds.tokenizer), size, refuse);
  const { model } = parsed;
  if (model.byte_fallback === true) return pieces(parsed, size, refuse);
  const pre = preTokenizerOf(parsed, refuse);
  const { tokens, types } = tokensOf(parsed, size, () => tokenTypes.normal);
  return new Map<string, GgufValue>([
    ['tokenizer.ggml.model', { type: 'string', value: 'gpt2' }],
    ['tokenizer.ggml.pre', { type: 'string', value: pre.names[0] }],
    ['tokenizer.ggml.tokens', { type: 'array', of: 'string', value: tokens }],
    ['tokenizer.ggml.token_type', { type: 'array', of: 'i32', value: types }],
    [
      'tokenizer.ggml.merges',
      { type: 'array', of: 'string', value: parsed.merges.map((pair) => pair.join(' ')) },
    ],
  ]);
}

const objectOf = (value: unknown): JsonObject | undefined =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as JsonObject)
    : undefined;

function parse(json: JsonObject, size: number, refuse: Refuse): Parsed {
  const model = objectOf(json.model);
  const type = model?.type ?? 'none';
  if (model === undefined || type !== 'BPE') {
    return refuse(`must be a tokenizer of byte pairs (BPE), got ${printable(String(type))}`);
  }
  for (const name of ['continuing_subword_prefix', 'end_of_word_suffix']) {
    if (typeof model[name] === 'string' && model[name] !== '') refuse(`must be without ${name}`);
  }
  const entries = Object.entries(objectOf(model.vocab) ?? {});
  const list = Array.isArray(json.added_tokens) ? (json.added_tokens as unknown[]) : [];
  const added = list.map((each): Added => {
    const { id, content, special } = objectOf(each) ?? {};
    if (typeof content !== 'string') return refuse('must have added_tokens with texts', 'ERR_FILE');
    return { id: id as number, content, special: special === true };
  });
  for (const [token, id] of [...entries, ...added.map(({ content, id }) => [content, id])]) {
    if (Number.isInteger(id) && (id as number) >= 0 && (id as number) < size) continue;
    const expected = `ids below the model's vocab_size (${size})`;
    refuse(`must have ${expected}, got ${String(id)} for ${printable(String(token))}`, 'ERR_FILE');
  }
  const merges = (Array.isArray(model.merges) ? (model.merges as unknown[]) : []).map(
    (merge): [string, string] => {
      const parts = typeof merge === 'string' ? merge.split(' ') : merge;
      const two = Array.isArray(parts) && parts.length === 2;
      if (two && parts.every((part) => typeof part === 'string')) return parts as [string, string];
      return refuse(`must have merges of two parts, got ${printable(String(merge))}`, 'ERR_FILE');
    },
  );
  return { vocab: new Map(entries as [string, number][]), merges, added, json, model };
}

/** A part of a tokenizer.json without what makes no difference for ids. */
function plain(part: unknown): unknown {
  const object = objectOf(part);
  if (object === undefined) return null;
  const { trim_offsets: _, ...rest } = object;
  const lists = ['normalizers', 'pretokenizers'].filter((name) => Array.isArray(rest[name]));
  for (const name of lists) {
    const parts = (rest[name] as unknown[]).map(plain);
    if (parts.length === 0) return null;
    if (parts.length === 1) return parts[0];
    return { ...rest, [name]: parts };
  }
  return rest.type === 'ByteLevel' ? { use_regex: true, ...rest } : rest;
}

function preTokenizerOf({ json, model }: Parsed, refuse: Refuse): PreTokenizer {
  const found = preTokenizers.find(
    ({ normalizer, preTokenizer, ignoreMerges }) =>
      isDeepStrictEqual(plain(json.normalizer), plain(normalizer)) &&
      isDeepStrictEqual(plain(json.pre_tokenizer), plain(preTokenizer)) &&
      (model.ignore_merges ?? false) === ignoreMerges,
  );
  if (found !== undefined) return found;
  const names = preTokenizers.map(({ names: [name] }) => printable(name)).join(', ');
  return refuse(`must cut texts as ${names}, got another pre_tokenizer or normalizer`);
}

/** Every id with its token and type. */
function tokensOf({ vocab, added }: Parsed, size: number, typeOf: (token: string) => number) {
  const tokens = Array.from({ length: size }, (_, id) => `[PAD${id}]`);
  const types = new Int32Array(size).fill(tokenTypes.unused);
  for (const [token, id] of vocab) {
    tokens[id] = token;
    types[id] = typeOf(token);
  }
  for (const { id, content, special } of added) {
    tokens[id] = content;
    types[id] = special ? tokenTypes.control : tokenTypes.userDefined;
  }
  return { tokens, types };
}

const kByte = /^<0x[0-9A-F]{2}>$/;

/** Pieces of SentencePiece: their scores are the places of their first merges, from -1 down. */
function pieces(parsed: Parsed, size: number, refuse: Refuse): Map<string, GgufValue> {
  const { vocab, merges, model } = parsed;
  const prefix = spacePrefix(parsed, refuse);
  const unknown = typeof model.unk_token === 'string' ? model.unk_token : undefined;
  const typeOf = (token: string) => {
    if (kByte.test(token)) return tokenTypes.byte;
    return token === unknown ? tokenTypes.unknown : tokenTypes.normal;
  };
  const { tokens, types } = tokensOf(parsed, size, typeOf);
  const unknownId = unknown === undefined ? undefined : vocab.get(unknown);
  // llama.cpp has one unknown token, which a tokenizer.json also lists as a special one.
  if (unknownId !== undefined) types[unknownId] = tokenTypes.unknown;
  const scores = new Float32Array(size).fill(-merges.length - 1);
  let last = '';
  const seen = new Set<string>();
  for (const [i, [left, right]] of merges.entries()) {
    const piece = left + right;
    const id = vocab.get(piece);
    if (id === undefined)
      refuse(`must have a token for each merge, got none for ${printable(piece)}`, 'ERR_FILE');
    if (piece !== last && seen.has(piece)) {
      refuse(`must merge in the order of pieces, got ${printable(piece)} at two places`);
    }
    if (piece !== last) scores[id as number] = -(i + 1);
    last = piece;
    seen.add(piece);
  }
  const normal = tokens.flatMap((text, id) =>
    types[id] === tokenTypes.normal ? [{ id, text }] : [],
  );
  const wanted = new Set(pairsOfPieces(normal).map(({ left, right }) => `${left} ${right}`));
  const own = new Set(merges.map((pair) => pair.join(' ')));
  const other =
    [...wanted].find((pair) => !own.has(pair)) ?? [...own].find((pair) => !wanted.has(pair));
  if (other !== undefined) {
    refuse(
      `must merge every two pieces whose join is a piece, and no others, got ${printable(other)}`,
    );
  }
  return new Map<string, GgufValue>([
    ['tokenizer.ggml.model', { type: 'string', value: 'llama' }],
    ['tokenizer.ggml.pre', { type: 'string', value: 'default' }],
    ['tokenizer.ggml.tokens', { type: 'array', of: 'string', value: tokens }],
    ['tokenizer.ggml.scores', { type: 'array', of: 'f32', value: scores }],
    ['tokenizer.ggml.token_type', { type: 'array', of: 'i32', value: types }],
    ...(unknownId === undefined
      ? []
      : [['tokenizer.ggml.unknown_token_id', { type: 'u32', value: unknownId }] as const]),
    ['tokenizer.ggml.add_space_prefix', { type: 'bool', value: prefix }],
  ]);
}

/** Does a text get a space in front? Spaces must become a character of their own. */
function spacePrefix({ json }: Parsed, refuse: Refuse): boolean {
  const [normalizer, pre] = [plain(json.normalizer), plain(json.pre_tokenizer)] as JsonObject[];
  const spaces = { type: 'Replace', pattern: { String: ' ' }, content: kSpace };
  const prepend = { type: 'Prepend', prepend: kSpace };
  const both = { type: 'Sequence', normalizers: [prepend, spaces] };
  // Gemma's: no space is left that it could find.
  const split = pre?.type === 'Split' && isDeepStrictEqual(pre.pattern, { String: ' ' });
  if (pre === null || split) {
    if (isDeepStrictEqual(normalizer, both)) return true;
    if (isDeepStrictEqual(normalizer, spaces)) return false;
  }
  const metaspace = pre?.type === 'Metaspace' && pre.replacement === kSpace && pre.split === false;
  if (normalizer === null && metaspace) {
    if (pre.prepend_scheme === 'never') return false;
    if (pre.prepend_scheme === 'first' || pre.prepend_scheme === 'always') return true;
  }
  return refuse(
    'must replace spaces as SentencePiece does, got another normalizer or pre_tokenizer',
  );
}
