// Trained rows of an embedding by ids: the table's rows and its own, to the bit, on every device.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapterFromPeft,
  adapters,
  dequantize,
  devices,
  memoryUsage,
  oneHot,
  quantize,
  readAdapterFolder,
  scope,
  Tensor,
  TokenRows,
  writeAdapterFolder,
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

  // Runs, repeated, across blocks of scales of scales (16 rows), up to the last one, with trained rows between.
  const [many, wide] = [70, 1024];
  const order = [...Array(40).keys(), 5, 5, 69, 68, 31, 32, 33, 31, 32, 33, 7, 8, 9, 0, 69];
  it.each([
    ['nf4', { doubleQuant: true }],
    ['nf4', {}],
    ['int8', { doubleQuant: true }],
    ['int4', { zeroPoints: true }],
  ] as const)('are looked up in runs, wherever blocks begin, %s %j', (format, options) => {
    scope(() => {
      const rows = Tensor.from(wave(2 * wide, 2), [2, wide], { device });
      const own = new TokenRows({ rows, tokens: [8, 32] });
      const table = Tensor.from(wave(many * wide, 5), [many, wide], { device, dtype: 'bf16' });
      const packed = quantize(table, { format, blocksize: 64, ...options });
      const [mine, theirs] = [rows.to({ dtype: 'bf16' }).readSync(), dequantize(packed).readSync()];
      const expected = order.flatMap((id) => {
        const place = [8, 32].indexOf(id);
        const [from, at] = place < 0 ? [theirs, id] : [mine, place];
        return [...from.subarray(at * wide, (at + 1) * wide)];
      });
      const y = own.forward(order, packed);
      expect(y.dtype).toBe('bf16');
      expect([...y.readSync()]).toEqual(expected);
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

describe('trained rows beside LoRA (trainable_token_indices)', () => {
  const device = 'cpu' as const;
  const emb = 'model.embed_tokens';
  const head = 'lm_head';
  const lora = {
    'base_model.model.lin.lora_A.weight': raw([2, 4]),
    'base_model.model.lin.lora_B.weight': raw([3, 2]),
  };
  const delta = (rows: number, phase: number) => raw([rows, 4], wave(rows * 4, phase));
  const keyOf = (end: string) => `token_adapter.trainable_tokens_delta${end}`;
  const folderOf = (trainable_token_indices: unknown, tensors: Parameters<typeof namesIn>[1]) => ({
    config: { peft_type: 'LORA', r: 2, lora_alpha: 4, trainable_token_indices },
    tensors: namesIn(emb, { ...lora, ...tensors }),
  });

  it.each([
    ['a list of the input embedding', [5, 1]],
    ['lists by name', { lm_head: [3], embed_tokens: [5, 1] }],
    ['lists by the end of the name, of which the last counts', { tokens: [7, 8], [emb]: [5, 1] }],
  ])('are read from %s', (_, indices) => {
    scope(() => {
      const own = TokenRows.fromPeft(folderOf(indices, { [keyOf('')]: delta(2, 3) }), emb, {
        device,
      });
      expect([own.tokens, own.rows.shape]).toEqual([
        [5, 1],
        [2, 4],
      ]);
      expect(own.rows.readSync()).toEqual(wave(8, 3));
      // They are rows, no differences.
      const y = own.forward([0, 1, 5], Tensor.from(wave(24, 9), [6, 4], { device }));
      expect([...y.readSync()]).toEqual([
        ...wave(24, 9).subarray(0, 4),
        ...wave(8, 3).subarray(4),
        ...wave(8, 3).subarray(0, 4),
      ]);
    });
  });

  it('are read from a state dict, and beside its LoRA', () => {
    scope(() => {
      const folder = folderOf([5, 1], { [keyOf('.default')]: delta(2, 3) });
      expect(TokenRows.fromPeft(folder, emb, { device }).rows.readSync()).toEqual(wave(8, 3));
      const place = { inFeatures: 4, outFeatures: 3, device };
      expect(adapterFromPeft(folder, 'lin', place).method).toBe('lora');
    });
  });

  it.each([
    ['no tokens', null, emb, 'ERR_UNSUPPORTED', /trainable_token_indices given, got "LORA"/],
    ['others’ tokens', { wte: [5, 1] }, emb, 'ERR_FILE', /name model.embed_tokens, got wte/],
    [
      'no rows',
      { lm_head: [5, 1] },
      head,
      'ERR_FILE',
      /lm_head must have the tensor token_adapter/,
    ],
    ['as many as there are not', [5], emb, 'ERR_SHAPE', /of shape \[1, 4\], got \[2, 4\]/],
    ['a number', 5, emb, 'ERR_TYPE', /trainable_token_indices must be/],
    ['a number by name', { embed_tokens: 5 }, emb, 'ERR_TYPE', /tokens must be an array of ids/],
    ['one below 0', [5, -1], emb, 'ERR_VALUE', /tokens\[1\]/],
  ])('are refused with %s', (_, indices, module, code, message) => {
    const read = () =>
      TokenRows.fromPeft(folderOf(indices, { [keyOf('')]: delta(2, 3) }), module, { device });
    expect(read).toThrow(expect.objectContaining({ code }));
    expect(read).toThrow(message);
  });

  it('are written with their adapters, through a file', async () => {
    const root = mkdtempSync(path.join(tmpdir(), 'lowrank-tokens-'));
    await scope(async () => {
      const place = { inFeatures: 4, outFeatures: 3, device, r: 2, loraAlpha: 4 };
      const adapter = adapters.lora.create(place) as unknown as Adapter;
      const rows = (count: number, phase: number) =>
        Tensor.from(wave(count * 4, phase), [count, 4], { device, dtype: 'bf16' });
      const one = new TokenRows({ rows: rows(2, 3), tokens: [5, 1] });
      const two = new TokenRows({ rows: rows(1, 4), tokens: [3] });
      const both = new Map([
        [emb, one],
        [head, two],
      ]);
      const folder = path.join(root, 'adapter');
      await writeAdapterFolder(folder, await TokenRows.toPeft(both, new Map([['lin', adapter]])));
      const stored = readAdapterFolder(folder);
      expect(stored.config).toMatchObject({
        peft_type: 'LORA',
        target_modules: ['lin'],
        trainable_token_indices: { [emb]: [5, 1], [head]: [3] },
      });
      expect([...stored.tensors.keys()].sort()).toEqual([
        'base_model.model.lin.lora_A.weight',
        'base_model.model.lin.lora_B.weight',
        'base_model.model.lm_head.token_adapter.trainable_tokens_delta',
        'base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta',
      ]);
      for (const [module, own] of both) {
        const back = TokenRows.fromPeft(stored, module, { device, dtype: 'bf16' });
        expect(back.tokens).toEqual(own.tokens);
        expect(await back.rows.readBits()).toEqual(await own.rows.readBits());
      }
      const lin = adapterFromPeft(stored, 'lin', place);
      expect(lin.parameters.loraA?.readSync()).toEqual(adapter.parameters.loraA?.readSync());
    });
    rmSync(root, { recursive: true });
  });

  it('take the place of those that a folder has; others of it stay', async () => {
    await scope(async () => {
      const before = folderOf(
        { embed_tokens: [5, 1], lm_head: [3] },
        {
          [keyOf('')]: delta(2, 3),
          'base_model.model.lm_head.token_adapter.trainable_tokens_delta': delta(1, 6),
        },
      );
      const rows = Tensor.from(wave(4, 1), [1, 4], { device });
      const own = new TokenRows({ rows, tokens: [2] });
      const { config, tensors } = await TokenRows.toPeft(new Map([[emb, own]]), before);
      expect(config).toEqual({
        ...before.config,
        trainable_token_indices: { [head]: [3], [emb]: [2] },
      });
      const name = 'base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta';
      expect([...tensors.keys()].sort()).toEqual([...before.tensors.keys()].sort());
      expect(tensors.get(name)).toEqual(raw([1, 4], wave(4, 1)));
      const kept = TokenRows.fromPeft({ config, tensors }, head, { device });
      expect([kept.tokens, kept.rows.readSync()]).toEqual([[3], wave(4, 6)]);
    });
  });

  it('are not written beside a method whose config cannot have them', async () => {
    await scope(async () => {
      const own = new TokenRows({ rows: Tensor.zeros([1, 4], { device }), tokens: [2] });
      const ia3 = adapters.ia3.create({ inFeatures: 4, outFeatures: 3, device });
      const beside = new Map([['lin', ia3 as unknown as Adapter]]);
      for (const other of [3, null]) {
        const writing = TokenRows.toPeft(new Map([[emb, own]]), other as never);
        await expect(writing).rejects.toThrow(expect.objectContaining({ code: 'ERR_TYPE' }));
      }
      await expect(TokenRows.toPeft(new Map([[emb, own]]), beside)).rejects.toThrow(
        expect.objectContaining({
          code: 'ERR_UNSUPPORTED',
          message: expect.stringMatching(/LORA or ADALORA.*got "IA3"/),
        }),
      );
    });
  });
});
