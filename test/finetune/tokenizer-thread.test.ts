/** Tokenising in a thread of its own: the same ids as by the library alone, and an end to what has none. */

import fs from 'node:fs';
import path from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { beforeAll, describe, expect, it } from 'vitest';
import { bundledModel, bundledText } from '../../lib/environment/package-folder.js';
import { openHfModel } from '../../lib/model/hf-model.js';
import { readText } from '../../lib/text/text-data.js';
import { openTokenizer, type TextTokenizer } from '../../lib/text/tokenizer.js';
import { requireBuilt, start } from './command.js';
import { temporaryFolder } from './setup.js';
import { writeTinyCheckpoint } from './tiny-checkpoint.js';

beforeAll(requireBuilt);

async function withTokenizer(
  model: string,
  limits: { base_ms: number; perCharacter_ms: number } | undefined,
  body: (tokenizer: TextTokenizer) => Promise<void>,
): Promise<void> {
  const tokenizer = await openTokenizer('test', openHfModel(model), () => {}, limits);
  try {
    await body(tokenizer);
  } finally {
    await tokenizer.close();
  }
}

const message = (promise: Promise<unknown>) =>
  promise.then(
    () => 'no error',
    (error: { code?: string; message: string }) => `${error.code} ${error.message}`,
  );

describe('the bundled tokenizer', () => {
  const { documents } = readText('test', [bundledText()], '\n\n');

  it('gives the ids of the library alone, over several messages, and their texts', async () => {
    const json = fs.readFileSync(path.join(bundledModel(), 'tokenizer.json'), 'utf8');
    const own = new Tokenizer(JSON.parse(json), {});
    const expected = documents.map((text) => own.encode(text, { add_special_tokens: false }).ids);
    await withTokenizer(bundledModel(), undefined, async (tokenizer) => {
      const found: number[][] = [];
      const done: number[] = [];
      let messages = 0;
      const keep = (ids: Int32Array, lengths: readonly number[]) => {
        messages++;
        let at = 0;
        for (const length of lengths) {
          found.push([...ids.subarray(at, at + length)]);
          at += length;
        }
      };
      await tokenizer.encodeAll(documents, 'document', keep, (at) => void done.push(at));
      expect(found).toEqual(expected);
      expect(messages).toBeGreaterThan(1);
      expect(done[done.length - 1]).toBe(documents.length);
      expect(done).toEqual([...done].sort((a, b) => a - b));
      const ids = expected[3] as number[];
      expect(await tokenizer.encode(documents[3] as string)).toEqual(ids);
      expect(await tokenizer.decode(ids)).toBe(own.decode(ids));
    });
  });
});

describe('a pattern that goes on and on', () => {
  const evil = `${'a'.repeat(90)}!`;
  /** A model whose tokenizer does not come to an end with {@link evil}. */
  const modelWith = (change: (tokenizer: Record<string, unknown>) => void, shards = 1) => {
    const model = path.join(temporaryFolder(), 'model');
    writeTinyCheckpoint(model, { shards });
    const file = path.join(model, 'tokenizer.json');
    const json = JSON.parse(fs.readFileSync(file, 'utf8'));
    change(json);
    fs.writeFileSync(file, JSON.stringify(json));
    return model;
  };
  const pattern = { Regex: '^(a|aa)+$' };
  const splits = (json: Record<string, unknown>) => {
    json.pre_tokenizer = { type: 'Split', pattern, behavior: 'Isolated', invert: false };
  };
  const limits = { base_ms: 400, perCharacter_ms: 0 };

  it('ends with an error that names the file and the document, and nothing else ends', async () => {
    const model = modelWith(splits);
    await withTokenizer(model, limits, async (tokenizer) => {
      const texts = ['fine', 'b', evil, 'c'];
      const encoded = message(tokenizer.encodeAll(texts, 'document', () => {}));
      expect(await encoded).toMatch(
        /^ERR_FILE test: ".*tokenizer\.json" must tokenise document 3 of 4 \(91 characters, "a+!"\) within 0 s, got no result/,
      );
      // The thread is gone; a call after it says so.
      expect(await message(tokenizer.encode('b'))).toMatch(/^ERR_FILE .*thread ended/);
    });
    await withTokenizer(model, limits, async (tokenizer) => {
      expect((await tokenizer.encode('b')).length).toBeGreaterThan(0);
      expect(await message(tokenizer.encode(evil, 'the prompt'))).toMatch(
        /must tokenise the prompt \(91 characters/,
      );
    });
  });

  it('in the decoder too', async () => {
    const model = modelWith((json) => {
      const replace = { type: 'Replace', pattern: { Regex: '(a|aa)+$' }, content: '' };
      json.decoder = { type: 'Sequence', decoders: [json.decoder, replace] };
    });
    await withTokenizer(model, limits, async (tokenizer) => {
      const ids = await tokenizer.encode(evil);
      expect(await message(tokenizer.decode(ids))).toMatch(
        /^ERR_FILE .*must turn 91 ids into text within/,
      );
    });
  });

  it('ends with what the caller throws meanwhile', async () => {
    await withTokenizer(modelWith(splits), undefined, async (tokenizer) => {
      const stop = () => {
        throw new Error('stopped');
      };
      expect(await message(tokenizer.encode(evil, 'the prompt', stop))).toBe('undefined stopped');
    });
  });

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('%s ends a fine-tune that is at it', async (signal, code) => {
    // A warning about the index comes before the tokenising.
    const model = modelWith(splits, 2);
    const index = path.join(model, 'model.safetensors.index.json');
    const fields = JSON.parse(fs.readFileSync(index, 'utf8'));
    fs.writeFileSync(index, JSON.stringify({ ...fields, metadata: { total_size: 1 } }));
    const text = path.join(model, 'text.txt');
    fs.writeFileSync(text, `${evil}\n\n`.repeat(20));
    const out = path.join(model, 'out');
    const args = ['finetune', '--model', model, '--data', text, '--seq-len', '16', '--out', out];
    const running = start([...args, '--steps', '1']);
    await running.until('total_size');
    await new Promise((resolve) => setTimeout(resolve, 700));
    running.child.kill(signal);
    const result = await running.finished;
    expect(result.stderr).toContain('nothing was written');
    expect(result.code).toBe(code);
  });
});
