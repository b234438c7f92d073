/** How texts are cut before byte pairs are merged, by `tokenizer.ggml.pre`, as `tokenizer.json` describes it. */

/** Parts of a `tokenizer.json`. */
export interface PreTokenizer {
  /** Names of it in GGUF files. The first is written. */
  readonly names: readonly [string, ...string[]];
  readonly normalizer: object | null;
  readonly preTokenizer: object;
  /** A piece that is a token needs no merges. */
  readonly ignoreMerges: boolean;
  /** llama.cpp begins a text with the begin token where a file does not say. */
  readonly addsBos: boolean;
}

const byteLevel = (use_regex: boolean): object => ({
  type: 'ByteLevel',
  add_prefix_space: false,
  trim_offsets: true,
  use_regex,
});

const split = (regex: string): object => ({
  type: 'Sequence',
  pretokenizers: [
    { type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false },
    byteLevel(false),
  ],
});

const kContractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const words = (digits: string): string =>
  `${kContractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

/** Those that are read and written. */
export const preTokenizers: readonly PreTokenizer[] = [
  {
    names: ['gpt-2'],
    normalizer: null,
    preTokenizer: byteLevel(true),
    ignoreMerges: false,
    addsBos: false,
  },
  {
    names: ['llama-bpe', 'llama3', 'llama-v3'],
    normalizer: null,
    preTokenizer: split(words('\\p{N}{1,3}')),
    ignoreMerges: true,
    addsBos: true,
  },
  {
    names: ['qwen2'],
    normalizer: { type: 'NFC' },
    preTokenizer: split(words('\\p{N}')),
    ignoreMerges: false,
    addsBos: false,
  },
  {
    names: ['smollm'],
    normalizer: null,
    preTokenizer: {
      type: 'Sequence',
      pretokenizers: [{ type: 'Digits', individual_digits: true }, byteLevel(true)],
    },
    ignoreMerges: false,
    addsBos: false,
  },
];

/** The decoder of all of them. */
export const byteLevelDecoder: object = byteLevel(true);
