/** The parts of a fine-tune that are arithmetic on arrays: schedule, sums, packing, drawing. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { TreeSum } from '../../lib/collective/tree-sum.js';
import { exp } from '../../lib/compare/tensorflow/exp.js';
import { hash32, permutation, uniform } from '../../lib/core/random.js';
import { dataFiles } from '../../lib/data/data-files.js';
import { type GenerateOptions, generate } from '../../lib/model/generate.js';
import { openHfModel } from '../../lib/model/hf-model.js';
import { packText, readText } from '../../lib/text/text-data.js';
import { openTokenizer, type TextTokenizer } from '../../lib/text/tokenizer.js';
import { learningRate } from '../../lib/train/schedule.js';
import { oracleLogits } from './llama-oracle.js';
import { temporaryFolder, tinyTrainer } from './setup.js';
import { writeTinyCheckpoint } from './tiny-checkpoint.js';

describe('the schedule', () => {
  it('the learning rate warms up, peaks, and ends at a tenth', () => {
    const rates = Array.from({ length: 101 }, (_, step) => learningRate(step, 2, 10, 100));
    expect(rates[0]).toBeCloseTo(0.2, 12);
    expect(rates[9]).toBeCloseTo(2, 12);
    expect(rates[10]).toBeCloseTo(2, 12);
    expect(rates[55]).toBeCloseTo(1.1, 12);
    expect(rates[100]).toBeCloseTo(0.2, 12);
    expect(rates.slice(10).every((rate, i, all) => i === 0 || rate <= (all[i - 1] as number))).toBe(
      true,
    );
    expect(learningRate(0, 2, 0, 1)).toBe(2);
  });
});

describe('random numbers', () => {
  it('exp is e^x to 1e-8, with its limits', () => {
    for (let x = -80; x < 80; x += 0.0137) {
      expect(Math.abs(exp(x) / Math.exp(x) - 1)).toBeLessThan(1e-8);
    }
    expect(exp(0)).toBe(1);
    expect(Math.fround(exp(Number.NEGATIVE_INFINITY))).toBe(0);
    expect(Math.fround(exp(Number.POSITIVE_INFINITY))).toBe(Number.POSITIVE_INFINITY);
    expect(exp(Number.NaN)).toBeNaN();
  });

  it('depend on every part of their name, and on nothing else', () => {
    const names = [
      [1, 'a'],
      [1, 'b'],
      [2, 'a'],
      ['1', 'a'],
      [1 + 2 ** 32, 'a'],
      [1, 'a', 0],
    ] as const;
    expect(new Set(names.map((parts) => hash32(...parts))).size).toBe(names.length);
    const draw = (seed: number) => Array.from({ length: 5 }, uniform(seed, 'x'));
    expect(draw(3)).toEqual(draw(3));
    expect(draw(3)).not.toEqual(draw(4));
  });

  it('are uniform, and permutations are permutations', () => {
    const next = uniform(1, 'buckets');
    const buckets = new Array(10).fill(0);
    for (let i = 0; i < 20_000; i++) buckets[Math.floor(next() * 10)]++;
    // Five standard deviations of a binomial with p = 1/10.
    for (const count of buckets) expect(Math.abs(count - 2000)).toBeLessThan(5 * Math.sqrt(1800));
    const order = permutation(100, 7, 'epoch', 0);
    expect(Array.from(order).sort((a, b) => a - b)).toEqual(
      Array.from({ length: 100 }, (_, i) => i),
    );
    expect(Array.from(order)).not.toEqual(Array.from(permutation(100, 7, 'epoch', 1)));
  });
});

describe('text', () => {
  const folder = temporaryFolder();
  beforeAll(() => writeTinyCheckpoint(folder));
  const write = (name: string, content: string) => {
    const file = path.join(folder, name);
    fs.writeFileSync(file, content);
    return file;
  };
  const withTokenizer = async <R>(body: (tokenizer: TextTokenizer) => Promise<R>): Promise<R> => {
    const tokenizer = await openTokenizer('test', openHfModel(folder));
    try {
      return await body(tokenizer);
    } finally {
      await tokenizer.close();
    }
  };
  const pack = async (source: ReturnType<typeof readText>, T: number) =>
    withTokenizer((tokenizer) => packText('test', source, tokenizer, T));

  it('documents end with the end-of-text token; targets are the next tokens, each once', async () => {
    const source = readText('test', [write('a.txt', 'one\r\n\r\ntwo\n\n\n\nthree\n')], '\n\n');
    expect(source.documents).toEqual(['one', 'two', 'three']);
    const bytes = (text: string) => [...Buffer.from(text)];
    const stream = [...bytes('one'), 256, ...bytes('two'), 256, ...bytes('three'), 256];
    const { train, heldOut, tokens } = await pack(source, 4);
    expect(tokens).toBe(stream.length);
    expect([train.count, heldOut.count]).toEqual([2, 1]);
    const { ids, targets } = train.batch([0, 1]);
    expect(Array.from(ids)).toEqual(stream.slice(0, 8));
    expect(Array.from(targets)).toEqual(stream.slice(1, 9));
    const last = heldOut.batch([0]);
    expect(Array.from(last.ids)).toEqual(stream.slice(8, 12));
    expect(Array.from(last.targets)).toEqual(stream.slice(9, 13));
  });

  it('takes more paragraphs than a call takes arguments', () => {
    const { documents } = readText('test', [write('long.txt', 'ab\n\n'.repeat(300_000))], '\n\n');
    expect(documents.length).toBe(300_000);
    expect(new Set(documents)).toEqual(new Set(['ab']));
  });

  it('a tenth is held out, a folder is its .txt files in order', async () => {
    const many = path.join(folder, 'many');
    fs.mkdirSync(many);
    fs.writeFileSync(path.join(many, 'b.txt'), 'second');
    fs.writeFileSync(path.join(many, 'a.txt'), `first ${'x'.repeat(393)}`);
    fs.writeFileSync(path.join(many, 'c.bin'), new Uint8Array([255]));
    const source = readText(
      'test',
      dataFiles('test', [many]).map(({ file }) => file),
      '',
    );
    expect(source.documents.map((text) => text.slice(0, 6))).toEqual(['first ', 'second']);
    const { train, heldOut } = await pack(source, 4);
    expect([train.count, heldOut.count]).toEqual([91, 10]);
  });

  it('no beginnings of surrogates, escapes or special tokens get lost on the way back', async () => {
    const text = 'Zoë 😀\tend\u0000';
    await withTokenizer(async (tokenizer) => {
      expect(await tokenizer.decode(await tokenizer.encode(text))).toBe(text);
      expect(await tokenizer.encode('a<|endoftext|>b')).toEqual([97, 256, 98]);
    });
  });
});

describe('samples', () => {
  /** The whole text that the options give. */
  async function drawn(
    { decoder }: ReturnType<typeof tinyTrainer>,
    prompt: readonly number[],
    options: GenerateOptions,
  ): Promise<number[]> {
    const ids: number[] = [];
    for await (const id of generate(decoder, prompt, { eosIds: [], ...options })) ids.push(id);
    return ids;
  }

  it('without temperature take the most likely token, as the float64 model sees it', async () => {
    const tiny = tinyTrainer({}, { format: 'none' });
    const options = { maxTokens: 6, temperature: 0 };
    const prompt = [72, 105];
    const ids = [...prompt];
    for (let i = 0; i < 6; i++) {
      const rows = oracleLogits(tiny.model.config, (name) => tiny.model.readFloat32(name), ids);
      const last = rows[rows.length - 1] as number[];
      ids.push(last.indexOf(Math.max(...last)));
    }
    expect(await drawn(tiny, prompt, options)).toEqual(ids.slice(2));
    const eosIds = [ids[4] as number];
    expect(await drawn(tiny, prompt, { ...options, eosIds })).toEqual(ids.slice(2, 4));
    tiny.dispose();
  });

  it('with a seed are the same again, within the topK', async () => {
    const tiny = tinyTrainer({}, { format: 'none' });
    const draw = (seed: number, topK: number) =>
      drawn(tiny, [1], { maxTokens: 12, temperature: 5, topK, seed });
    expect(await draw(1, 50)).toEqual(await draw(1, 50));
    expect(await draw(1, 50)).not.toEqual(await draw(2, 50));
    expect(await draw(1, 1)).toEqual(await draw(2, 1));
    tiny.dispose();
  });
});

it('a sum of n passes is the left-full binary tree over them', () => {
  const treeOf = (n: number) => {
    const sum = new TreeSum<string>((a, b) => `(${a}${b})`);
    for (let i = 0; i < n; i++) sum.add(String(i));
    return sum.total();
  };
  expect([1, 2, 3, 4, 5, 6, 7].map(treeOf)).toEqual([
    '0',
    '(01)',
    '((01)2)',
    '((01)(23))',
    '(((01)(23))4)',
    '(((01)(23))(45))',
    '(((01)(23))((45)6))',
  ]);
});
