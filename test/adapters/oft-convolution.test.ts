// OFT of PEFT's convolutions: blocks of C · KH · KW turn what the kernel sees. Against plain loops, with its folder.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  adapterFromPeft,
  adapters,
  adaptersToPeft,
  dequantize,
  devices,
  Im2col,
  matmul,
  matmulInputGrad,
  memoryUsage,
  OftImages,
  quantize,
  scope,
  synchronize,
  Tensor,
} from '../../lib/index.js';
import { rotationsOf, turnedImages, turnedWeight } from '../oracle/oft-convolution.js';
import { convolve, outSizeOf } from './convolution.js';
import { namesIn, near, raw, wave } from './peft-folder.js';

const available = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);

const [B, C, height, width, N] = [2, 4, 5, 4, 3];
const kernel = [3, 2] as const;
const K = C * 6;
const image = { height, width, kernel, stride: [2, 1], padding: [1, 0] } as const;
const spec = { B, C, ...image } as const;
const sizes = { C, height, width, kernel } as const;
const [x, w] = [wave(B * C * height * width, 2), wave(N * K, 7)];
const [OH, OW] = outSizeOf(spec);

const CASES = [
  ['blocks of 8', { oft_block_size: 8, r: 0 }, 3, 8, 5],
  [
    'blocks across channels, exact',
    { oft_block_size: 0, r: 2, use_cayley_neumann: false },
    2,
    12,
    0,
  ],
  [
    'one block for all',
    { oft_block_size: 4, r: 0, block_share: true, num_cayley_neumann_terms: 3 },
    1,
    4,
    3,
  ],
] as const;

describe.each(available)('OFT of a convolution on %s', (device) => {
  const place = { inFeatures: K, outFeatures: N, device };
  const at = (values: ArrayLike<number>, shape: readonly number[]) =>
    Tensor.from(Float32Array.from(values), [...shape], { device });
  const load = (fields: object, own: number, size: number): Adapter => {
    const entries = raw([own, (size * (size - 1)) / 2]);
    const data = entries.data.map((v) => 0.2 * v);
    const config = { peft_type: 'OFT', target_modules: ['conv'], ...fields };
    const tensors = namesIn('conv', { 'oft_R.weight': raw(entries.shape, data) });
    return adapterFromPeft({ config, tensors }, 'conv', place);
  };

  it.each(CASES)(
    'turns the patches of %s, and so does the merged weight',
    async (_, fields, own, size, terms) => {
      await scope(async () => {
        const adapter = load(fields, own, size);
        const entries = adapter.parameters.weight?.readSync() as Float32Array;
        const layer = (values: ArrayLike<number>, input: ArrayLike<number> = x) =>
          convolve(spec, input, turnedWeight(w, K, rotationsOf(values, own, size, terms)), N);
        const patches = new Im2col({ channels: C, ...image, device });
        const base = at(w, [N, K]);
        const rows = patches.rows(at(x, [B, C, height, width]));
        const { y, saved } = adapter.forward(rows, base);
        near(patches.image(y).readSync(), layer(entries));
        const merged = (adapter.merge(base).weight as Tensor).readSync();
        near(convolve(spec, x, merged, N), layer(entries));

        const dy = wave(B * N * OH * OW, 5);
        const loss = (values: ArrayLike<number>) =>
          layer(values).reduce((sum, v, i) => sum + v * (dy[i] as number), 0);
        const dRows = patches.imageBackward(at(dy, [B, N, OH, OW]));
        const { parameters } = adapter.backward(dRows, saved);
        const moved = (i: number, by: number) =>
          loss(Float64Array.from(entries, (v, j) => (i === j ? v + by : v)));
        const step = 1e-4;
        near(
          parameters.weight?.readSync() as Float32Array,
          Array.from(entries, (_, i) => (moved(i, step) - moved(i, -step)) / (2 * step)),
          1e-3,
        );

        const written = await adaptersToPeft(new Map([['conv', adapter]]));
        const name = 'base_model.model.conv.oft_R.weight';
        expect(written.tensors.get(name)).toEqual(raw([own, (size * (size - 1)) / 2], entries));
        const again = adapterFromPeft(written, 'conv', place);
        expect(again.config).toEqual(adapter.config);
        expect(again.forward(rows, base).y.readSync()).toEqual(y.readSync());
      });
    },
  );

  it.each(CASES)(
    'gives PEFT’s own forward pass, of %s, by patches that are summed to images',
    (_, fields, own, size, terms) => {
      scope(() => {
        const adapter = load(fields, own, size);
        const entries = adapter.parameters.weight?.readSync() as Float32Array;
        const layer = (values: ArrayLike<number>, images: ArrayLike<number>) =>
          convolve(spec, turnedImages(sizes, images, rotationsOf(values, own, size, terms)), w, N);
        const images = new OftImages(adapter, { channels: C, height, width, kernel });
        const patches = new Im2col({ channels: C, ...image, device });
        const base = at(w, [N, K]);
        const { y, saved } = images.forward(at(x, [B, C, height, width]));
        expect(y.shape).toEqual([B, C, height, width]);
        const out = matmul(patches.rows(y), base);
        near(patches.image(out).readSync(), layer(entries, x), 1e-4);

        const dy = wave(B * N * OH * OW, 5);
        const dRows = matmulInputGrad(patches.imageBackward(at(dy, [B, N, OH, OW])), base);
        const { dx, dWeight } = images.backward(patches.rowsBackward(dRows), saved);
        const loss = (values: ArrayLike<number>, images: ArrayLike<number>) =>
          layer(values, images).reduce((sum, v, i) => sum + v * (dy[i] as number), 0);
        const step = 1e-4;
        const slopes = (values: Float32Array, f: (values: ArrayLike<number>) => number) =>
          Array.from(values, (_, i) => {
            const moved = (by: number) =>
              f(Float64Array.from(values, (v, j) => (i === j ? v + by : v)));
            return (moved(step) - moved(-step)) / (2 * step);
          });
        near(
          dWeight.readSync(),
          slopes(entries, (values) => loss(values, x)),
          5e-3,
        );
        near(
          dx.readSync(),
          slopes(x, (images) => loss(entries, images)),
          1e-3,
        );
      });
    },
  );

  it('is over a quantised weight what it is over the decoded one', () => {
    scope(() => {
      const adapter = load({ oft_block_size: 8, r: 0 }, 3, 8);
      const packed = quantize(at(w, [N, K]), { format: 'nf4' });
      const patches = new Im2col({ channels: C, ...image, device });
      const rows = patches.rows(at(x, [B, C, height, width]));
      const { y } = adapter.forward(rows, packed);
      near(y.readSync(), adapter.forward(rows, dequantize(packed)).y.readSync(), 1e-4);
    });
  });

  it('gives the images of a 1 x 1 kernel that the merged layer sees, in 16 bits too', () => {
    scope(() => {
      const config = { peft_type: 'OFT', r: 0, oft_block_size: 2 };
      const tensors = namesIn('conv', { 'oft_R.weight': raw([2, 1]) });
      const adapter = adapterFromPeft({ config, tensors }, 'conv', { ...place, inFeatures: C });
      const images = new OftImages(adapter, { channels: C, height, width, kernel: [1, 1] });
      const patches = new Im2col({ channels: C, height, width, kernel: [1, 1], device });
      for (const [dtype, bound] of [
        ['f32', 1e-5],
        ['bf16', 0.05],
      ] as const) {
        const input = at(x, [B, C, height, width]).to({ dtype });
        const base = at(w.subarray(0, N * C), [N, C]);
        const { y } = images.forward(input, { training: false });
        expect(y.dtype).toBe(dtype);
        const merged = adapter.merge(base).weight;
        near(
          matmul(patches.rows(y.to({ dtype: 'f32' })), base).readSync(),
          matmul(patches.rows(input.to({ dtype: 'f32' })), merged).readSync(),
          bound,
        );
      }
    });
  });

  it('refuses what does not fit, and leaves nothing behind', async () => {
    await synchronize(device);
    const before = memoryUsage(device).liveTensors;
    scope(() => {
      const adapter = load({ oft_block_size: 8, r: 0 }, 3, 8);
      const code = (wanted: string) => expect.objectContaining({ code: wanted });
      const sized = { channels: C, height, width, kernel } as const;
      const made =
        (given: unknown, spec: object = sized) =>
        () =>
          new OftImages(given as Adapter, spec as typeof sized);
      const lora = adapters.lora.create({ ...place, r: 2 });
      expect(made(lora)).toThrow(/of method oft, got lora/);
      expect(made({})).toThrow(code('ERR_TYPE'));
      expect(made(adapter, { ...sized, kernel: [3, 3] })).toThrow(/KW = 36, got 24/);
      expect(made(adapter, { ...sized, height: 2 })).toThrow(code('ERR_SHAPE'));
      const images = made(adapter)();
      expect(() => images.forward(at([1], [1, 1, 1, 1]))).toThrow(code('ERR_SHAPE'));
      const { y, saved } = images.forward(at(x, [B, C, height, width]));
      expect(() => images.backward(at([1], [1]), saved)).toThrow(code('ERR_SHAPE'));
      expect(() => images.backward(y, {} as never)).toThrow(code('ERR_TYPE'));
      saved.dispose();
      images.dispose();
      images.dispose();
      expect(() => images.forward(y)).toThrow(code('ERR_DISPOSED'));
    });
    await synchronize(device);
    expect(memoryUsage(device).liveTensors).toBe(before);
  });
});
