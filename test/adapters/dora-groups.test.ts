// DoRA of a convolution of groups, as PEFT computes it: its norm is of loraB taken for another shape. Expected values are
// written out here from flat indices, as that view has them.
import { describe, expect, it } from 'vitest';
import {
  adapterFromPeft,
  adapters,
  adaptersToPeft,
  dequantize,
  groupedWeight,
  Im2col,
  quantize,
  scope,
  Tensor,
} from '../../lib/index.js';
import { convolve, outSizeOf } from './convolution.js';
import { differences, namesIn, near, raw, shapesOf, wave } from './peft-folder.js';

const device = 'cpu' as const;
const kernel = [3, 2] as const;
const image = { height: 5, width: 4, B: 2, kernel, stride: [2, 1], padding: [1, 0] } as const;
const { height, width, B } = image;

interface Sizes {
  readonly C: number;
  readonly N: number;
  readonly r: number;
  readonly groups: number;
}

/** Of each output: w [N, K / groups] and loraB · loraA of [N / groups, r] and [r, K], both flat. */
function norms({ C, N, r, groups }: Sizes, w: Float32Array, a: Float32Array, b: Float32Array) {
  const K = C * kernel[0] * kernel[1];
  const own = K / groups;
  return Float64Array.from({ length: N }, (_, n) => {
    let sum = 0;
    for (let at = n * own; at < (n + 1) * own; at++) {
      const [row, col] = [Math.floor(at / K), at % K];
      let value = w[at] as number;
      for (let k = 0; k < r; k++)
        value += (3 / r) * (b[row * r + k] as number) * (a[k * K + col] as number);
      sum += value * value;
    }
    return Math.sqrt(sum);
  });
}

type Values = ArrayLike<number>;

/** magnitude / norm ⊙ (the layer without its bias + scaling · LoRA's) + bias */
function layer(
  { C, N, r, groups }: Sizes,
  [x, w, a, b]: readonly [Values, Values, Values, Values],
  share: Values,
  bias: Values,
): Float64Array {
  const spec = { ...image, C };
  const [OH, OW] = outSizeOf(spec);
  const pixels = { C: r, B, height: OH, width: OW };
  const single = { kernel: [1, 1], stride: [1, 1], padding: [0, 0] };
  const h = convolve(spec, x, a, r);
  const update = convolve({ ...pixels, ...single }, h, b, N, groups);
  return convolve(spec, x, w, N, groups).map((v, i) => {
    const n = Math.floor(i / (OH * OW)) % N;
    return (share[n] as number) * (v + (3 / r) * (update[i] as number)) + (bias[n] as number);
  });
}

describe('DoRA of a convolution', () => {
  it.each([
    { C: 4, N: 6, r: 4, groups: 2 },
    { C: 3, N: 3, r: 3, groups: 3 },
    { C: 4, N: 8, r: 8, groups: 4 },
  ])('of $groups groups', async (sizes) => {
    await scope(async () => {
      const { C, N, r, groups } = sizes;
      const K = C * kernel[0] * kernel[1];
      const file = {
        'lora_A.weight': raw([r, C, ...kernel]),
        'lora_B.weight': raw([N, r / groups, 1, 1], wave((N * r) / groups, 3)),
        lora_magnitude_vector: raw([1, N, 1, 1], wave(N, 6)),
      };
      const config = { peft_type: 'LORA', r, lora_alpha: 3, use_dora: true };
      const tensors = namesIn('conv', file);
      const place = { inFeatures: K, outFeatures: N, device };
      const adapter = adapterFromPeft({ config, tensors }, 'conv', place);
      expect(adapter.config).toMatchObject({ groups, kernel });
      const written = await adaptersToPeft(new Map([['conv', adapter]]));
      expect(shapesOf(written.tensors)).toEqual(shapesOf(tensors));
      expect(adapterFromPeft(written, 'conv', place).config).toEqual(adapter.config);

      const [x, w] = [wave(B * C * height * width, 2), wave((N * K) / groups, 7)];
      const [a, b] = [file['lora_A.weight'].data, file['lora_B.weight'].data];
      const magnitude = file.lora_magnitude_vector.data;
      const bias = wave(N, 9);
      const norm = norms(sizes, w, a, b);
      const shareOf = (m: Values) => norm.map((v, n) => (m[n] as number) / v);
      const expected = layer(sizes, [x, w, a, b], shareOf(magnitude), bias);
      const { B: _, ...spec } = image;
      const patches = new Im2col({ channels: C, ...spec, device });
      const base = groupedWeight(Tensor.from(w, [N, K / groups], { device }), groups);
      const rows = patches.rows(Tensor.from(x, [B, C, height, width], { device }));
      const own = Tensor.from(bias, [N], { device });
      const { y, saved } = adapter.forward(rows, base, { bias: own });
      near(patches.image(y).readSync(), expected);
      if (groups === 2) {
        // torch 2.6 over the peer's view of loraB: norms, and the first of y.
        near(norm, [1.83304971, 1.83484092, 2.86297729, 2.86449772, 3.70619717, 3.70421277], 1e-6);
        near(expected.slice(0, 4), [0.35003564, 0.33529867, 0.43310291, 0.47773209], 1e-6);
      }

      // The norm is a constant in the backward pass.
      const [OH, OW] = outSizeOf({ ...image, C });
      const dy = wave(B * N * OH * OW, 4);
      const gradient = Tensor.from(dy, [B, N, OH, OW], { device });
      const { dx, parameters } = adapter.backward(patches.imageBackward(gradient), saved);
      const of = (values: Float32Array, f: (at: Float64Array) => Float64Array) =>
        differences(Float64Array.from(values), (at) =>
          f(at).reduce((sum, v, i) => sum + v * (dy[i] as number), 0),
        );
      const share = shareOf(magnitude);
      near(
        (parameters.loraA as Tensor).readSync(),
        of(a, (at) => layer(sizes, [x, w, at, b], share, bias)),
        1e-4,
      );
      near(
        (parameters.loraB as Tensor).readSync(),
        of(b, (at) => layer(sizes, [x, w, a, at], share, bias)),
        1e-4,
      );
      near(
        (parameters.magnitude as Tensor).readSync(),
        of(magnitude, (at) => layer(sizes, [x, w, a, b], shareOf(at), bias)),
        1e-4,
      );
      near(
        patches.rowsBackward(dx as Tensor).readSync(),
        of(x, (at) => layer(sizes, [at, w, a, b], share, bias)),
        1e-4,
      );

      // Merged it is a convolution of all channels.
      const merged = adapter.merge(base, { bias: own });
      const full = { ...sizes, groups: 1 };
      const none = new Float32Array(r * K);
      const ones = new Float32Array(N).fill(1);
      const plain = [x, (merged.weight as Tensor).readSync(), none, none] as const;
      near(layer(full, plain, ones, (merged.bias as Tensor).readSync()), expected);
    });
  });

  it('of groups starts at the base, over a quantised one too', () => {
    scope(() => {
      const { C, N, r, groups } = { C: 8, N: 16, r: 4, groups: 4 };
      const K = C * 4;
      const dense = groupedWeight(Tensor.from(wave(N * (K / groups)), [N, 8], { device }), groups);
      for (const w of [dense, quantize(dense, { format: 'nf4', blocksize: 32 })]) {
        const place = { inFeatures: K, outFeatures: N, device, weight: w };
        const adapter = adapters.dora.create({ ...place, r, groups, kernel: [2, 2] });
        const x = Tensor.from(wave(3 * K, 5), [3, K], { device });
        const { y } = adapter.forward(x, w);
        const zero = adapters.lora.create({ ...place, r }).forward(x, w).y;
        near(y.readSync(), zero.readSync());
        // Away from it, by the values that the weight decodes to.
        adapter.parameters.loraB?.write(wave((N * r) / groups, 1));
        const decoded = w instanceof Tensor ? w : dequantize(w, { dtype: 'f32' });
        near(adapter.forward(x, w).y.readSync(), adapter.forward(x, decoded).y.readSync());
      }
    });
  });

  it.each([
    [{ groups: 2 }, /groups must be 1 for a layer without a kernel, got 2/],
    [{ groups: 3, kernel: [2, 1] }, /groups must be a divisor of r \(4\)/],
  ])('is refused with %o', (settings, text) => {
    const weight = Tensor.zeros([6, 8], { device });
    const place = { inFeatures: 8, outFeatures: 6, device, r: 4, weight };
    expect(() => adapters.dora.create({ ...place, ...settings } as never)).toThrow(text);
    weight.dispose();
  });
});
