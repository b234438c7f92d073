/** The parts of the trainer that are arithmetic on arrays: optimiser, schedule, packing, drawing. */

import fs from 'node:fs';
import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { openHfModel } from '../../lib/model/hf-model.js';
import { AdamW, clipByGlobalNorm, learningRate } from '../../lib/train/adamw.js';
import { exp } from '../../lib/train/exp.js';
import { generate } from '../../lib/train/generate.js';
import { FusedKernels } from '../../lib/train/kernels.js';
import { hash32, permutation, uniform } from '../../lib/train/random.js';
import { packText, readText } from '../../lib/train/text-data.js';
import { openTokenizer, type TextTokenizer } from '../../lib/train/tokenizer.js';
import { oracleLogits } from './llama-oracle.js';
import { randomValues, temporaryFolder, tinyTrainer, useBackend } from './setup.js';
import { writeTinyCheckpoint } from './tiny-checkpoint.js';

describe('AdamW', () => {
  it('follows its formula in float64', () => {
    const n = 7;
    const [beta1, beta2, eps, weightDecay, lr] = [0.9, 0.999, 1e-8, 0.1, 0.01];
    const values = randomValues(n, 1);
    const oracle = { p: Array.from(values), m: Array(n).fill(0), v: Array(n).fill(0) };
    const optimizer = new AdamW(n, { weightDecay });
    for (let t = 1; t <= 6; t++) {
      const gradient = randomValues(n, 10 + t);
      optimizer.update(values, gradient, lr);
      for (let i = 0; i < n; i++) {
        const g = gradient[i] as number;
        oracle.p[i] = (oracle.p[i] as number) * (1 - lr * weightDecay);
        oracle.m[i] = beta1 * oracle.m[i] + (1 - beta1) * g;
        oracle.v[i] = beta2 * oracle.v[i] + (1 - beta2) * g * g;
        const mean = oracle.m[i] / (1 - beta1 ** t);
        const root = Math.sqrt(oracle.v[i] / (1 - beta2 ** t));
        oracle.p[i] = (oracle.p[i] as number) - (lr * mean) / (root + eps);
      }
    }
    for (let i = 0; i < n; i++) {
      expect(Math.abs((values[i] as number) - (oracle.p[i] as number))).toBeLessThan(1e-6);
    }
  });

  it('its first step is the learning rate in the direction of the sign', () => {
    const values = new Float32Array(3);
    new AdamW(3).update(values, Float32Array.of(1e-3, -50, 0), 0.25);
    expect(Array.from(values, (value) => Math.round(value * 1000) / 1000)).toEqual([
      -0.25, 0.25, 0,
    ]);
  });

  it('clipping scales the whole gradient, and only a long one', () => {
    const gradient = Float32Array.of(3, 4);
    expect(clipByGlobalNorm(gradient, 10)).toBe(5);
    expect(Array.from(gradient)).toEqual([3, 4]);
    expect(clipByGlobalNorm(gradient, 1)).toBe(5);
    expect(Math.hypot(...gradient)).toBeCloseTo(1, 6);
    expect((gradient[1] as number) / (gradient[0] as number)).toBeCloseTo(4 / 3, 6);
  });

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
    const source = readText('test', write('a.txt', 'one\r\n\r\ntwo\n\n\n\nthree\n'), '\n\n');
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

  it('a tenth is held out, a folder is its .txt files in order', async () => {
    const many = path.join(folder, 'many');
    fs.mkdirSync(many);
    fs.writeFileSync(path.join(many, 'b.txt'), 'second');
    fs.writeFileSync(path.join(many, 'a.txt'), `first ${'x'.repeat(393)}`);
    fs.writeFileSync(path.join(many, 'c.bin'), new Uint8Array([255]));
    const source = readText('test', many, '');
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
  beforeAll(() => useBackend('wasm'));

  it('without temperature take the most likely token, as the float64 model sees it', async () => {
    const { base, model } = await tinyTrainer({}, { format: 'none' });
    const options = { tokens: 6, temperature: 0, topK: 1, seed: 1, eosIds: [] };
    const prompt = [72, 105];
    const drawn = await generate(base, prompt, new FusedKernels(), undefined, options);
    const ids = [...prompt];
    for (let i = 0; i < 6; i++) {
      const rows = oracleLogits(model.config, (name) => model.readFloat32(name), ids);
      const last = rows[rows.length - 1] as number[];
      ids.push(last.indexOf(Math.max(...last)));
    }
    expect(drawn).toEqual(ids.slice(2));
    const stopped = await generate(base, prompt, new FusedKernels(), undefined, {
      ...options,
      eosIds: [ids[4] as number],
    });
    expect(stopped).toEqual(ids.slice(2, 4));
    base.dispose();
  });

  it('with a seed are the same again, within the topK', async () => {
    const { base } = await tinyTrainer({}, { format: 'none' });
    const draw = (seed: number, topK: number) =>
      generate(base, [1], new FusedKernels(), undefined, {
        tokens: 12,
        temperature: 5,
        topK,
        seed,
        eosIds: [],
      });
    expect(await draw(1, 50)).toEqual(await draw(1, 50));
    expect(await draw(1, 50)).not.toEqual(await draw(2, 50));
    expect(await draw(1, 1)).toEqual(await draw(2, 1));
    base.dispose();
  });
});
