// PEFT's IA3 of a convolution, on its inputs and on its outputs, against the layer in float64.
import { describe, expect, it } from 'vitest';
import { adapterFromPeft, adaptersToPeft, Im2col, scope, Tensor } from '../../lib/index.js';
import { convolve, outSizeOf } from './convolution.js';
import { differences, namesIn, near, raw, shapesOf, wave } from './peft-folder.js';

const device = 'cpu' as const;

describe('IA3 of a convolution', () => {
  const kernel = [3, 2] as const;
  const spec = {
    C: 3,
    height: 5,
    width: 4,
    B: 2,
    kernel,
    stride: [2, 1],
    padding: [1, 0],
  } as const;
  const { C, B, ...image } = spec;
  const { height, width } = image;
  const [N, taps] = [4, 6];
  const K = C * taps;
  const x = wave(B * C * height * width, 2);
  const w = wave(N * K, 7);
  const shift = wave(N, 1);
  const [OH, OW] = outSizeOf(spec);
  const place = { inFeatures: K, outFeatures: N, device };

  it.each([
    ['an output’s', [], N],
    ['an input’s', ['conv'], C],
  ] as const)('has one value for %s channel', async (_, feedforward_modules, channels) => {
    await scope(async () => {
      const feedforward = feedforward_modules.length > 0;
      const scale = wave(channels, 3);
      const tensors = namesIn('conv', { ia3_l: raw([1, channels, 1, 1], scale) });
      const config = { peft_type: 'IA3', feedforward_modules };
      const adapter = adapterFromPeft({ config, tensors }, 'conv', place);
      expect(adapter.method).toBe(feedforward ? 'ia3-input' : 'ia3');

      // The layer, its inputs or its outputs scaled by channels.
      const pixels = feedforward ? height * width : OH * OW;
      const scaled = (values: ArrayLike<number>, at: ArrayLike<number>) =>
        Float64Array.from(values, (v, i) => v * (at[Math.floor(i / pixels) % channels] as number));
      const layer = (input: ArrayLike<number>, at: ArrayLike<number>) => {
        const y64 = convolve(spec, feedforward ? scaled(input, at) : input, w, N);
        const moved = y64.map((v, i) => v + (shift[Math.floor(i / (OH * OW)) % N] as number));
        return feedforward ? moved : scaled(moved, at);
      };
      const patches = new Im2col({ channels: C, ...image, device });
      const base = Tensor.from(w, [N, K], { device });
      const bias = Tensor.from(shift, [N], { device });
      const rows = patches.rows(Tensor.from(x, [B, C, height, width], { device }));
      const { y, saved } = adapter.forward(rows, base, { bias });
      near(patches.image(y).readSync(), layer(x, scale));
      const merged = adapter.merge(base, { bias });
      const whole = convolve(spec, x, (merged.weight as Tensor).readSync(), N);
      const own = (merged.bias as Tensor).readSync();
      near(
        whole.map((v, i) => v + (own[Math.floor(i / (OH * OW)) % N] as number)),
        layer(x, scale),
      );

      const dy = wave(B * N * OH * OW, 4);
      const gradient = Tensor.from(dy, [B, N, OH, OW], { device });
      const back = adapter.backward(patches.imageBackward(gradient), saved);
      const total = (y64: Float64Array) => y64.reduce((sum, v, i) => sum + v * (dy[i] ?? 0), 0);
      near(
        (back.parameters.scale as Tensor).readSync(),
        differences(Float64Array.from(scale), (at) => total(layer(x, at))),
        1e-4,
      );
      near(
        patches.rowsBackward(back.dx as Tensor).readSync(),
        differences(Float64Array.from(x), (at) => total(layer(at, scale))),
        1e-4,
      );

      const written = await adaptersToPeft(new Map([['conv', adapter]]));
      expect(shapesOf(written.tensors)).toEqual(shapesOf(tensors));
      const again = adapterFromPeft(written, 'conv', place);
      expect(again.config).toEqual(adapter.config);
      expect((again.parameters.scale as Tensor).readSync()).toEqual(scale);
    });
  });

  it('has the shape of its dimensions', async () => {
    for (const dims of [[1], [1, 1, 1]])
      for (const feedforward_modules of [[], ['conv']]) {
        const channels = feedforward_modules.length > 0 ? C : N;
        const tensors = namesIn('conv', { ia3_l: raw([1, channels, ...dims]) });
        const config = { peft_type: 'IA3', feedforward_modules };
        const adapter = adapterFromPeft({ config, tensors }, 'conv', place);
        const written = await adaptersToPeft(new Map([['conv', adapter]]));
        expect(shapesOf(written.tensors)).toEqual(shapesOf(tensors));
      }
  });

  it('is refused where its channels do not fit', () => {
    const tensors = namesIn('conv', { ia3_l: raw([1, 5, 1, 1]) });
    const of = (feedforward_modules: string[]) => () =>
      adapterFromPeft(
        { config: { peft_type: 'IA3', feedforward_modules }, tensors },
        'conv',
        place,
      );
    expect(of(['conv'])).toThrow(/scale must be of shape \[1, 18\], got \[1, 5, 1, 1\]/);
    expect(of([])).toThrow(/scale must be of shape \[4, 1\], got \[1, 5, 1, 1\]/);
  });
});
