/** Examples as tokens with masks, and packed into sequences; derived by hand over a tokenizer of bytes. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { DataDocument, DataUnit } from '../../lib/data/documents.js';
import { PackedSet, packed } from '../../lib/data/pack.js';
import { bundledModel } from '../../lib/environment/package-folder.js';
import type { TextTokenizer } from '../../lib/text/tokenizer.js';
import { requireBuilt } from '../finetune/command.js';
import { randomValues, temporaryFolder } from '../finetune/setup.js';
import { chatModel, ids, prepare, withTokenizer } from './setup.js';

let model: string;
beforeAll(() => {
  requireBuilt();
  model = chatModel(temporaryFolder());
});

const onTokens = <T>(body: (tokenizer: TextTokenizer) => Promise<T>) => withTokenizer(model, body);
const bytes = (text: string): number[] => [...Buffer.from(text)];
/** Tokens of a text in which `<b>`, `<e>` and `#` are marks. */
const tokens = (text: string): number[] =>
  text
    .split(/(<b>|<e>|#)/)
    .flatMap((part) =>
      part === '<b>'
        ? [ids.begin]
        : part === '<e>'
          ? [ids.stop]
          : part === '#'
            ? [ids.end]
            : bytes(part),
    );
/** `before[learned]after` as the ids of a document and the learned ranges. */
function marked(text: string) {
  const parts = text.split(/[[\]]/);
  const learned: [number, number][] = [];
  const all: number[] = [];
  for (const [i, part] of parts.entries()) {
    const begin = all.length;
    all.push(...tokens(part));
    if (i % 2 === 1) learned.push([begin, all.length]);
  }
  return { ids: all, learned };
}
const plain = ({ documents }: DataUnit) =>
  documents.map((document) => ({ ids: Array.from(document.ids), learned: document.learned }));
const user = (content: string) => ({ role: 'user', content });
const assistant = (content: string) => ({ role: 'assistant', content });
const filler = { messages: [user('x'), assistant('y')] };

describe('examples as tokens', () => {
  it.each([
    ['text', [{ text: 'One' }, { text: 'Two' }], ['#[One#]', '#[Two#]']],
    [
      'a completion',
      [
        { prompt: 'a ü', completion: 'b€' },
        { prompt: 'c', completion: 'd' },
      ],
      ['#a ü[b€#]', '#c[d#]'],
    ],
    [
      'messages, without what follows the last answer',
      [{ messages: [user('Hi'), assistant('Yo'), user('So'), assistant('No'), user('?')] }, filler],
      [
        '<b>user:Hi<e><b>assistant:[Yo<e>]<b>user:So<e><b>assistant:[No<e>]',
        '<b>user:x<e><b>assistant:[y<e>]',
      ],
    ],
    [
      'messages after a prompt of messages',
      [
        { prompt: [user('a'), assistant('b'), user('c')], completion: [assistant('d')] },
        { prompt: [user('e')], completion: [assistant('f')] },
      ],
      [
        '<b>user:a<e><b>assistant:b<e><b>user:c<e><b>assistant:[d<e>]',
        '<b>user:e<e><b>assistant:[f<e>]',
      ],
    ],
  ])('%s', async (_, objects, expected) => {
    const { units, ends } = await onTokens((tokenizer) =>
      prepare(tokenizer, objects, { seqLen: 128 }),
    );
    expect(units.map(plain)).toEqual(expected.map((text) => [marked(text)]));
    expect(ends).toEqual([expected[0]?.includes('<e>') ? ids.stop : ids.end]);
  });

  it('a preference is two documents of one unit', async () => {
    const objects = [
      { prompt: 'a', chosen: 'b', rejected: 'cc' },
      { prompt: 'd', chosen: 'e', rejected: 'f' },
    ];
    const { units } = await onTokens((tokenizer) => prepare(tokenizer, objects, { loss: 'dpo' }));
    expect(units.map(plain)).toEqual([
      [marked('#a[b#]'), marked('#a[cc#]')],
      [marked('#d[e#]'), marked('#d[f#]')],
    ]);
  });

  it('long text is cut; each token is learned once', async () => {
    const objects = [{ text: 'abcdefghij' }, { text: 'k' }];
    const { units } = await onTokens((tokenizer) => prepare(tokenizer, objects, { seqLen: 4 }));
    expect(units.map(plain)).toEqual(
      ['#[abcd]', 'd[efgh]', 'h[ij#]', '#[k#]'].map((text) => [marked(text)]),
    );
    expect(units.map(({ example }) => example)).toEqual([0, 0, 0, 1]);
  });

  it('one text may become more sequences than a call takes arguments', async () => {
    const objects = [{ text: 'ab'.repeat(200_000) }, { text: 'k' }];
    const { units } = await onTokens((tokenizer) => prepare(tokenizer, objects, { seqLen: 2 }));
    expect(units.length).toBe(200_002);
    const learned = units.reduce((sum, unit) => sum + (plain(unit)[0]?.ids.length ?? 0) - 1, 0);
    expect(learned).toBe(400_003);
  });

  it('a token that holds the end of a prompt and the begin of an answer is learned, and told', async () => {
    const objects = [
      { prompt: 'The capital is ', completion: 'Paris' },
      { prompt: 'The capital is', completion: ' Paris' },
    ];
    await withTokenizer(bundledModel(), async (tokenizer) => {
      const { units, notes } = await prepare(tokenizer, objects);
      const learned: string[] = [];
      for (const { documents } of units) {
        const [document] = documents as [DataDocument];
        const [begin, end] = document.learned[0] as [number, number];
        learned.push(await tokenizer.decode(Array.from(document.ids.slice(begin, end))));
      }
      expect(learned).toEqual([' Paris', ' Paris']);
      expect(notes).toEqual([
        expect.stringMatching(
          /^in 1 examples a token holds the end of a prompt.*data\.jsonl" line 1/,
        ),
      ]);
    });
  });

  it('has the ids of the whole text, whatever the mask', async () => {
    const text = 'Once upon a time, 12 cats sang: “Ωmega!”';
    await withTokenizer(bundledModel(), async (tokenizer) => {
      const all = await tokenizer.encode(text);
      for (let cut = 1; cut < text.length; cut++) {
        const one = { prompt: text.slice(0, cut), completion: text.slice(cut) };
        if (one.completion.trim() === '' || one.prompt.trim() === '') continue;
        const { units } = await prepare(tokenizer, [one, one]);
        const [document] = (units[0] as DataUnit).documents as [DataDocument];
        expect(Array.from(document.ids.slice(1, -1)), `cut at ${cut}`).toEqual(all);
        // Learned from the first token on that the prompt alone would not have: every character of the answer is.
        const [begin, end] = document.learned[0] as [number, number];
        const alone = await tokenizer.encode(one.prompt);
        const other = all.findIndex((id, i) => id !== alone[i]);
        expect([begin, end], `cut at ${cut}`).toEqual([1 + other, document.ids.length]);
        const kept = await tokenizer.decode(Array.from(document.ids.slice(begin, end)));
        expect(kept.endsWith(one.completion) || kept.includes('\ufffd'), `cut at ${cut}`).toBe(
          true,
        );
      }
    });
  });
});

describe('what cannot be learned', () => {
  const failure = async (objects: readonly object[], options: object = {}) =>
    onTokens((tokenizer) => prepare(tokenizer, objects, options)).then(
      () => 'no error',
      (error) => `${error.code} ${error.message}`,
    );

  it('is rejected with file and line', async () => {
    const long = { prompt: 'p'.repeat(30), completion: 'c'.repeat(40) };
    const short = { prompt: 'a', completion: 'b' };
    expect(await failure([short, long, long])).toMatch(
      /^ERR_FILE test: ".*data\.jsonl" line 2 must be of at most 64 tokens \(--seq-len\), got 71\. 2 of 3 are longer: --seq-len 71 holds all, --skip-long/,
    );
    expect(await failure([short, long], { seqLen: 71 })).toBe('no error');
    expect(await failure([short, long], { seqLen: 70 })).toMatch(/line 2 must be of at most 70/);
    const pair = { prompt: 'p'.repeat(20), chosen: 'c'.repeat(10), rejected: 'r'.repeat(10) };
    expect(await failure([pair, pair], { loss: 'dpo', seqLen: 61 })).toMatch(
      /at most 61 tokens \(--seq-len\), both answers together, got 62/,
    );
    expect(await failure([pair, pair], { loss: 'dpo', seqLen: 62 })).toBe('no error');
    expect(await failure([short])).toMatch(/^ERR_VALUE .*at least 2 examples.*got 1/);
    expect(await failure([short, long, long], { skipLong: true })).toMatch(/at least 2 examples/);
  });

  it('is left out with skipLong, and told', async () => {
    const long = { prompt: 'p'.repeat(30), completion: 'c'.repeat(40) };
    const short = { prompt: 'a', completion: 'b' };
    const { units, notes } = await onTokens((tokenizer) =>
      prepare(tokenizer, [long, short, long, short], { skipLong: true }),
    );
    expect(units.map(({ place: { line } }) => line)).toEqual([2, 4]);
    expect(notes).toEqual(['2 examples are longer than --seq-len and were left out']);
  });

  it('of a template tells where and why', async () => {
    const strict = chatModel(temporaryFolder(), {
      chatTemplate:
        "{% for m in messages %}{% if m.role == 'narrator' %}{{ raise_exception('no narrator here') }}{% endif %}{{ m.content }}{% endfor %}",
    });
    const objects = [filler, { messages: [{ role: 'narrator', content: 'x' }, assistant('y')] }];
    await withTokenizer(strict, async (tokenizer) => {
      await expect(prepare(tokenizer, objects)).rejects.toMatchObject({
        code: 'ERR_FILE',
        message: expect.stringMatching(
          /^test: ".*data\.jsonl" line 2 must be messages that the chat template renders, got: "no narrator here"/,
        ),
      });
      // The next call works.
      expect((await prepare(tokenizer, [filler, filler])).units.length).toBe(2);
    });
    const silent = chatModel(temporaryFolder(), { chatTemplate: 'Hello' });
    await withTokenizer(silent, async (tokenizer) => {
      await expect(prepare(tokenizer, [filler, filler])).rejects.toMatchObject({
        message: expect.stringMatching(
          /line 1 must be an example with tokens to learn, got "Hello"/,
        ),
      });
    });
    const endless = chatModel(temporaryFolder(), { chatTemplate: '{% for' });
    await withTokenizer(endless, async (tokenizer) => {
      await expect(prepare(tokenizer, [filler, filler])).rejects.toMatchObject({
        code: 'ERR_FILE',
      });
    });
    const bare = temporaryFolder();
    chatModel(bare);
    fs.rmSync(path.join(bare, 'tokenizer_config.json'));
    await withTokenizer(bare, async (tokenizer) => {
      await expect(prepare(tokenizer, [filler, filler])).rejects.toMatchObject({
        code: 'ERR_FILE_NOT_FOUND',
        message: expect.stringMatching(/must have a chat template for messages.*--chat-template/),
      });
    });
    // A file of its own counts more.
    fs.writeFileSync(
      path.join(bare, 'chat_template.jinja'),
      'A{% for m in messages %}{{ m.content }}{% endfor %}',
    );
    await withTokenizer(bare, async (tokenizer) => {
      const { units } = await prepare(tokenizer, [filler, filler]);
      expect(plain(units[0] as DataUnit)).toEqual([marked('Ax[y]')]);
    });
  });
});

describe('packing', () => {
  it('fills rows without cutting or losing a unit, nearly as well as any packing can', () => {
    for (const [seed, T] of [
      [1, 64],
      [2, 100],
      [3, 7],
      [4, 513],
    ] as const) {
      const lengths = Array.from(
        randomValues(500, seed),
        (v) => 1 + Math.floor(((v + 1) / 2) ** 2 * (T - 1)),
      );
      const rows = packed(lengths, T);
      const sum = (row: readonly number[]) =>
        row.reduce((all, i) => all + (lengths[i] as number), 0);
      expect(rows.every((row) => sum(row) <= T)).toBe(true);
      expect(rows.flat().sort((a, b) => a - b)).toEqual(lengths.map((_, i) => i));
      // Best fit of descending lengths takes at most 11/9 of the fewest rows, and 4 more (Johnson 1973).
      const fewest = Math.ceil(lengths.reduce((a, b) => a + b, 0) / T);
      expect(rows.length).toBeLessThanOrEqual((11 / 9) * fewest + 4);
      expect(rows.map((row) => row[0] as number)).toEqual(rows.map((row) => Math.min(...row)));
    }
    expect(packed([5, 3, 2, 4, 1], 5)).toEqual([[0], [1, 2], [3, 4]]);
    expect(packed([], 5)).toEqual([]);
  });

  it('gives ids, targets and the begins of documents', async () => {
    const objects = [
      { prompt: 'a', completion: 'bc' },
      { prompt: 'd', completion: 'e' },
      { prompt: 'f', completion: 'g' },
    ];
    const { data } = await onTokens((tokenizer) => prepare(tokenizer, objects, { seqLen: 9 }));
    const { train, heldOut } = data;
    expect([train.count, train.learned, heldOut.count, heldOut.learned]).toEqual([1, 5, 1, 2]);
    const batch = train.batch([0]);
    expect(Array.from(batch.ids)).toEqual(tokens('#abc#de#a'));
    const none = -1;
    expect(Array.from(batch.targets)).toEqual([
      ...[none, ...tokens('bc#'), none, ...tokens('e#'), none, none],
    ]);
    expect(Array.from(batch.documents ?? [])).toEqual([0, 0, 0, 0, 4, 4, 4, 7, 7]);
    expect(data.tokens).toBe(5 + 4 + 4);
    const apart = await onTokens((tokenizer) =>
      prepare(tokenizer, objects, { seqLen: 9, noPacking: true }),
    );
    expect(apart.data.train.count).toBe(2);
  });

  it('knows where the answers of pairs are, row by row', async () => {
    const pair = (c: string) => ({ prompt: c, chosen: 'x', rejected: 'yz' });
    const objects = ['a', 'b', 'c', 'd'].map(pair);
    const { data, units } = await onTokens((tokenizer) =>
      prepare(tokenizer, objects, { seqLen: 16, loss: 'dpo' }),
    );
    const { train } = data;
    expect(train.count).toBe(2);
    const { pairs = [], ids: all, targets } = train.batch([1, 0]);
    expect(pairs.map(({ index }) => index)).toEqual([2, 0, 1]);
    for (const { index, chosen, rejected } of pairs) {
      const { documents } = units[index] as DataUnit;
      for (const [i, [begin, end]] of [chosen, rejected].entries()) {
        expect(Array.from(all.subarray(begin, end))).toEqual(
          Array.from(documents[i]?.ids.slice(0, -1) ?? []),
        );
        const learned = Array.from(targets.subarray(begin, end)).filter((target) => target >= 0);
        expect(learned).toEqual(tokens(i === 0 ? 'x#' : 'yz#'));
      }
    }
  });

  it('is the same whatever the batch', () => {
    const unit = (length: number, example: number): DataUnit => ({
      example,
      place: { file: 'f', line: 1 },
      documents: [
        { ids: Int32Array.from({ length }, (_, i) => 10 * example + i), learned: [[1, length]] },
      ],
    });
    const set = new PackedSet([5, 3, 4, 6, 2].map(unit), 6, true);
    const whole = set.batch([0, 1, 2]);
    for (const row of [0, 1, 2]) {
      const alone = set.batch([row]);
      const part = (name: 'ids' | 'targets' | 'documents') =>
        whole[name]?.slice(6 * row, 6 * row + 6);
      expect(alone).toEqual({
        ids: part('ids'),
        targets: part('targets'),
        documents: part('documents'),
      });
    }
  });
});
