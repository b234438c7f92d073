/** The vocabulary of a GGUF file as the `tokenizer.json` that tokenises alike. */

import type { GgufFile } from '../checkpoint/gguf/gguf.js';
import { LowrankError } from '../core/errors.js';
import { printable, printableValue } from '../core/printable.js';
import { byteLevelDecoder, preTokenizers } from './gguf-pre.js';

/** What stands in for a space in vocabularies of SentencePiece. */
export const kSpace = '\u2581';

/** `tokenizer.ggml.token_type`. */
export const tokenTypes = {
  normal: 1,
  unknown: 2,
  control: 3,
  userDefined: 4,
  unused: 5,
  byte: 6,
} as const;

const kKey = 'tokenizer.ggml.';
const kWay = 'Give a folder with the tokenizer.json of the model as --tokenizer';
/** Of a piece of SentencePiece, in UTF-16: real ones have some 100 at most. */
const kMaxPiece = 512;

interface Token {
  readonly id: number;
  readonly text: string;
  readonly type: number;
}

/**
 * The `tokenizer.json` of a vocabulary, as an object.
 *
 * - `gpt2`: byte pairs with the merges of the file, for the ways to cut texts of {@link preTokenizers}.
 * - `llama`: SentencePiece. Its scores become merges, as in transformers: a pair of pieces is merged in the order of what it gives.
 *
 * @throws LowrankError `ERR_UNSUPPORTED` for another kind of vocabulary · `ERR_FILE` if it is malformed
 */
export function ggufTokenizer(op: string, file: GgufFile): object {
  const reader = new VocabularyReader(op, file);
  const model = reader.text('model');
  if (model === 'gpt2') return bytePairs(reader);
  if (model === 'llama') return sentencePieces(reader);
  const got = model === undefined ? 'none' : printable(model);
  return reader.unsupported('model', '"gpt2" or "llama"', got);
}

class VocabularyReader {
  readonly tokens: readonly Token[];

  constructor(
    private readonly op: string,
    private readonly file: GgufFile,
  ) {
    this.tokens = this.text('model') === undefined ? [] : this.#readTokens();
  }

  value(name: string) {
    return this.file.metadata.get(`${kKey}${name}`);
  }

  text(name: string): string | undefined {
    const value = this.value(name)?.value;
    if (value === undefined || typeof value === 'string') return value;
    return this.refuse(name, 'a text', printableValue(value));
  }

  flag(name: string, fallback: boolean): boolean {
    const value = this.value(name)?.value ?? fallback;
    if (typeof value === 'boolean') return value;
    return this.refuse(name, 'true or false', printableValue(value));
  }

  /** A list of texts, all of them UTF-8. */
  texts(name: string): readonly string[] {
    const value = this.value(name);
    if (value?.type !== 'array' || value.of !== 'string') {
      return this.refuse(name, 'a list of texts', value === undefined ? 'none' : value.type);
    }
    const other = value.value.findIndex((text) => typeof text !== 'string');
    if (other >= 0) this.refuse(name, 'texts in UTF-8', `other bytes at ${other}`);
    return value.value as readonly string[];
  }

  /** A list of a number for each token. */
  numbers(name: string): ArrayLike<number> {
    const value = this.value(name);
    const list = value?.type === 'array' ? value.value : undefined;
    if (!(list instanceof Float32Array || list instanceof Int32Array)) {
      return this.refuse(name, 'a list of numbers', value === undefined ? 'none' : 'another value');
    }
    return list;
  }

  refuse(
    name: string,
    expected: string,
    got: string,
    code: 'ERR_FILE' | 'ERR_UNSUPPORTED' = 'ERR_FILE',
  ): never {
    const what = `${printable(this.file.path)}: metadata ${kKey}${name} must be ${expected}`;
    throw new LowrankError(code, `${this.op}: ${what}, got ${got}`, { op: this.op });
  }

  unsupported(name: string, expected: string, got: string): never {
    return this.refuse(name, expected, `${got}. ${kWay}`, 'ERR_UNSUPPORTED');
  }

  #readTokens(): Token[] {
    const texts = this.texts('tokens');
    const types = this.value('token_type') === undefined ? undefined : this.numbers('token_type');
    if (types !== undefined && types.length !== texts.length) {
      this.refuse('token_type', `a list of ${texts.length} numbers`, `${types.length} of them`);
    }
    const seen = new Set<string>();
    return texts.map((text, id) => {
      if (seen.has(text)) this.refuse('tokens', 'all different', `${printable(text)} twice`);
      seen.add(text);
      return { id, text, type: types?.[id] ?? tokenTypes.normal };
    });
  }
}

/** Special tokens, and those that are found in a text before it is cut. */
const addedTokens = (tokens: readonly Token[]): object[] =>
  tokens
    .filter(({ type }) => type === tokenTypes.control || type === tokenTypes.userDefined)
    .map(({ id, text, type }) => ({
      id,
      content: text,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: type === tokenTypes.control,
    }));

const vocabOf = (tokens: readonly Token[]): object =>
  Object.fromEntries(tokens.map(({ text, id }) => [text, id]));

const kModel = {
  type: 'BPE',
  dropout: null,
  continuing_subword_prefix: null,
  end_of_word_suffix: null,
};

function bytePairs(reader: VocabularyReader): object {
  const pre = reader.text('pre') ?? 'default';
  const known = preTokenizers.find(({ names }) => names.includes(pre));
  if (known === undefined) {
    const names = preTokenizers.map((each) => printable(each.names[0]));
    return reader.unsupported('pre', `one of ${names.join(', ')}`, printable(pre));
  }
  const { tokens } = reader;
  const merges = reader.texts('merges');
  const wrong = merges.find((merge) => !/^\S+ \S+$/.test(merge));
  if (wrong !== undefined) reader.refuse('merges', 'pairs with a space between', printable(wrong));
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: addedTokens(tokens),
    normalizer: known.normalizer,
    pre_tokenizer: known.preTokenizer,
    post_processor: null,
    decoder: byteLevelDecoder,
    model: {
      ...kModel,
      unk_token: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: known.ignoreMerges,
      vocab: vocabOf(tokens.filter(({ type }) => type === tokenTypes.normal)),
      merges,
    },
  };
}

function sentencePieces(reader: VocabularyReader): object {
  const { tokens } = reader;
  const scores = reader.numbers('scores');
  if (scores.length !== tokens.length) {
    reader.refuse('scores', `a list of ${tokens.length} numbers`, `${scores.length} of them`);
  }
  const prefix = reader.flag('add_space_prefix', true);
  const spaces = { type: 'Replace', pattern: { String: ' ' }, content: kSpace };
  const unknown = tokens.find(({ type }) => type === tokenTypes.unknown);
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: addedTokens(tokens),
    normalizer: prefix
      ? { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: kSpace }, spaces] }
      : spaces,
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: kSpace }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(prefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      ...kModel,
      unk_token: unknown?.text ?? null,
      fuse_unk: true,
      byte_fallback: tokens.some(({ type }) => type === tokenTypes.byte),
      ignore_merges: false,
      vocab: vocabOf(tokens),
      merges: mergesOf(reader, scores),
    },
  };
}

/**
 * The merges of pieces: those of higher scores first, of one score the longer left part, of equal parts in the order of the vocabulary.
 */
function mergesOf(reader: VocabularyReader, scores: ArrayLike<number>): string[][] {
  const pieces = reader.tokens.filter(({ type }) => type === tokenTypes.normal);
  for (const { id, text } of pieces) {
    if (text.length > kMaxPiece) {
      const got = `${printable(text.slice(0, 32))}... of ${text.length}`;
      reader.refuse('tokens', `pieces of at most ${kMaxPiece} characters`, got);
    }
    const score = scores[id] as number;
    if (!Number.isFinite(score)) reader.refuse('scores', 'finite', String(score));
  }
  const found = pairsOfPieces(pieces);
  const scoreOf = ({ id }: PiecePair) => scores[id] as number;
  found.sort(
    (a, b) =>
      scoreOf(b) - scoreOf(a) || b.left.length - a.left.length || b.right.length - a.right.length,
  );
  return found.map(({ left, right }) => [left, right]);
}

/** Two pieces whose join is the piece `id`. */
export interface PiecePair {
  readonly left: string;
  readonly right: string;
  readonly id: number;
}

/** All pairs of pieces whose join is a piece, piece by piece. */
export function pairsOfPieces(pieces: readonly Pick<Token, 'id' | 'text'>[]): PiecePair[] {
  const ids = new Map(pieces.map(({ text, id }) => [text, id]));
  const idOf = (part: string) => ids.get(part) as number;
  const found: PiecePair[] = [];
  for (const { id, text } of pieces) {
    const own: PiecePair[] = [];
    for (let cut = 1; cut < text.length; cut++) {
      const [left, right] = [text.slice(0, cut), text.slice(cut)];
      if (ids.has(left) && ids.has(right)) own.push({ left, right, id });
    }
    own.sort((a, b) => idOf(a.left) - idOf(b.left) || idOf(a.right) - idOf(b.right));
    for (const each of own) found.push(each);
  }
  return found;
}
