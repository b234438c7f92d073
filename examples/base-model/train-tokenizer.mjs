// Trains a byte-level BPE tokenizer on pretrain.txt, writes it as a Hugging Face tokenizer.json,
// loads that file with @huggingface/tokenizers, checks that every document survives
// decode(encode(s)), and writes the corpora as token ids for pretrain.py.
//
//   node train-tokenizer.mjs CORPUS_FOLDER MODEL_FOLDER
//
// Reads  CORPUS_FOLDER/{pretrain,finetune}.txt (from extract-corpus.mjs)
// Writes MODEL_FOLDER/{tokenizer,tokenizer_config}.json and CORPUS_FOLDER/{pretrain,finetune}.u16
// No randomness: ties between equally frequent pairs go to the lower token ids.

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';

const VOCAB_SIZE = 1024;
const END_OF_TEXT = '<|endoftext|>';
/** The split that the ByteLevel pre-tokenizer makes with use_regex. */
const WORD = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/** The printable character that stands for each byte: itself, or one from U+0100 on. */
function byteCharacters() {
  const printable = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(printable(b) ? b : next++));
}

/** Vocabulary (id = index) and merges, greedily by pair frequency. */
function trainBpe(text, size) {
  const vocabulary = byteCharacters();
  const merges = [];
  const counts = new Map();
  for (const [word] of text.matchAll(WORD)) counts.set(word, (counts.get(word) ?? 0) + 1);
  const words = [...counts].map(([word, count]) => ({ ids: [...Buffer.from(word)], count }));
  while (vocabulary.length < size) {
    const pairs = new Map();
    for (const { ids, count } of words) {
      for (let i = 0; i + 1 < ids.length; i++) {
        const key = ids[i] * size + ids[i + 1];
        pairs.set(key, (pairs.get(key) ?? 0) + count);
      }
    }
    let best = -1;
    let most = 0;
    for (const [key, count] of pairs) {
      if (count > most || (count === most && key < best)) [best, most] = [key, count];
    }
    const [left, right] = [Math.floor(best / size), best % size];
    const id = vocabulary.push(vocabulary[left] + vocabulary[right]) - 1;
    merges.push(`${vocabulary[left]} ${vocabulary[right]}`);
    for (const { ids } of words) {
      for (let i = 0; i + 1 < ids.length; i++) {
        if (ids[i] === left && ids[i + 1] === right) ids.splice(i, 2, id);
      }
    }
  }
  return { vocabulary, merges };
}

function tokenizerJson({ vocabulary, merges }) {
  const byteLevel = {
    type: 'ByteLevel',
    add_prefix_space: false,
    trim_offsets: true,
    use_regex: true,
  };
  const special = {
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  };
  const id = vocabulary.length;
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [{ id, content: END_OF_TEXT, ...special }],
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
      vocab: Object.fromEntries([...vocabulary, END_OF_TEXT].map((token, index) => [token, index])),
      merges,
    },
  };
}

const [corpusFolder, modelFolder] = process.argv.slice(2);
if (!corpusFolder || !modelFolder) {
  console.error('usage: node train-tokenizer.mjs CORPUS_FOLDER MODEL_FOLDER');
  process.exit(2);
}
const read = (name) => readFileSync(join(corpusFolder, `${name}.txt`), 'utf8');
const json = tokenizerJson(trainBpe(read('pretrain'), VOCAB_SIZE - 1));
const config = {
  tokenizer_class: 'PreTrainedTokenizerFast',
  bos_token: END_OF_TEXT,
  eos_token: END_OF_TEXT,
  clean_up_tokenization_spaces: false,
  model_max_length: 256,
};
writeFileSync(join(modelFolder, 'tokenizer.json'), `${JSON.stringify(json)}\n`);
writeFileSync(join(modelFolder, 'tokenizer_config.json'), `${JSON.stringify(config, null, 2)}\n`);

const load = (name) => JSON.parse(readFileSync(join(modelFolder, name), 'utf8'));
const tokenizer = new Tokenizer(load('tokenizer.json'), load('tokenizer_config.json'));
const roundTrip = (text) => {
  const { ids } = tokenizer.encode(text);
  if (tokenizer.decode(ids) !== text) throw new Error(`no round trip: ${JSON.stringify(text)}`);
  return ids;
};
for (const text of [
  ' a  b\n\n\tc ',
  "it 's , a . b !",
  'na\u00efve \u20ac \u{1f600} \u4f60\u597d',
  '\0\u007f',
]) {
  roundTrip(text);
}
for (const name of ['pretrain', 'finetune']) {
  const text = read(name).trimEnd();
  const ids = text.split('\n\n').flatMap((doc) => [...roundTrip(doc), VOCAB_SIZE - 1]);
  writeFileSync(join(corpusFolder, `${name}.u16`), Uint16Array.from(ids));
  console.log(`${name}: ${text.length} bytes, ${ids.length} tokens, all documents round-trip`);
}
