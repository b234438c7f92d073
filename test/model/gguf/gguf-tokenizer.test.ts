/** Tokenizers from the vocabularies of GGUF files: the ids of the tokenizer.json, and of llama.cpp's way to merge pieces. */
import { join } from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { describe, expect, it } from 'vitest';
import { encodeGguf, type GgufValue, openGguf } from '../../../lib/index.js';
import { ggufTokenizer } from '../../../lib/text/gguf-tokenizer.js';
import { codeOf } from '../../checkpoint/raw-file.js';
import { source } from '../../oracle/inputs.js';
import { text } from './made-model.js';
import {
  bytePairs,
  f32s,
  i32s,
  readJson,
  sentencePieces,
  texts,
  type Vocabulary,
} from './made-vocabulary.js';

const bundled = join(import.meta.dirname, '../../../examples/base-model/model/tokenizer.json');

const opened = (vocabulary: Vocabulary) =>
  openGguf(encodeGguf({ metadata: new Map(vocabulary), tensors: {} }));
const jsonOf = (vocabulary: Vocabulary) => ggufTokenizer('test', opened(vocabulary));
const idsOf = (json: object, input: string): number[] =>
  new Tokenizer(json, { clean_up_tokenization_spaces: false }).encode(input, {
    add_special_tokens: false,
  }).ids;

const kTexts = [
  'Once upon a time, there were 1234567 pigs.',
  "I'VE don't we'll\n\n  two lines\t \r\n and   spaces   ",
  'Köln übergrößen naïve e\u0301 日本語 😀🦙 --- ======= x_y',
  '<|endoftext|>again<|endoftext|>',
  '',
];

describe('byte pairs', () => {
  it('are those of the tokenizer.json', () => {
    const own = readJson(bundled);
    const json = jsonOf(bytePairs(bundled, 1024, 'gpt-2'));
    expect(Object.keys(json)).toEqual(Object.keys(own));
    for (const input of kTexts) expect(idsOf(json, input)).toEqual(idsOf(own, input));
    const { vocab, merges } = (json as typeof own).model;
    expect(Object.keys(vocab)).toHaveLength(1023);
    expect(merges).toHaveLength(own.model.merges.length);
  });

  const cuts = (pre: string, input: string): string[] => {
    const json = jsonOf(bytePairs(bundled, 1024, pre)) as { pre_tokenizer: object };
    const tokenizer = new Tokenizer(json, {}) as unknown as {
      pre_tokenizer: { pre_tokenize_text(text: string, options: object): string[] };
    };
    return tokenizer.pre_tokenizer
      .pre_tokenize_text(input, {})
      .map((part) => part.replaceAll('Ġ', '_'));
  };

  it.each([
    ['gpt-2', ['It', "'", 'S', '_12345', '!!', 'Ċ', 'Ċ', 'a']],
    ['llama-bpe', ['It', "'S", '_', '123', '45', '!!ĊĊ', 'a']],
    ['qwen2', ['It', "'S", '_', '1', '2', '3', '4', '5', '!!ĊĊ', 'a']],
    ['smollm', ['It', "'", 'S', '_', '1', '2', '3', '4', '5', '!!', 'Ċ', 'Ċ', 'a']],
  ])('are cut before they are merged: %s', (pre, expected) => {
    expect(cuts(pre, "It'S 12345!!\n\na")).toEqual(expected);
  });

  it('take composed letters for Qwen2 alone', () => {
    const own = readJson(bundled);
    const idsBy = (pre: string) => idsOf(jsonOf(bytePairs(bundled, 1024, pre)), 'e\u0301');
    expect(idsBy('qwen2')).toEqual(idsOf(own, 'é'));
    expect(idsBy('gpt-2')).toEqual(idsOf(own, 'e\u0301'));
    expect(idsBy('qwen2')).not.toEqual(idsBy('gpt-2'));
  });
});

/** llama.cpp's way: of all neighbours whose join is a piece, those of the highest score, the first of them. */
function merged(
  input: string,
  pieces: ReadonlyMap<string, { id: number; score: number }>,
): number[] {
  const symbols = [...`\u2581${input.replaceAll(' ', '\u2581')}`];
  for (;;) {
    let best = -1;
    let most = Number.NEGATIVE_INFINITY;
    for (let i = 0; i + 1 < symbols.length; i++) {
      const score = pieces.get(`${symbols[i]}${symbols[i + 1]}`)?.score;
      if (score !== undefined && score > most) [best, most] = [i, score];
    }
    if (best < 0) break;
    symbols.splice(best, 2, `${symbols[best]}${symbols[best + 1]}`);
  }
  return symbols.flatMap((symbol) => {
    const id = pieces.get(symbol)?.id;
    return id === undefined ? [...new TextEncoder().encode(symbol)].map((byte) => 3 + byte) : [id];
  });
}

describe('SentencePiece', () => {
  const letters = [...'\u2581abcdeé'];
  const joins = [
    'ab',
    '\u2581a',
    'bc',
    'abc',
    '\u2581ab',
    'de',
    'cde',
    '\u2581\u2581',
    'aé',
    'dea',
    'ee',
    'eee',
  ];
  // Letters have the lowest scores, as trained vocabularies have them.
  const pieces = [...joins, ...letters].map((piece, i): [string, number] => [piece, -i]);
  const known = new Map(pieces.map(([piece, score], i) => [piece, { id: 259 + i, score }]));
  const vocabulary = sentencePieces(pieces);

  it('merges pieces in the order of their scores, and falls back to bytes', () => {
    const json = jsonOf(vocabulary);
    const from = source(3);
    for (let round = 0; round < 300; round++) {
      const length = from.integer(1, 24);
      const input = Array.from({ length }, () => 'abcdeé  z😀'.at(from.integer(0, 8))).join('');
      if (/[\ud800-\udfff]/.test(input)) continue;
      expect(idsOf(json, input), input).toEqual(merged(input, known));
    }
    const tokenizer = new Tokenizer(json, { clean_up_tokenization_spaces: false });
    expect(tokenizer.decode(idsOf(json, 'abc dé z'), { skip_special_tokens: true })).toBe(
      'abc dé z',
    );
  });

  it('finds special tokens before it merges, and has no space in front where the file says so', () => {
    const [s] = idsOf(jsonOf(vocabulary), '<s>');
    expect(s).toBe(1);
    const without = [
      ...vocabulary,
      ['tokenizer.ggml.add_space_prefix', { type: 'bool', value: false }],
    ];
    const ids = idsOf(jsonOf(without as Vocabulary), 'ab');
    expect(ids).toEqual([known.get('ab')?.id]);
    expect(idsOf(jsonOf(vocabulary), 'ab')).toEqual([known.get('\u2581ab')?.id]);
  });
});

describe('a vocabulary is refused', () => {
  const way = 'Give a folder with the tokenizer.json of the model as --tokenizer';
  const changed = (vocabulary: Vocabulary, key: string, value?: GgufValue): Vocabulary => [
    ...vocabulary.filter(([name]) => name !== `tokenizer.ggml.${key}`),
    ...(value === undefined ? [] : [[`tokenizer.ggml.${key}`, value] as const]),
  ];
  const pairs = bytePairs(bundled, 1024, 'gpt-2');
  const pieces = sentencePieces([
    ['ab', 0],
    ['a', -1],
    ['b', -2],
  ]);
  it.each<[string, Vocabulary, string, string]>([
    [
      'no kind',
      changed(pairs, 'model'),
      'ERR_UNSUPPORTED',
      `model must be "gpt2" or "llama", got none. ${way}`,
    ],
    ['another kind', changed(pairs, 'model', text('t5')), 'ERR_UNSUPPORTED', `got "t5". ${way}`],
    [
      'another way to cut',
      changed(pairs, 'pre', text('tekken')),
      'ERR_UNSUPPORTED',
      `pre must be one of "gpt-2", "llama-bpe", "qwen2", "smollm", got "tekken". ${way}`,
    ],
    ['no way to cut', changed(pairs, 'pre'), 'ERR_UNSUPPORTED', 'got "default"'],
    ['no tokens', changed(pairs, 'tokens'), 'ERR_FILE', 'tokens must be a list of texts, got none'],
    [
      'a token twice',
      changed(pairs, 'tokens', texts(['a', 'a'])),
      'ERR_FILE',
      'token_type must be a list of 2 numbers, got 1024',
    ],
    ['no merges', changed(pairs, 'merges'), 'ERR_FILE', 'merges must be a list of texts, got none'],
    [
      'merges of one part',
      changed(pairs, 'merges', texts(['ab'])),
      'ERR_FILE',
      'merges must be pairs with a space between, got "ab"',
    ],
    [
      'bytes',
      changed(pairs, 'tokens', { type: 'array', of: 'string', value: [Uint8Array.of(255)] }),
      'ERR_FILE',
      'tokens must be texts in UTF-8, got other bytes at 0',
    ],
    [
      'no scores',
      changed(pieces, 'scores'),
      'ERR_FILE',
      'scores must be a list of numbers, got none',
    ],
    [
      'scores of others',
      changed(pieces, 'scores', f32s([1])),
      'ERR_FILE',
      'scores must be a list of 262 numbers, got 1 of them',
    ],
    [
      'scores that are not finite',
      changed(pieces, 'scores', f32s(new Array(262).fill(Number.NaN))),
      'ERR_FILE',
      'scores must be finite, got NaN',
    ],
    [
      'a long piece',
      changed(
        changed(changed(pieces, 'tokens', texts(['x'.repeat(600)])), 'token_type', i32s([1])),
        'scores',
        f32s([0]),
      ),
      'ERR_FILE',
      'pieces of at most 512 characters',
    ],
    [
      'a flag that is none',
      changed(pieces, 'add_space_prefix', text('yes')),
      'ERR_FILE',
      'add_space_prefix must be true or false',
    ],
  ])('%s', (_, vocabulary, code, message) => {
    const call = () => jsonOf(vocabulary);
    expect(codeOf(call)).toBe(code);
    expect(call).toThrow(message);
  });

  it('whose tokens are not all different', () => {
    const twice = changed(changed(pieces, 'tokens', texts(['a', 'a'])), 'token_type');
    expect(() => jsonOf(twice)).toThrow('tokens must be all different, got "a" twice');
  });
});
