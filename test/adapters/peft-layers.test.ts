// PEFT's LoRA on layers of other kinds than linear, and the keys of a state dict. Expected values are
// written out here, from the definition of the layer.
import { describe, expect, it } from 'vitest';
import {
  adapterFromPeft,
  adapters,
  adaptersToPeft,
  expertsFromPeft,
  groupedWeight,
  Im2col,
  NormAdapter,
  oneHot,
  type PeftFolder,
  type RawTensor,
  scope,
  Tensor,
} from '../../lib/index.js';
import { convolve, outSizeOf } from './convolution.js';
import { differences, namesIn, near, raw, shapesOf, wave } from './peft-folder.js';

const device = 'cpu' as const;

describe('keys of a state dict', () => {
  const [K, N, r] = [6, 4, 2];
  const [a, b, magnitude] = [raw([r, K]), raw([N, r], wave(N * r, 2)), raw([N], wave(N, 3))];
  const config = { peft_type: 'LORA', r, lora_alpha: 4, use_dora: true };
  const place = { inFeatures: K, outFeatures: N, device };
  const saved = {
    'lora_A.weight': a,
    'lora_B.weight': b,
    lora_magnitude_vector: magnitude,
  };
  const load = (tensors: Readonly<Record<string, RawTensor>>, adapterName?: string) => {
    const folder = { config, tensors: namesIn('lin', tensors) };
    const named = adapterName === undefined ? folder : { ...folder, adapterName };
    const { loraA, loraB, magnitude: m } = adapterFromPeft(named, 'lin', place).parameters;
    return [loraA, loraB, m].map((tensor) => (tensor as Tensor).readSync());
  };
  const values = [a.data, b.data, magnitude.data];

  it.each([
    ['lora_magnitude_vector', undefined],
    ['lora_magnitude_vector.weight', undefined],
    ['lora_magnitude_vector.default', undefined],
    ['lora_magnitude_vector.default.weight', undefined],
    ['lora_magnitude_vector.my-own.weight', 'my-own'],
  ])('%s is the magnitude', (key, name) => {
    const { lora_magnitude_vector: _, ...rest } = saved;
    expect(load({ ...rest, [key]: magnitude }, name)).toEqual(values);
  });

  it.each([undefined, 'my.own'])('have the adapter’s name behind the tensor’s: %s', (name) => {
    const between = name ?? 'default';
    const keys = {
      [`lora_A.${between}.weight`]: a,
      [`lora_B.${between}.weight`]: b,
      [`lora_magnitude_vector.${between}.weight`]: magnitude,
    };
    expect(load(keys, name)).toEqual(values);
    expect(() => load(keys, 'other')).toThrow(
      expect.objectContaining({ code: 'ERR_FILE', message: expect.stringContaining('lora_A') }),
    );
  });

  it('may be there twice, and must then be the same', () => {
    expect(load({ ...saved, 'lora_A.default.weight': a })).toEqual(values);
    for (const other of [raw([r, K], wave(r * K, 1)), raw([K, r], a.data)])
      expect(() => load({ ...saved, 'lora_A.default.weight': other })).toThrow(
        expect.objectContaining({
          code: 'ERR_FILE',
          message: expect.stringMatching(
            /lora_A\.weight.*a different one as.*lora_A\.default\.weight/,
          ),
        }),
      );
  });

  it.each([
    ['folder', undefined],
    ['folder.config', { config: null, tensors: new Map() }],
    ['folder.tensors', { config, tensors: {} }],
    ['folder.adapterName', { config, tensors: new Map(), adapterName: 3 }],
  ])('%s of another type is refused by its name', (name, folder) => {
    const norm = (of: PeftFolder, module: string) =>
      NormAdapter.fromPeft(of, module, { kind: 'rms' });
    for (const read of [adapterFromPeft, expertsFromPeft, norm] as const) {
      const refused = expect(() => read(folder as unknown as PeftFolder, 'lin', place));
      refused.toThrow(expect.objectContaining({ code: 'ERR_TYPE' }));
      refused.toThrow(new RegExp(`${name} must be`));
    }
  });

  it("whose config leaves r and alpha out have PEFT's", () => {
    const tensors = { 'lora_A.weight': raw([8, K]), 'lora_B.weight': raw([N, 8]) };
    const folder = { config: { peft_type: 'LORA' }, tensors: namesIn('lin', tensors) };
    expect(adapterFromPeft(folder, 'lin', place).config).toMatchObject({ r: 8, loraAlpha: 8 });
  });

  it('are not taken for a module of that name', () => {
    const tensors = namesIn('default', { 'lora_A.weight': a, 'lora_B.weight': b });
    const plain = { ...config, use_dora: false };
    const adapter = adapterFromPeft({ config: plain, tensors }, 'default', place);
    expect((adapter.parameters.loraA as Tensor).readSync()).toEqual(a.data);
  });

  it('are those of shared tensors, groups and norms too', () => {
    const [lambdaB, lambdaD] = [raw([N], wave(N, 5)), raw([r], wave(r, 6))];
    const tensors = namesIn('lin', {
      'vera_lambda_b.default': lambdaB,
      'vera_lambda_d.default': lambdaD,
      'base_model.vera_A.default': a,
      'base_model.vera_B.default': b,
    });
    const vera = adapterFromPeft({ config: { peft_type: 'VERA', r }, tensors }, 'lin', place);
    expect((vera.buffers.veraA as Tensor).readSync()).toEqual(a.data);
    expect((vera.parameters.lambdaB as Tensor).readSync()).toEqual(lambdaB.data);

    const each = (name: string) => ({
      [`base_model.model.${name}.tinylora_A.default`]: a,
      [`base_model.model.${name}.tinylora_B.default`]: b,
      [`base_model.model.${name}.tinylora_P.default`]: raw([3, r, r]),
    });
    const tiny = {
      ...each('one'),
      ...each('two'),
      'base_model.tinylora_v.default.0': raw([3]),
      'base_model.tinylora_v.default.1': raw([3], wave(3, 8)),
    };
    const folder = {
      config: { peft_type: 'TINYLORA', r, u: 3 },
      tensors: namesIn('', tiny),
      layers: new Map(['one', 'two'].map((name) => [name, place])),
    };
    const v = adapterFromPeft(folder, 'two', place).parameters.v as Tensor;
    expect(v.readSync()).toEqual(wave(3, 8));

    const norm = namesIn('norm', { 'ln_tuning_layers.default.weight': magnitude });
    const tuned = NormAdapter.fromPeft(
      { config: { peft_type: 'LN_TUNING' }, tensors: norm },
      'norm',
      { kind: 'rms', device },
    );
    expect(tuned.weight.readSync()).toEqual(magnitude.data);
  });
});

describe('an embedding', () => {
  const [V, D, r] = [7, 4, 2];
  const config = { peft_type: 'LORA', r, lora_alpha: 6, lora_dropout: 0.5, use_rslora: true };
  const [a, b] = [raw([r, V]), raw([D, r], wave(D * r, 2))];
  const place = { inFeatures: V, outFeatures: D, device };
  const scaling = 6 / Math.sqrt(r);
  const delta = (d: number, id: number): number => {
    let sum = 0;
    for (let i = 0; i < r; i++)
      sum += (b.data[d * r + i] as number) * (a.data[i * V + id] as number);
    return scaling * sum;
  };

  it.each(['', '.default'])('is read and written, %s', async (name) => {
    await scope(async () => {
      const tensors = namesIn('emb', {
        [`lora_embedding_A${name}`]: a,
        [`lora_embedding_B${name}`]: b,
      });
      const adapter = adapterFromPeft({ config, tensors }, 'emb', place);
      // Nothing is dropped, so that no seed is asked for.
      expect(adapter.config).toMatchObject({ embedding: true, dropout: 0 });
      const ids = [3, 0, 6, 3];
      const table = Tensor.from(wave(D * V, 5), [D, V], { device });
      const { y } = adapter.forward(oneHot(ids, V, { device }), table, { training: true });
      const expected = ids.flatMap((id) =>
        Array.from({ length: D }, (_, d) => (wave(D * V, 5)[d * V + id] as number) + delta(d, id)),
      );
      near(y.readSync(), expected);
      const written = await adaptersToPeft(new Map([['emb', adapter]]));
      const file = namesIn('emb', { lora_embedding_A: a, lora_embedding_B: b });
      expect(shapesOf(written.tensors)).toEqual(shapesOf(file));
      const again = adapterFromPeft(written, 'emb', place);
      expect((again.parameters.loraA as Tensor).readSync()).toEqual(a.data);
    });
  });

  it('of DoRA has its magnitude', async () => {
    await scope(async () => {
      const file = { lora_embedding_A: a, lora_embedding_B: b, lora_magnitude_vector: raw([D]) };
      const folder = { config: { ...config, use_dora: true }, tensors: namesIn('emb', file) };
      const adapter = adapterFromPeft(folder, 'emb', place);
      expect(adapter.method).toBe('dora');
      const written = await adaptersToPeft(new Map([['emb', adapter]]));
      expect(shapesOf(written.tensors)).toEqual(shapesOf(folder.tensors));
    });
  });

  it('starts as PEFT starts it, at the base', () => {
    const { parameters } = adapters.lora.create({ ...place, r, embedding: true });
    const [start, drawn] = [parameters.loraA, parameters.loraB] as [Tensor, Tensor];
    expect(start.readSync()).toEqual(new Float32Array(r * V));
    expect(drawn.readSync().some((value) => value !== 0)).toBe(true);
  });
});

describe('a convolution', () => {
  const kernel = [3, 2] as const;
  const stride = [2, 1] as const;
  const padding = [1, 0] as const;
  const image = { height: 5, width: 4, B: 2, kernel, stride, padding };
  const { height, width, B } = image;

  interface Sizes {
    readonly C: number;
    readonly N: number;
    readonly r: number;
    readonly groups: number;
  }

  /** PEFT's LoRA of torch's layer: a convolution of all channels, then one of single pixels in groups. */
  function layer(
    { C, N, r, groups }: Sizes,
    x: ArrayLike<number>,
    w: ArrayLike<number>,
    a: ArrayLike<number>,
    b: ArrayLike<number>,
    scaling: number,
  ): Float64Array {
    const spec = { ...image, C };
    const [OH, OW] = outSizeOf(spec);
    const pixels = { C: r, B, height: OH, width: OW };
    const single = { kernel: [1, 1], stride: [1, 1], padding: [0, 0] } as const;
    const h = convolve(spec, x, a, r);
    const update = convolve({ ...pixels, ...single }, h, b, N, groups);
    return convolve(spec, x, w, N, groups).map((v, i) => v + scaling * (update[i] as number));
  }

  it.each([
    { C: 3, N: 4, r: 2, groups: 1 },
    { C: 4, N: 6, r: 4, groups: 2 },
    { C: 3, N: 3, r: 3, groups: 3 },
    { C: 2, N: 6, r: 2, groups: 2 },
  ])('of $groups groups', async (sizes) => {
    await scope(async () => {
      const { C, N, r, groups } = sizes;
      const file = {
        'lora_A.weight': raw([r, C, ...kernel]),
        'lora_B.weight': raw([N, r / groups, 1, 1], wave((N * r) / groups, 3)),
      };
      const config = { peft_type: 'LORA', r, lora_alpha: 3 };
      const tensors = namesIn('conv', file);
      const K = C * kernel[0] * kernel[1];
      const place = { inFeatures: K, outFeatures: N, device };
      const adapter = adapterFromPeft({ config, tensors }, 'conv', place);
      expect(adapter.config).toMatchObject({ groups, kernel });

      const x = wave(B * C * height * width, 2);
      const w = wave((N * K) / groups, 7);
      const [outHeight, outWidth] = outSizeOf({ ...image, C });
      const dy = wave(B * N * outHeight * outWidth, 4);
      const spec = { channels: C, height, width, kernel, stride, padding, device };
      const patches = new Im2col(spec);
      const stored = Tensor.from(w, [N, C / groups, ...kernel], { device });
      const base = groupedWeight(stored, groups);
      const rows = patches.rows(Tensor.from(x, [B, C, height, width], { device }));
      const { y, saved } = adapter.forward(rows, base);
      const scaling = 3 / r;
      const [a, b] = [file['lora_A.weight'].data, file['lora_B.weight'].data];
      const expected = layer(sizes, x, w, a, b, scaling);
      near(patches.image(y).readSync(), expected);

      const gradient = Tensor.from(dy, [B, N, outHeight, outWidth], { device });
      const back = adapter.backward(patches.imageBackward(gradient), saved);
      const total = (y64: Float64Array) => y64.reduce((sum, v, i) => sum + v * (dy[i] ?? 0), 0);
      const { loraA, loraB } = back.parameters as Record<'loraA' | 'loraB', Tensor>;
      const of = (values: Float32Array, f: (at: Float64Array) => Float64Array) =>
        differences(Float64Array.from(values), (at) => total(f(at)));
      near(
        loraA.readSync(),
        of(a, (at) => layer(sizes, x, w, at, b, scaling)),
        1e-4,
      );
      near(
        loraB.readSync(),
        of(b, (at) => layer(sizes, x, w, a, at, scaling)),
        1e-4,
      );
      near(
        patches.rowsBackward(back.dx as Tensor).readSync(),
        of(x, (at) => layer(sizes, at, w, a, b, scaling)),
        1e-4,
      );

      // Merged it is a convolution of all channels.
      const merged = adapter.merge(base).weight as Tensor;
      const full = { ...sizes, groups: 1 };
      const nothing = new Float32Array(r * K);
      near(layer(full, x, merged.readSync(), nothing, nothing, 0), expected);
      const taken = adapter.unmerge(merged).weight as Tensor;
      near(taken.readSync(), base.readSync());

      const written = await adaptersToPeft(new Map([['conv', adapter]]));
      expect(shapesOf(written.tensors)).toEqual(shapesOf(tensors));
      const again = adapterFromPeft(written, 'conv', place);
      expect((again.parameters.loraB as Tensor).readSync()).toEqual(b);
      expect(again.config).toEqual(adapter.config);
    });
  });

  it('of DoRA is written with its kernel', async () => {
    await scope(async () => {
      const tensors = namesIn('conv', {
        'lora_A.weight': raw([2, 3, ...kernel]),
        'lora_B.weight': raw([4, 2, 1, 1]),
        lora_magnitude_vector: raw([1, 4, 1, 1]),
      });
      const config = { peft_type: 'LORA', r: 2, lora_alpha: 3, use_dora: true };
      const place = { inFeatures: 18, outFeatures: 4, device };
      const adapter = adapterFromPeft({ config, tensors }, 'conv', place);
      const written = await adaptersToPeft(new Map([['conv', adapter]]));
      expect(shapesOf(written.tensors)).toEqual(shapesOf(tensors));
    });
  });

  it.each([
    [1, [3]],
    [3, [2, 1, 3]],
  ])('of %i dimensions keeps its shape', async (_, sizes) => {
    await scope(async () => {
      const ones = sizes.map(() => 1);
      const tensors = namesIn('conv', {
        'lora_A.weight': raw([2, 3, ...sizes]),
        'lora_B.weight': raw([4, 2, ...ones]),
      });
      const config = { peft_type: 'LORA', r: 2, lora_alpha: 3 };
      const K = 3 * sizes.reduce((taps, size) => taps * size, 1);
      const place = { inFeatures: K, outFeatures: 4, device };
      const adapter = adapterFromPeft({ config, tensors }, 'conv', place);
      const written = await adaptersToPeft(new Map([['conv', adapter]]));
      expect(shapesOf(written.tensors)).toEqual(shapesOf(tensors));
    });
  });

  it.each([
    [{ groups: 2 }, /groups must be 1 for a layer without a kernel, got 2/],
    [
      { groups: 3, kernel: [2, 1] },
      /groups must be a divisor of r \(4\), of N \(6\) and of the channels \(4\), got 3/,
    ],
    [{ groups: 0, kernel: [2, 1] }, /groups must be a divisor of .*, got 0/],
    [{ kernel: [3] }, /kernel must be up to three sizes whose product divides K \(8\), got \[3\]/],
    [{ kernel: [1, 1, 1, 1] }, /kernel must be up to three sizes/],
    [{ kernel: [2, -1] }, /kernel must be up to three sizes/],
    [{ kernel: null }, /kernel must be up to three sizes.* got \[null\]/],
    [{ kernel: [2], embedding: true }, /kernel must be \[\] for an embedding, got \[2\]/],
  ])('is refused with %o', (settings, text) => {
    const place = { inFeatures: 8, outFeatures: 6, device, r: 4 };
    expect(() => adapters.lora.create({ ...place, ...settings } as never)).toThrow(text);
  });

  it('whose factors do not fit in groups is refused', () => {
    const tensors = namesIn('conv', {
      'lora_A.weight': raw([4, 2, 1, 1]),
      'lora_B.weight': raw([4, 3, 1, 1]),
    });
    const folder = { config: { peft_type: 'LORA', r: 4, lora_alpha: 3 }, tensors };
    const place = { inFeatures: 2, outFeatures: 4, device };
    expect(() => adapterFromPeft(folder, 'conv', place)).toThrow(/loraB.*\[4, 4\].*\[4, 3, 1, 1\]/);
  });
});

describe('groupedWeight', () => {
  it('has the blocks on its diagonal and nothing between, in every dtype', () => {
    scope(() => {
      const values = [1, Number.POSITIVE_INFINITY, 3, 4, Number.NaN, 6, 7, 8];
      for (const dtype of ['f32', 'bf16', 'f16'] as const) {
        const w = Tensor.from(values, [4, 1, 2], { device, dtype });
        const full = groupedWeight(w, 2);
        expect([full.shape, full.dtype]).toEqual([[4, 4], dtype]);
        const [a, b, c, d, e, f, g, h] = values;
        expect([...full.readSync()]).toEqual(
          [
            [a, b, 0, 0],
            [c, d, 0, 0],
            [0, 0, e, f],
            [0, 0, g, h],
          ].flat(),
        );
      }
    });
  });

  it.each([
    [[4], 2, 'ERR_SHAPE', /w must be of shape \[N, C \/ groups.*got \[4\]/],
    [[4, 0], 2, 'ERR_SHAPE', /w must be of shape/],
    [[4, 2], 3, 'ERR_VALUE', /groups must be a divisor of N \(4\), got 3/],
    [[4, 2], 0, 'ERR_VALUE', /groups/],
    [[4, 2], 1.5, 'ERR_VALUE', /groups/],
  ] as const)('of %j in %d groups is %s', (shape, groups, code, text) => {
    scope(() => {
      const w = Tensor.zeros(shape, { device });
      expect(() => groupedWeight(w, groups)).toThrow(
        expect.objectContaining({ code, message: expect.stringMatching(text) }),
      );
      expect(() => groupedWeight({} as never, 2)).toThrow(/w must be/);
    });
  });
});
