/** Places in tokens against their definition: the tokens of the text before a place, as far as they agree with the whole. */

import fs from 'node:fs';
import path from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { describe, expect, it } from 'vitest';
import { probed, TokenPlaces } from '../../lib/data/token-places.js';
import { bundledModel } from '../../lib/environment/package-folder.js';
import { randomValues } from '../finetune/setup.js';

const added = (id: number, content: string) => ({
  ...{ id, content, special: true, normalized: false },
  ...{ single_word: false, lstrip: false, rstrip: false },
});

/** The bundled vocabulary with marks of a chat. */
function bundled(): object {
  const file = path.join(bundledModel(), 'tokenizer.json');
  const json = JSON.parse(fs.readFileSync(file, 'utf8'));
  json.added_tokens.push(added(1022, '<b>'), added(1021, '<e>'), added(1020, '<'));
  // No special token, but it hides one.
  json.added_tokens.push({ ...added(1019, '<b>ba'), special: false });
  return json;
}

/** SentencePiece: each part of a text gets a space in front. */
function pieces(): object {
  const vocab = [
    '<unk>',
    '▁',
    'a',
    'b',
    '\n',
    '▁a',
    'ab',
    '▁ab',
    'ba',
    '▁b',
    '▁▁',
    '<b>',
    '<e>',
    '<',
  ];
  const merges = [
    ['▁', 'a'],
    ['a', 'b'],
    ['▁a', 'b'],
    ['b', 'a'],
    ['▁', 'b'],
    ['▁', '▁'],
  ];
  return {
    version: '1.0',
    added_tokens: [added(11, '<b>'), added(12, '<e>'), added(13, '<')],
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'Prepend', prepend: '▁' },
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
      ],
    },
    pre_tokenizer: null,
    post_processor: null,
    decoder: null,
    model: {
      ...{ type: 'BPE', unk_token: '<unk>', fuse_unk: false, byte_fallback: false, merges },
      vocab: Object.fromEntries(vocab.map((token, id) => [token, id])),
    },
  };
}

const parts = ['a', 'b', 'ab', ' ', '  ', '\n', '<b>', '<e>', '<', 'ba', '<b', 'e>'];

describe.each([
  ['byte pairs', bundled()],
  ['SentencePiece', pieces()],
])('%s', (_, json) => {
  const tokenizer = new Tokenizer(json, {});
  const encode = (text: string) =>
    Int32Array.from(text === '' ? [] : tokenizer.encode(text, { add_special_tokens: false }).ids);
  const special = [...tokenizer.get_added_tokens_decoder()]
    .filter(([, token]) => token.special)
    .map(([id, { content }]) => [id, content] as const);

  it('each place is where the tokens before it end', () => {
    const places = new TokenPlaces(special);
    let [known, asked] = [0, 0];
    for (let seed = 1; seed <= 200; seed++) {
      const text = Array.from(randomValues(12, seed), (v) => {
        const i = Math.floor(((v + 1) / 2) * parts.length);
        return parts[i] as string;
      }).join('');
      const ids = encode(text);
      const at = Array.from({ length: text.length - 1 }, (_, i) => i + 1);
      for (const [i, place] of places.find(text, ids, at).entries()) {
        const before = encode(text.slice(0, at[i]));
        let same = 0;
        while (same < before.length && before[same] === ids[same]) same++;
        const found = 'from' in place ? probed(place, ids, encode(place.text)) : place;
        if ('from' in place) asked += place.text.length;
        else known++;
        const expected = { tokens: same, inside: same < before.length };
        expect(found, `${JSON.stringify(text)} at ${at[i]}`).toEqual(expected);
      }
    }
    expect(known).toBeGreaterThan(500);
    expect(asked / 200).toBeLessThan(200);
  });
});
