// LoRA with a bias of its up-projection (PEFT's lora_bias), from a folder and back. Expected values are written out
// here, from the definition of the layer.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapterFromPeft,
  adapters,
  adaptersToPeft,
  expertsFromPeft,
  quantize,
  scope,
  Tensor,
} from '../../lib/index.js';
import { namesIn, near, raw, shapesOf, wave } from './peft-folder.js';

const device = 'cpu' as const;
const [M, K, N, r] = [3, 8, 6, 2];
const scaling = 5 / r;
const place = { inFeatures: K, outFeatures: N, device };
const file = {
  'lora_A.weight': raw([r, K]),
  'lora_B.weight': raw([N, r], wave(N * r, 2)),
  'lora_B.bias': raw([N], wave(N, 6)),
};
const config = { peft_type: 'LORA', r, lora_alpha: 5, lora_bias: true };
const load = (tensors: Parameters<typeof namesIn>[1] = file, more = {}): Adapter =>
  adapterFromPeft(
    { config: { ...config, ...more }, tensors: namesIn('lin', tensors) },
    'lin',
    place,
  );

const [x, w, bias] = [wave(M * K, 3), wave(N * K, 4), wave(N, 8)];

/** x·wᵀ + bias + scaling · ((x·loraAᵀ)·loraBᵀ + loraBias) */
const expectedOf = (shift: ArrayLike<number>): number[] =>
  Array.from({ length: M * N }, (_, at) => {
    const [m, n] = [Math.floor(at / N), at % N];
    const [a, b] = [file['lora_A.weight'].data, file['lora_B.weight'].data];
    let sum = (shift[n] as number) + scaling * (file['lora_B.bias'].data[n] as number);
    for (let k = 0; k < K; k++) {
      let weight = w[n * K + k] as number;
      for (let i = 0; i < r; i++)
        weight += scaling * (b[n * r + i] as number) * (a[i * K + k] as number);
      sum += (x[m * K + k] as number) * weight;
    }
    return sum;
  });

describe('lora_bias', () => {
  it('is read, and written again to the same bits', async () => {
    await scope(async () => {
      const adapter = load();
      expect(adapter.config).toMatchObject({ loraBias: true });
      const written = await adaptersToPeft(new Map([['lin', adapter]]));
      expect(written.config).toMatchObject({ lora_bias: true, r, lora_alpha: 5 });
      expect(shapesOf(written.tensors)).toEqual(shapesOf(namesIn('lin', file)));
      for (const [name, { data }] of namesIn('lin', file))
        expect(written.tensors.get(name)?.data).toEqual(data);
      const plain = adapters.lora.create({ ...place, r });
      expect((await adaptersToPeft(new Map([['lin', plain]]))).config).not.toHaveProperty(
        'lora_bias',
      );
    });
  });

  it('has the name of a state dict too', () => {
    const { 'lora_B.bias': shift, ...factors } = file;
    const adapter = load({ ...factors, 'lora_B.default.bias': shift });
    expect((adapter.parameters.loraBias as Tensor).readSync()).toEqual(shift.data);
  });

  it('is scaled with the product, over a layer with a bias and without', () => {
    scope(() => {
      const [input, weight] = [
        Tensor.from(x, [M, K], { device }),
        Tensor.from(w, [N, K], { device }),
      ];
      const own = Tensor.from(bias, [N], { device });
      const adapter = load();
      near(adapter.forward(input, weight, { bias: own }).y.readSync(), expectedOf(bias));
      const none = new Float32Array(N);
      const { y, saved } = adapter.forward(input, weight);
      near(y.readSync(), expectedOf(none));
      // dLoraBias = scaling · Σ over the rows of dy
      const dy = wave(M * N, 1);
      const { parameters } = adapter.backward(Tensor.from(dy, [M, N], { device }), saved);
      const sums = Array.from({ length: N }, (_, n) => {
        return scaling * [0, 1, 2].reduce((sum, m) => sum + (dy[m * N + n] as number), 0);
      });
      near((parameters.loraBias as Tensor).readSync(), sums);
      const merged = adapter.merge(weight);
      near(
        (merged.bias as Tensor).readSync(),
        file['lora_B.bias'].data.map((value) => scaling * value),
      );
      expect(adapter.unmerge(merged.weight).bias).toBeUndefined();
    });
  });

  it('of a layer of 16 bits is merged into a bias of its dtype', () => {
    scope(() => {
      const weight = Tensor.from(w, [N, K], { device, dtype: 'bf16' });
      const own = Tensor.from(bias, [N], { device, dtype: 'bf16' });
      const adapter = load();
      const merged = adapter.merge(weight, { bias: own });
      expect(merged.bias?.dtype).toBe('bf16');
      const sum = own
        .readSync()
        .map((v: number, n: number) => v + scaling * (file['lora_B.bias'].data[n] as number));
      near((merged.bias as Tensor).readSync(), sum, 0.02);
      const back = adapter.unmerge(merged.weight, { bias: merged.bias as Tensor });
      near((back.bias as Tensor).readSync(), own.readSync(), 0.02);
    });
  });

  it('of a quantised base goes into the bias beside it', () => {
    scope(() => {
      const base = quantize(Tensor.from(w, [N, K], { device }), { format: 'nf4', blocksize: 32 });
      const merged = load().merge(base, { bias: Tensor.from(bias, [N], { device }) });
      const sum = bias.map((v, n) => v + scaling * (file['lora_B.bias'].data[n] as number));
      near((merged.bias as Tensor).readSync(), sum);
    });
  });

  it.each([
    ['ERR_FILE', /lin must have the tensor lora_B\.bias/, { 'lora_B.bias': undefined }, {}],
    [
      'ERR_FILE',
      /lin must be without lora_B\.bias, as lora_bias is false/,
      {},
      { lora_bias: false },
    ],
    ['ERR_SHAPE', /loraBias must be of shape \[6\], got \[8\]/, { 'lora_B.bias': raw([K]) }, {}],
    ['ERR_UNSUPPORTED', /lora_bias of dora must be null/, {}, { use_dora: true }],
    ['ERR_UNSUPPORTED', /arrow_config of lora must be null/, {}, { arrow_config: { top_k: 2 } }],
  ])('%s where %s', (code, text, tensors, more) => {
    const given = Object.fromEntries(
      Object.entries({ ...file, ...tensors }).filter(([, value]) => value !== undefined),
    ) as typeof file;
    const refused = expect(() => load(given, more));
    refused.toThrow(expect.objectContaining({ code }));
    refused.toThrow(text);
  });

  it('of an embedding, of experts or of some layers only is refused', async () => {
    expect(() => adapters.lora.create({ ...place, embedding: true, loraBias: true })).toThrow(
      /loraBias must be false for an embedding, got true/,
    );
    const folder = { config, tensors: namesIn('lin', file) };
    expect(() => expertsFromPeft(folder, 'lin', place)).toThrow(
      /lora_bias must be false, got true/,
    );
    await scope(async () => {
      const mixed = new Map([
        ['a', load()],
        ['b', adapters.lora.create({ ...place, r })],
      ]);
      await expect(adaptersToPeft(mixed)).rejects.toThrow(
        /loraBias must be the same in all layers.*got true and false/,
      );
    });
  });

  it('refuses a bias to merge into that is not the layer’s, and leaves it', () => {
    scope(() => {
      const weight = Tensor.from(w, [N, K], { device });
      const short = Tensor.from(bias.slice(1), [N - 1], { device });
      for (const call of ['merge', 'unmerge'] as const)
        expect(() => load()[call](weight, { bias: short })).toThrow(
          /lora\.(un)?merge: bias must be of shape \[6\], got \[5\]/,
        );
      expect(weight.readSync()).toEqual(w);
    });
  });
});
