/** Generation: sampling, the key-value cache, and what both reject. */
import { afterAll, describe, expect, it } from 'vitest';
import {
  Decoder,
  DecoderWeights,
  type GenerateOptions,
  generate,
  KvCache,
  ModelTape,
  openHfModel,
  scope,
} from '../../lib/index.js';
import { nextLogits } from '../../lib/model/generate.js';
import { checkSampling, sample } from '../../lib/model/sample.js';
import { codeOf } from '../checkpoint/raw-file.js';
import { ModelCase } from '../golden/models/cases.js';

const model = openHfModel(new ModelCase('gemma3/two_bases_linear').base);
const decoder = new Decoder(model.decoder, DecoderWeights.load(model, { device: 'cpu' }));
afterAll(() => decoder.dispose());
const { vocabSize } = model.decoder;

async function drawn(prompt: ArrayLike<number>, options: GenerateOptions): Promise<number[]> {
  const ids: number[] = [];
  for await (const id of generate(decoder, prompt, { eosIds: [], ...options })) ids.push(id);
  return ids;
}

describe('a sample', () => {
  const logits = Float32Array.of(1, 3, 2, 3, -1);
  const at = (random: number, options: Parameters<typeof checkSampling>[1]) =>
    sample(logits, checkSampling('test', options), random);

  it('without temperature is the first of the most likely', () => {
    expect(at(0.99, { temperature: 0 })).toBe(1);
  });

  it('follows the probabilities, the likeliest first', () => {
    const weights = [3, 3, 2, 1, -1].map(Math.exp);
    const total = weights.reduce((a, b) => a + b, 0);
    const order = [1, 3, 2, 0, 4];
    let sum = 0;
    for (const [i, weight] of weights.entries()) {
      expect(at((sum + 1e-6) / total, {})).toBe(order[i]);
      sum += weight;
      expect(at((sum - 1e-6) / total, {})).toBe(order[i]);
    }
  });

  it.each([
    ['topK of 1', { topK: 1 }, [1]],
    ['topK of 2, of equal ones the lower index first', { topK: 2 }, [1, 3]],
    ['topK beyond the vocabulary', { topK: 99 }, [1, 3, 2, 0, 4]],
    ['topP that one reaches', { topP: 0.3 }, [1]],
    ['topP that three reach', { topP: 0.9 }, [1, 3, 2]],
    ['both: topP is of what topK leaves', { topK: 2, topP: 0.51 }, [1, 3]],
    ['a temperature that makes all alike', { temperature: 1e6, topP: 0.59 }, [1, 3, 2]],
  ])('is among the candidates: %s', (_, options, candidates) => {
    const found = new Set(Array.from({ length: 1000 }, (_, i) => at(i / 1000, options)));
    expect([...found]).toEqual(candidates);
  });

  it.each([
    [{ temperature: -1 }, 'ERR_VALUE', /temperature must be at least 0, got -1/],
    [{ topK: 0 }, 'ERR_VALUE', /topK/],
    [{ topP: 0 }, 'ERR_VALUE', /topP must be in \(0, 1\], got 0/],
    [{ topP: 1.5 }, 'ERR_VALUE', /topP must be in \(0, 1\], got 1.5/],
    [{ topX: 1 }, 'ERR_VALUE', /topX/],
  ])('rejects %j', (options, code, message) => {
    const call = () => checkSampling('test', options as never);
    expect(codeOf(call)).toBe(code);
    expect(call).toThrow(message);
  });
});

describe('generation with a cache', () => {
  it('gives the tokens of the whole sequence run again, past the window', async () => {
    const prompt = [1, 5, 2, 9];
    const ids = [...prompt];
    for (let i = 0; i < 12; i++) {
      const next = scope(() => {
        const tape = new ModelTape({ recording: false });
        const tokens = { ids: Int32Array.from(ids), B: 1, T: ids.length };
        const all = decoder.logits(tape, decoder.forward(tape, tokens).features).tensor.readSync();
        const last = all.subarray((ids.length - 1) * vocabSize);
        return last.indexOf(Math.max(...last));
      });
      ids.push(next);
    }
    expect(await drawn(prompt, { maxTokens: 12, temperature: 0 })).toEqual(ids.slice(4));
  });

  it('gives the same bits for a prompt in one part and in several', () => {
    const all = Int32Array.from({ length: 24 }, (_, i) => (7 * i) % vocabSize);
    const logitsOf = (...cuts: number[]) =>
      scope(() => {
        const cache = new KvCache(decoder.config, { capacity: 24, device: 'cpu' });
        let last: Float32Array = new Float32Array();
        for (const [i, end] of cuts.entries()) {
          const part = all.subarray(cuts[i - 1] ?? 0, end);
          last = nextLogits(decoder, part, { cache, dtype: 'f32' }).readSync();
        }
        expect(cache.length).toBe(24);
        return last;
      });
    expect(logitsOf(5, 6, 24)).toEqual(logitsOf(24));
  });

  it('can forget, and goes on from there', () => {
    scope(() => {
      const cache = new KvCache(decoder.config, { capacity: 8, device: 'cpu' });
      const call = { cache, dtype: 'f32' } as const;
      nextLogits(decoder, Int32Array.of(1, 2), call);
      const first = nextLogits(decoder, Int32Array.of(3), call).readSync();
      cache.truncate(2);
      expect(nextLogits(decoder, Int32Array.of(3), call).readSync()).toEqual(first);
      expect(codeOf(() => cache.truncate(4))).toBe('ERR_VALUE');
    });
  });

  it.each<[string, () => unknown, string, RegExp]>([
    [
      'a cache that is full',
      () => {
        const cache = new KvCache(decoder.config, { capacity: 3, device: 'cpu' });
        const call = { cache, dtype: 'f32' } as const;
        nextLogits(decoder, Int32Array.of(1, 2), call);
        nextLogits(decoder, Int32Array.of(3, 4), call);
      },
      'ERR_VALUE',
      /room for 2 tokens after its 2, got one of 3/,
    ],
    [
      'another dtype',
      () => {
        const cache = new KvCache(decoder.config, { capacity: 3, dtype: 'bf16', device: 'cpu' });
        nextLogits(decoder, Int32Array.of(1), { cache, dtype: 'f32' });
      },
      'ERR_DTYPE',
      /cache must be f32, got bf16/,
    ],
    [
      'another number of rows',
      () => {
        const cache = new KvCache(decoder.config, { capacity: 3, device: 'cpu' });
        const tokens = { ids: Int32Array.of(1, 2), B: 2, T: 1 };
        decoder.forward(new ModelTape({ recording: false }), tokens, { cache });
      },
      'ERR_SHAPE',
      /cache must be of 2 rows, got 1/,
    ],
    [
      'a tape that records',
      () => {
        const cache = new KvCache(decoder.config, { capacity: 3, device: 'cpu' });
        decoder.forward(new ModelTape(), { ids: Int32Array.of(1), B: 1, T: 1 }, { cache });
      },
      'ERR_VALUE',
      /cache must be absent on a tape that records/,
    ],
    [
      'segments',
      () => {
        const cache = new KvCache(decoder.config, { capacity: 3, device: 'cpu' });
        const tokens = { ids: Int32Array.of(1), B: 1, T: 1, segments: Int32Array.of(0) };
        decoder.forward(new ModelTape({ recording: false }), tokens, { cache });
      },
      'ERR_VALUE',
      /segments must be absent with a cache/,
    ],
    [
      'no capacity',
      () => new KvCache(decoder.config, { capacity: 0, device: 'cpu' }),
      'ERR_VALUE',
      /capacity/,
    ],
  ])('rejects %s', (_, call, code, message) => {
    scope(() => {
      expect(codeOf(call)).toBe(code);
      expect(call).toThrow(message);
    });
  });

  it.each<[string, ArrayLike<number>, object, string]>([
    ['an empty prompt', [], {}, 'ERR_VALUE'],
    ['an id outside of the vocabulary', [1, 1e6], {}, 'ERR_VALUE'],
    ['a prompt of all positions', { length: 1e7 }, {}, 'ERR_VALUE'],
    ['a count below 0', [1], { maxTokens: -1 }, 'ERR_VALUE'],
    ['another option', [1], { tokens: 1 }, 'ERR_VALUE'],
  ])('rejects %s', async (_, prompt, options, code) => {
    await expect(drawn(prompt, options)).rejects.toMatchObject({ code });
  });
});
