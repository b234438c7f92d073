// Other values in the format of a weight: nearest codes, and scales made anew where they do not reach.
import { describe, expect, it } from 'vitest';
import {
  type GgufBlockType,
  ggufToPlanar,
  type PlanarWeight,
  planarToFloat32,
  planarToGguf,
  type QuantizePlanarOptions,
  quantizedLayers,
  quantizeLayer,
  quantizePlanar,
  quantizeToGguf,
  type RawTensor,
  rawToFloat32,
  readQuantizedLayer,
  requantizePlanar,
  writeQuantizedLayer,
} from '../../../lib/index.js';
import { caseIds, loadCase } from '../../golden/case-file.js';
import { layerCases } from '../codecs/cases.js';
import { generator } from '../fuzz.js';

const [N, K] = [16, 256];
const random = generator(9);
const w = Float32Array.from({ length: N * K }, () => (random(2001) - 1000) / 1000);
const raw = (data: Float32Array): RawTensor => ({ dtype: 'F32', shape: [N, K], data });

const ROUNDING: QuantizePlanarOptions[] = [
  { format: 'fp8-e4m3', strategy: 'channel' },
  { format: 'fp8-e5m2', strategy: 'block', blockSize: [8, 64] },
  { format: 'mxfp8-e4m3' },
  { format: 'mxfp6-e3m2' },
  { format: 'mxfp4' },
  { format: 'nvfp4' },
  { format: 'nvfp4', layout: 'modelopt-nvfp4' },
  { format: 'int4', groupSize: 64 },
  { format: 'int4', groupSize: 64, symmetric: false },
  { format: 'int8', layout: 'int-quantized', strategy: 'tensor' },
  { format: 'int4', groupSize: 64, layout: 'awq' },
];

const named = (options: QuantizePlanarOptions): string =>
  `${options.format} ${options.layout ?? ''} ${options.strategy ?? ''} ${options.symmetric ?? ''}`;

/** Each value has a code of its group that is as near as any, by trying them all. */
function requireNearest(weight: PlanarWeight, values: Float32Array): void {
  const decoded = planarToFloat32(weight);
  const best = new Float64Array(values.length).fill(Number.POSITIVE_INFINITY);
  for (let code = 0; code < 2 ** weight.bits; code++) {
    const all = planarToFloat32({ ...weight, codes: new Uint8Array(values.length).fill(code) });
    all.forEach((value, i) => {
      const off = Math.abs(value - (values[i] as number));
      if (off < (best[i] as number)) best[i] = off;
    });
  }
  decoded.forEach((value, i) => {
    const off = Math.abs(value - (values[i] as number));
    if (off > (best[i] as number) * (1 + 1e-5) + 1e-7) {
      throw new Error(`${i}: ${off} from ${values[i]}, where ${best[i]} is possible`);
    }
  });
}

describe('formats of plain rounding', () => {
  it.each(ROUNDING.map((options) => [named(options), options] as const))('%s', (_, options) => {
    const weight = quantizePlanar(raw(w), options);
    // Its own values are stored as they are.
    const own = requantizePlanar(weight, planarToFloat32(weight));
    expect(planarToFloat32(own)).toEqual(planarToFloat32(weight));
    expect(own.scale).toEqual(weight.scale);

    // Values within reach keep every scale.
    const near = planarToFloat32(weight).map((value, i) => value * (0.97 + (i % 5) / 200));
    const kept = requantizePlanar(weight, near);
    expect(kept.scale).toEqual(weight.scale);
    expect(kept.zero).toEqual(weight.zero);
    requireNearest(kept, near);

    // Three times as large they do not reach: what quantising the values would make comes out, but for the factor of NVFP4.
    const far = w.map((value) => value * 3);
    const made = requantizePlanar(weight, far);
    const anew = quantizePlanar(raw(far), options);
    if (options.format !== 'nvfp4') {
      expect(made.scale).toEqual(anew.scale);
      expect(made.zero).toEqual(anew.zero);
    } else {
      // e4m3 ends at 448 times the tensor's factor.
      expect(new Set(made.scale.values.data as Uint8Array).has(126)).toBe(true);
    }
    requireNearest(made, far);
  });

  it('one group beyond its scale leaves the others', () => {
    const weight = quantizePlanar(raw(w), { format: 'int4', groupSize: 64 });
    const values = planarToFloat32(weight).slice();
    values[70] = 20;
    const made = requantizePlanar(weight, values);
    const [before, after] = [weight, made].map(({ scale }) => scale.values.data as Float32Array);
    (after as Float32Array).forEach((scale, entry) => {
      if (entry === 1) expect(scale).toBe(Math.fround(20 / 7.5));
      else expect(scale).toBe((before as Float32Array)[entry]);
    });
    requireNearest(made, values);
  });

  it('half a step beyond the last level is in reach, and more is not', () => {
    const weight = quantizePlanar(raw(w), { format: 'int4', strategy: 'tensor' });
    const [scale = 0] = weight.scale.values.data as Float32Array;
    const at = (steps: number): boolean => {
      const values = new Float32Array(N * K);
      values[5] = steps * scale;
      return requantizePlanar(weight, values).scale.values.data[0] === scale;
    };
    expect([at(7.49), at(7.51), at(-8.49), at(-8.51)]).toEqual([true, false, true, false]);
  });

  it('a group of zeros with a scale of 0 gets one', () => {
    const weight = quantizePlanar(raw(w), { format: 'int4', groupSize: 64 });
    const data = (weight.scale.values.data as Float32Array).slice().fill(0, 0, 1);
    const none = { ...weight, scale: { values: { dtype: 'f32', data } as const } };
    const zeros = new Float32Array(N * K);
    expect(requantizePlanar(none, zeros).scale).toEqual(none.scale);
    zeros[3] = 1;
    const made = requantizePlanar(none, zeros);
    expect((made.scale.values.data as Float32Array)[0]).toBe(Math.fround(1 / 7.5));
  });

  it('the recorded codes of act-order follow from its scales and groups', () => {
    const id = caseIds('formats/compressed_tensors').find((each) => each.endsWith('actorder'));
    const golden = loadCase(id as string);
    const layer = layerCases(quantizedLayers).find((each) => each.id === id);
    const { weight } = readQuantizedLayer(layer?.tensors ?? {}, layer?.config);
    const { dtype, shape, bytes } = golden.tensor('in.w');
    const values = rawToFloat32({ dtype: dtype as 'BF16', shape, data: bytes });
    const codes = golden.numbers('out.codes');
    const made = requantizePlanar({ ...weight, codes: new Uint8Array(codes.length) }, values);
    const others = made.codes.filter((code, i) => code - 8 !== codes[i]);
    expect(made.grid.kind).toBe('ordered');
    expect(made.scale).toEqual(weight.scale);
    // The peer divides in bf16.
    expect(others.length / codes.length).toBeLessThan(0.05);
  });
});

describe('formats that search', () => {
  const types = ['Q4_K', 'Q6_K', 'Q3_K', 'IQ4_XS', 'Q2_K'] as const satisfies GgufBlockType[];

  it.each(types)('%s keeps its scales, and clamps', (type) => {
    const weight = ggufToPlanar(quantizeToGguf(w, [N, K], type));
    for (const factor of [1, 1.01, 3]) {
      const values = planarToFloat32(weight).map((value) => value * factor);
      const made = requantizePlanar(weight, values);
      expect({ ...made, codes: 0 }).toEqual({ ...weight, codes: 0 });
      requireNearest(made, values);
      // It goes back into the file.
      const again = ggufToPlanar(planarToGguf(made, type).tensor);
      expect(planarToFloat32(again)).toEqual(planarToFloat32(made));
    }
  });

  it('HQQ keeps its scales and zero-points, and clamps', () => {
    const layer = quantizeLayer(raw(w), { format: 'int4', layout: 'hqq' });
    const values = planarToFloat32(layer.weight).map((value) => value * 2);
    const made = requantizePlanar(layer.weight, values);
    expect({ ...made, codes: 0 }).toEqual({ ...layer.weight, codes: 0 });
    requireNearest(made, values);
    const tensors = writeQuantizedLayer({ weight: made, layout: layer.layout });
    const again = readQuantizedLayer(tensors, { quant_method: 'hqq' });
    expect(planarToFloat32(again.weight)).toEqual(planarToFloat32(made));
  });

  it('blocks with a scale and a minimum get both anew', () => {
    const weight = ggufToPlanar(quantizeToGguf(w, [N, K], 'Q4_1'));
    const far = w.map((value) => value * 3 + 1);
    const made = requantizePlanar(weight, far);
    requireNearest(made, far);
    const decoded = planarToFloat32(made);
    // Half a step of a range of 6 in 15 steps, and the rounding of f16.
    far.forEach((value, i) => {
      expect(Math.abs((decoded[i] as number) - value)).toBeLessThan(0.205);
    });
    expect(planarToGguf(made, 'Q4_1').tensor.type).toBe('Q4_1');
  });
});

describe('bad calls', () => {
  const weight = quantizePlanar(raw(w), { format: 'mxfp4' });
  it.each([
    ['ERR_TYPE', weight, [1, 2], /values must be a Float32Array/],
    [
      'ERR_SHAPE',
      weight,
      new Float32Array(5),
      /number of values must be 4096 for \[16, 256\], got 5/,
    ],
    ['ERR_NON_FINITE', weight, new Float32Array(N * K).fill(Number.NaN, 9, 10), /values\[9\]/],
    ['ERR_SHAPE', { ...weight, codes: new Uint8Array(3) }, w, /codes must be/],
  ] as const)('%s', (code, given, values, message) => {
    const call = () => requantizePlanar(given as PlanarWeight, values as Float32Array);
    expect(call).toThrow(expect.objectContaining({ code }));
    expect(call).toThrow(message);
  });
});
