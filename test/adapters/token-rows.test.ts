// Trained rows of an embedding by ids: the table's rows and its own, to the bit, on every device.
import { describe, expect, it } from 'vitest';
import {
  adapters,
  dequantize,
  devices,
  memoryUsage,
  oneHot,
  quantize,
  scope,
  Tensor,
  TokenRows,
} from '../../lib/index.js';
import { namesIn, near, raw, wave } from './peft-folder.js';

const [V, D] = [9, 64];
const tokens = [7, 0, 4];
const ids = [3, 7, 7, 8, 0, 7, 3];
const available = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);

describe.each(available)('trained rows on %s', (device) => {
  const make = (dtype: 'f32' | 'bf16' = 'f32') => {
    const rows = Tensor.from(wave(tokens.length * D, 2), [tokens.length, D], { device, dtype });
    const table = Tensor.from(wave(V * D, 5), [V, D], { device, dtype });
    return { rows, table, own: new TokenRows({ rows, tokens }) };
  };

  it.each(['f32', 'bf16'] as const)('are looked up, with those of the table, %s', (dtype) => {
    const before = memoryUsage(device).liveTensors;
    scope(() => {
      const { rows, table, own } = make(dtype);
      const [mine, theirs] = [rows.readSync(), table.readSync()];
      const y = own.forward(ids, table);
      expect([y.shape, y.dtype]).toEqual([[ids.length, D], dtype]);
      const expected = ids.flatMap((id) => {
        const place = tokens.indexOf(id);
        const [from, at] = place < 0 ? [theirs, id] : [mine, place];
        return [...from.subarray(at * D, (at + 1) * D)];
      });
      expect([...y.readSync()]).toEqual(expected);
      const merged = own.merge(table);
      const all = Array.from({ length: V }, (_, id) => id);
      expect(merged.readSync()).toEqual(own.forward(all, table).readSync());
      expect(table.readSync()).toEqual(theirs);
    });
    expect(memoryUsage(device).liveTensors).toBe(before);
  });

  it('are looked up in a quantised table, by what it decodes to', () => {
    scope(() => {
      const { table, own } = make();
      const packed = quantize(table, { format: 'nf4', blocksize: 64 });
      const expected = own.forward(ids, dequantize(packed, { dtype: 'f32' }));
      expect(own.forward(ids, packed).readSync()).toEqual(expected.readSync());
    });
  });

  it('have the gradients of their places, as the product over one-hot rows has', () => {
    scope(() => {
      const { rows, table, own } = make();
      const values = wave(ids.length * D, 8);
      const dy = Tensor.from(values, [ids.length, D], { device });
      const { dRows } = own.backward(dy, ids);
      const expected = tokens.flatMap((id) =>
        Array.from({ length: D }, (_, d) =>
          ids.reduce(
            (sum, other, i) => sum + (other === id ? (values[i * D + d] as number) : 0),
            0,
          ),
        ),
      );
      near(dRows.readSync(), expected);
      const place = { inFeatures: V, outFeatures: D, device };
      const turned = wave(V * D, 5).map(
        (_, i, all) => all[(i % V) * D + Math.floor(i / V)] as number,
      );
      const w = Tensor.from(turned, [D, V], { device });
      const method = adapters.trainableTokens.from({ rows }, { ...place, tokens });
      const { y, saved } = method.forward(oneHot(ids, V, { device }), w);
      expect(own.forward(ids, table).readSync()).toEqual(y.readSync());
      near(method.backward(dy, saved).parameters.rows?.readSync() ?? [], expected);
    });
  });
});

describe('trained rows of PEFT’s folders', () => {
  const device = 'cpu' as const;
  const file = { trainable_tokens_delta: raw([2, 4]) };
  const folder = {
    config: { peft_type: 'TRAINABLE_TOKENS', token_indices: [5, 1] },
    tensors: namesIn('emb', file),
  };

  it('are read and written again', async () => {
    await scope(async () => {
      const own = TokenRows.fromPeft(folder, 'emb', { device });
      expect(own.tokens).toEqual([5, 1]);
      const { config, tensors } = await TokenRows.toPeft(new Map([['emb', own]]));
      expect(config).toMatchObject({ ...folder.config, target_modules: ['emb'] });
      expect(tensors).toEqual(folder.tensors);
      const other = new TokenRows({ rows: own.rows, tokens: [5, 2] });
      const both = new Map([
        ['emb', own],
        ['other', other],
      ]);
      await expect(TokenRows.toPeft(both)).rejects.toThrow(
        /other must be of the tokens \[5,1\], got \[5,2\]/,
      );
      await expect(TokenRows.toPeft(new Map())).rejects.toThrow(/at least one, got none/);
    });
  });

  it.each([
    [
      'another type',
      { ...folder, config: { peft_type: 'LORA' } },
      'emb',
      /peft_type must be TRAIN/,
    ],
    ['no such module', folder, 'lm_head', /lm_head must have the tensor trainable_tokens_delta/],
    [
      'no tokens',
      { ...folder, config: { peft_type: 'TRAINABLE_TOKENS' } },
      'emb',
      /tokens must be an array of ids/,
    ],
    [
      'as many as there are not',
      { ...folder, config: { ...folder.config, token_indices: [1] } },
      'emb',
      /rows must be of shape \[1, 4\], got \[2, 4\]/,
    ],
    [
      'one twice',
      { ...folder, config: { ...folder.config, token_indices: [1, 1] } },
      'emb',
      /tokens must be distinct ids, at least one, got \[1,1\]/,
    ],
  ])('are refused with %s', (_, given, module, text) => {
    expect(() => TokenRows.fromPeft(given, module, { device })).toThrow(text);
  });

  it('are refused over another table, ids or gradient', () => {
    scope(() => {
      const own = TokenRows.fromPeft(folder, 'emb', { device });
      const table = Tensor.zeros([6, 4], { device });
      const code = (wanted: string) => expect.objectContaining({ code: wanted });
      expect(() => own.forward([6], table)).toThrow(code('ERR_VALUE'));
      expect(() => own.forward([0.5], table)).toThrow(code('ERR_VALUE'));
      expect(() => own.forward(3 as never, table)).toThrow(code('ERR_TYPE'));
      expect(() => own.forward([0], Tensor.zeros([6, 5], { device }))).toThrow(/\[V, D = 4\]/);
      expect(() => own.forward([0], Tensor.zeros([5, 4], { device }))).toThrow(/more than 5 rows/);
      expect(() => own.merge(Tensor.zeros([5, 4], { device }))).toThrow(/more than 5 rows/);
      expect(() => own.backward(table, [0, 1])).toThrow(/dy must be of shape \[2, 4\]/);
      own.dispose();
      expect(() => own.forward([0], table)).toThrow(code('ERR_DISPOSED'));
    });
  });
});
