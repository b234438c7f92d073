// The quantisers against the oracle of formats, on weights of every magnitude; and through files of every layout.
import { describe, expect, it } from 'vitest';
import { layoutsOf, planarFormats } from '../../../lib/checkpoint/quantize/formats.js';
import { e2m1, e2m3, e3m2, e4m3, e5m2 } from '../../../lib/checkpoint/quantize/minifloat.js';
import { mxElements } from '../../../lib/checkpoint/quantize/mx.js';
import {
  matmul,
  type PlanarFormat,
  planarToFloat32,
  QuantizedWeight,
  type QuantizePlanarOptions,
  quantizeLayer,
  quantizePlanar,
  type RawTensor,
  rawToFloat32,
  readQuantizedLayer,
  Tensor,
  writeQuantizedLayer,
} from '../../../lib/index.js';
import { encodeAll, roundTo } from '../../oracle/dtypes.js';
import { encodeFp8, fp8Scales } from '../../oracle/formats/fp8.js';
import { encodeMinifloat, levelsOf, type Minifloat } from '../../oracle/formats/minifloat.js';
import { encodeMx, mxScales } from '../../oracle/formats/mx.js';
import { encodeNvfp4, nvfp4Factor, nvfp4Scales, type Peer } from '../../oracle/formats/nvfp4.js';
import { generator } from '../fuzz.js';

/** Each element with its name in the oracle. */
const ELEMENTS = [
  ['e2m1', e2m1],
  ['e3m2', e3m2],
  ['e2m3', e2m3],
  ['e4m3fn', e4m3],
  ['e5m2', e5m2],
] as const;

const raw = (data: Float32Array, shape: number[]): RawTensor => ({ dtype: 'F32', shape, data });

/** Numbers around 1, and with `wide` of every magnitude that f32 has, zeros and ties of small integers among them. */
function weights(count: number, seed: number, wide = false): Float32Array {
  const random = generator(seed);
  const uniform = () => random(1 << 24) / (1 << 23) - 1;
  return Float32Array.from({ length: count }, (_, i) => {
    const kind = random(8);
    if (kind === 0) return 0;
    if (kind === 1) return (random(25) - 12) / 4;
    // Neighbours of a group are of one magnitude.
    const exponent = wide ? ((Math.floor(i / 64) * 37) % 270) - 146 : 0;
    return uniform() * 2 ** Math.min(exponent, 126);
  });
}

describe('elements', () => {
  it.each(ELEMENTS)('%s: every level, midpoint and neighbour', (format, element) => {
    const levels = levelsOf(format);
    const sorted = [...new Set([...levels].filter(Number.isFinite).map(Math.abs))];
    sorted.sort((a, b) => a - b);
    const points = sorted.flatMap((level, i) => {
      const middle = (level + (sorted[i + 1] ?? 2 * level)) / 2;
      return [level, middle].flatMap((v) => [v, v * (1 - 2 ** -23), v * (1 + 2 ** -23)]);
    });
    const values = Float32Array.from([...points, 1e-45, 1e-38, 1e38, ...weights(4000, 1, true)]);
    const both = [...values, ...values.map((v) => -v)];
    expect(both.map((value) => element.encode(value))).toEqual(
      both.map((value) => encodeMinifloat(format, value)),
    );
    expect(element.encode(Number.POSITIVE_INFINITY)).toBe(encodeMinifloat(format, 1e300));
    // A tie that does not go to the even code goes to the smaller neighbour; nothing else differs.
    const others = both.flatMap((value) => {
      const codes = [element.encode(value, true), element.encode(value)];
      const [down, even] = codes.map((code) => Math.abs(levels[code] as number));
      return down === even
        ? []
        : [[Math.abs(value) - (down as number), (even as number) - Math.abs(value)]];
    });
    expect(others.length).toBeGreaterThan(2);
    for (const [below, above] of others) {
      expect(below).toBe(above);
      expect(below).toBeGreaterThan(0);
    }
  });
});

describe('groups of every magnitude', () => {
  const shape = [64, 128];
  const w = weights(64 * 128, 2, true);

  it.each(['floor', 'rceil', 'even'] as const)('MX by the rule %s', (scaleRule) => {
    for (const [format, { levels }] of Object.entries(mxElements)) {
      const element = ELEMENTS.find(([, each]) => each.levels === levels)?.[0] as Minifloat;
      const made = quantizePlanar(raw(w, shape), { format: format as 'mxfp4', scaleRule });
      const rule = scaleRule.toUpperCase() as 'FLOOR';
      const scales = mxScales(rule, w, 128, element);
      expect(made.scale.values.data, format).toEqual(scales);
      const codes = encodeMx(w, scales, element);
      const mine = element === 'e2m1' ? pairs(made.codes) : made.codes;
      expect(mine, format).toEqual(codes);
    }
  });

  const pairs = (codes: Uint8Array): Uint8Array =>
    Uint8Array.from({ length: codes.length / 2 }, (_, i) => {
      return (codes[2 * i] as number) | ((codes[2 * i + 1] as number) << 4);
    });

  it.each(['torchao', 'modelopt', 'compressed-tensors'] as const)('NVFP4 of %s', (peer: Peer) => {
    // Groups below the least scale beside ones above it.
    const own = w
      .map((value, i) => (i % 1024 < 64 ? Math.fround(value * 1e-6) : value))
      .map((v) => Math.max(-1e4, Math.min(1e4, v)));
    const tensors = writeQuantizedLayer(
      quantizeLayer(raw(own, shape), { format: 'nvfp4', scaleRule: peer }),
    );
    const packed = peer === 'compressed-tensors';
    const factor = tensors[packed ? 'weight_global_scale' : 'weight_scale_2'];
    const g = nvfp4Factor(peer, own);
    expect([...((factor as RawTensor).data as Float32Array)]).toEqual([g]);
    const disk = {
      dtype: 'F32' as const,
      shape: [1],
      bytes: new Uint8Array(Float32Array.of(g).buffer),
    };
    const scales = nvfp4Scales(peer, own, disk);
    expect(tensors.weight_scale?.data).toEqual(scales);
    const codes = encodeNvfp4(peer, own, scales, disk);
    // The oracle has NaN for 0 over a scale of 0, which decodes to the same 0.
    const mine = tensors[packed ? 'weight_packed' : 'weight']?.data as Uint8Array;
    const differing = mine.findIndex((byte, i) => byte !== codes[i] && scales[i >> 3] !== 0);
    expect(differing).toBe(-1);
    expect(scales.includes(0)).toBe(peer === 'modelopt');
  });

  it.each(['F32', 'BF16', 'F16'] as const)('FP8 in %s', (dtype) => {
    const lower = dtype.toLowerCase() as 'f32';
    const values = Float32Array.from(w, (v) => roundTo(lower, Math.max(-6e4, Math.min(6e4, v))));
    const stored = (numbers: ArrayLike<number>) =>
      dtype === 'F32' ? Float32Array.from(numbers) : encodeAll(lower as 'f16', numbers);
    for (const tile of [
      [64, 128],
      [1, 128],
      [1, 32],
      [48, 100],
    ] as const) {
      const [rows, columns] = tile;
      const strategy =
        rows === 48 ? 'block' : columns === 32 ? 'group' : rows === 1 ? 'channel' : 'tensor';
      const made = quantizePlanar(
        { dtype, shape, data: stored(values) },
        {
          format: 'fp8-e4m3',
          strategy,
          ...(strategy === 'group' ? { groupSize: 32 } : {}),
          ...(strategy === 'block' ? { blockSize: tile } : {}),
        },
      );
      const scales = fp8Scales(values, 128, tile, lower);
      expect(made.scale.values.data, strategy).toEqual(stored(scales));
      const codes = encodeFp8(values, 128, tile, scales, 'e4m3fn', lower);
      expect(made.codes, strategy).toEqual(codes);
    }
  });
});

/** `quantization_config` by layout, as far as tensors alone do not say it. */
const CONFIGS: Readonly<Record<string, object>> = {
  gptq: { quant_method: 'gptq' },
  awq: { quant_method: 'awq' },
};

/** The rms error that a format may have, relative to these weights: by the steps of integers, or the bits of a mantissa. */
function errorBound(format: PlanarFormat): number {
  if (format.startsWith('int')) return 2.7 / 2 ** Number(format.slice(3));
  if (format === 'mxfp4' || format === 'nvfp4') return 0.16;
  return format.endsWith('e5m2') ? 0.06 : 0.03;
}

describe('layers', () => {
  const shape = [32, 128];
  const w = weights(32 * 128, 3);
  const all = planarFormats.flatMap((format) =>
    layoutsOf[format].map((layout) => [format, layout] as const),
  );
  const square = (values: ArrayLike<number>) =>
    Array.from(values).reduce((sum, value) => sum + value * value, 0);

  it.each(all)('%s in %s: what is written is read, and is near', (format, layout) => {
    const grouped = format.startsWith('int');
    for (const symmetric of grouped && layout !== 'hqq' ? [true, false] : [undefined]) {
      const options: QuantizePlanarOptions = {
        format,
        layout,
        ...(grouped ? { groupSize: 32 } : {}),
        ...(symmetric === undefined ? {} : { symmetric }),
      };
      const layer = quantizeLayer(raw(w, shape), options);
      expect(layer.layout.name).toBe(layout);
      const tensors = writeQuantizedLayer(layer);
      const config: Record<string, unknown> = {
        ...CONFIGS[layout],
        ...(layout === 'gptq' && symmetric === false ? { checkpoint_format: 'gptq_v2' } : {}),
      };
      if (layout === 'pack-quantized') {
        Object.assign(config, { num_bits: Number(format.slice(3)), group_size: 32 });
      }
      const again = readQuantizedLayer(tensors, config);
      const values = planarToFloat32(again.weight);
      expect(values).toEqual(planarToFloat32(layer.weight));
      const error = Math.sqrt(square(values.map((q, i) => q - (w[i] as number))) / square(w));
      const bound = errorBound(format);
      expect(error).toBeLessThan(bound);
      expect(error).toBeGreaterThan(bound / 8);
    }
  });

  it.each(['mxfp6-e3m2', 'mxfp6-e2m3'] as const)('%s has products, and no layout', (format) => {
    const planes = quantizePlanar(raw(w, shape), { format });
    using weight = QuantizedWeight.fromPlanes(planes, { device: 'reference' });
    using x = Tensor.from(
      Float32Array.from({ length: 128 }, (_, k) => Number(k === 5)),
      [1, 128],
      {
        device: 'reference',
      },
    );
    using y = matmul(x, weight);
    const values = planarToFloat32(planes);
    expect([...y.readSync()]).toEqual(Array.from({ length: 32 }, (_, n) => values[n * 128 + 5]));
    expect(() => quantizeLayer(raw(w, shape), { format })).toThrow(/quantizePlanar/);
  });

  it('of zeros alone have the epsilon of their dtype for a scale, as compressed-tensors does it', () => {
    const epsilons = { F32: 2 ** -23, BF16: 2 ** -7, F16: 2 ** -10 };
    for (const [dtype, epsilon] of Object.entries(epsilons)) {
      const data = dtype === 'F32' ? new Float32Array(128) : new Uint16Array(128);
      const zeros = { dtype, shape: [1, 128], data } as RawTensor;
      for (const symmetric of [true, false]) {
        const { weight_scale } = writeQuantizedLayer(
          quantizeLayer(zeros, { format: 'int4', symmetric }),
        );
        expect([...rawToFloat32(weight_scale as RawTensor)]).toEqual([epsilon]);
      }
    }
  });

  it("ties go to the smaller magnitude by ModelOpt's rule", () => {
    const ties = Float32Array.from(
      { length: 32 },
      (_, i) => [6, 0.25, 0.75, -1.25, 1.75, 2.5, 3.5, -5][i] ?? 0,
    );
    const made = (scaleRule: 'modelopt' | 'rceil') =>
      planarToFloat32(quantizePlanar(raw(ties, [1, 32]), { format: 'mxfp4', scaleRule }));
    expect([...made('modelopt').subarray(0, 8)]).toEqual([6, 0, 0.5, -1, 1.5, 2, 3, -4]);
    expect([...made('rceil').subarray(0, 8)]).toEqual([6, 0, 1, -1, 2, 2, 4, -4]);
  });

  it('of zeros alone are zeros', () => {
    const zeros = raw(new Float32Array(32 * 128), shape);
    for (const [format, layout] of all) {
      const { weight } = quantizeLayer(zeros, { format: format as PlanarFormat, layout });
      expect(Math.max(...planarToFloat32(weight).map(Math.abs)), `${format} ${layout}`).toBe(0);
    }
  });

  it('HQQ keeps groups far from zero, whose zero-point f16 would not hold', () => {
    const far = Float32Array.from(w, (v, i) => (i % 64 < 32 ? 1000 : -0.001) + v * 1e-6);
    const { weight } = quantizeLayer(raw(far, shape), {
      format: 'int4',
      layout: 'hqq',
      groupSize: 32,
    });
    planarToFloat32(weight).forEach((value, i) => {
      expect(Math.abs(value - (far[i] as number))).toBeLessThan(Math.abs(far[i] as number) * 0.04);
    });
  });
});
