// Merging into weights with tables of their own, of 4 and of 8 bits, double-quantised or not: the tables stay, and every
// element has the nearest level, by plain loops over the bytes of the file.
import { describe, expect, it } from 'vitest';
import {
  adapters,
  type BitsandbytesState,
  type DType,
  dequantize,
  devices,
  mergeLora,
  type QuantFormat,
  QuantizedWeight,
  quantize,
  scope,
  Tensor,
  unmergeLora,
} from '../../lib/index.js';
import { FULL_SWEEP } from './operands.js';

const available = devices()
  .filter(({ available }) => available)
  .map(({ device }) => device);

const curve = (count: number, power: number, scale = 1) =>
  Float32Array.from({ length: count }, (_, i) => {
    const t = (2 * i - (count - 1)) / (count - 1);
    return scale * Math.sign(t) * Math.abs(t) ** power;
  });
/** Eight magnitudes in no order, then their negatives. */
const MAGNITUDES = [0, 0.02, 0.7, 1, 0.11, 0.45, 0.05, 0.25];
const TABLES: Readonly<Record<string, Float32Array>> = {
  nf4: curve(16, 1.4),
  fp4: Float32Array.from([...MAGNITUDES, ...MAGNITUDES.map((v) => 0 - v)]),
  int8: curve(256, 3),
};
const NESTED = curve(256, 2, 0.9);

const floats = (state: BitsandbytesState, key: string): Float32Array =>
  state[key]?.data as Float32Array;
const bytes = (state: BitsandbytesState, key: string): Uint8Array => state[key]?.data as Uint8Array;
const stateOf = (state: BitsandbytesState, format: string) =>
  JSON.parse(
    new TextDecoder().decode(bytes(state, `weight.quant_state.bitsandbytes__${format}`)),
  ) as { readonly nested_offset?: number; readonly blocksize: number };

/** The scales of a file: [blocks]. */
function scalesOf(state: BitsandbytesState, format: string): Float64Array {
  const { nested_offset: offset } = stateOf(state, format);
  if (offset === undefined) return Float64Array.from(floats(state, 'weight.absmax'));
  const [map, nested] = [
    floats(state, 'weight.nested_quant_map'),
    floats(state, 'weight.nested_absmax'),
  ];
  return Float64Array.from(bytes(state, 'weight.absmax'), (code, b) => {
    return (map[code] as number) * (nested[Math.floor(b / 256)] as number) + offset;
  });
}

/** The distance of v to the nearest of ascending levels. */
function nearest(levels: Float32Array, v: number): number {
  let [low, high] = [0, levels.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if ((levels[middle] as number) < v) low = middle;
    else high = middle;
  }
  return Math.min(Math.abs((levels[low] as number) - v), Math.abs((levels[high] as number) - v));
}

/** Of each element |level − v / absmax|, beyond that of the nearest level; and of the scales. */
function worstOf(state: BitsandbytesState, format: string, wanted: ArrayLike<number>) {
  const map = floats(state, 'weight.quant_map');
  const packed = bytes(state, 'weight');
  const { blocksize } = stateOf(state, format);
  const codeOf = (i: number): number => {
    if (format === 'int8') return packed[i] as number;
    const byte = packed[i >> 1] as number;
    return i % 2 === 0 ? byte >> 4 : byte & 15;
  };
  const absmax = new Float64Array(Math.ceil(wanted.length / blocksize));
  for (let i = 0; i < wanted.length; i++) {
    const b = Math.floor(i / blocksize);
    absmax[b] = Math.max(absmax[b] as number, Math.abs(wanted[i] as number));
  }
  const levels = map.slice().sort();
  let codes = 0;
  for (let i = 0; i < wanted.length; i++) {
    const v = (wanted[i] as number) / (absmax[Math.floor(i / blocksize)] as number);
    const gap = Math.abs((map[codeOf(i)] as number) - v);
    codes = Math.max(codes, gap - nearest(levels, v));
  }
  const scales = scalesOf(state, format);
  let beyond = 0;
  const { nested_offset: offset } = stateOf(state, format);
  const mean = absmax.reduce((sum, v) => sum + v, 0) / absmax.length;
  absmax.forEach((v, b) => {
    if (offset === undefined) {
      beyond = Math.max(beyond, Math.abs((scales[b] as number) - v));
      return;
    }
    const first = b - (b % 256);
    const group = absmax.subarray(first, first + 256).map((each) => Math.abs(each - mean));
    const most = Math.max(...group);
    const got = ((scales[b] as number) - offset) / most;
    const target = (v - mean) / most;
    const gap = nearest(floats(state, 'weight.nested_quant_map'), target);
    beyond = Math.max(beyond, Math.abs(got - target) - gap);
  });
  return { codes, scales: beyond };
}

/** A weight whose file has other tables than its format's. */
async function ownWeight(
  format: QuantFormat,
  doubleQuant: boolean,
  tables: readonly ('main' | 'nested')[],
  w: Tensor,
  blocksize: number,
): Promise<QuantizedWeight> {
  const state = { ...(await quantize(w, { format, blocksize, doubleQuant }).toBitsandbytes()) };
  const put = (key: string, data: Float32Array) => {
    state[key] = { dtype: 'F32', shape: [data.length], data };
  };
  if (tables.includes('main')) put('weight.quant_map', TABLES[format] as Float32Array);
  if (tables.includes('nested')) put('weight.nested_quant_map', NESTED);
  return QuantizedWeight.fromBitsandbytes(state, { device: w.device });
}

const CASES = [
  ['nf4', false, ['main']],
  ['nf4', true, ['main']],
  ['nf4', true, ['nested']],
  ['nf4', true, ['main', 'nested']],
  ['fp4', false, ['main']],
  ['fp4', true, ['main', 'nested']],
  ['int8', true, ['main']],
  ['int8', true, ['nested']],
] as const;

describe.each(available)('merging on %s', (device) => {
  // 100 columns in blocks of 64: tiles of a megabyte begin at multiples of 16 rows, or of 4096 with double quantisation.
  it.each(
    CASES.flatMap((own, i) => [
      [...own, 5, 96, 'f32'] as const,
      // Several tiles: a sample has each format, and both kinds of table.
      ...(FULL_SWEEP || [3, 5, 6].includes(i) ? [[...own, 2703, 100, 'bf16'] as const] : []),
    ]),
  )(
    'keeps the tables, %s, double %s, own %j, [%i, %i] %s',
    async (format, double, tables, N, K, dtype) => {
      await scope(async () => {
        const dense = Tensor.randn([N, K], { seed: 6, device, dtype: dtype as DType });
        const w = await ownWeight(format, double, tables, dense, 64);
        const before = await w.toBitsandbytes();
        const parts = {
          loraA: Tensor.randn([2, K], { seed: 7, device }),
          loraB: Tensor.randn([N, 2], { seed: 8, device }),
          scaling: 0.5,
        };
        const [a, b] = [parts.loraA.readSync(), parts.loraB.readSync()];
        const sum = Float64Array.from(dequantize(w).readSync(), (v, i) => {
          const [n, k] = [Math.floor(i / K), i % K];
          const at = (j: number) => (b[2 * n + j] as number) * (a[j * K + k] as number);
          return v + 0.5 * (at(0) + at(1));
        });
        const { weight, lost } = mergeLora(w, parts);
        const state = await weight.toBitsandbytes();
        for (const key of ['weight.quant_map', 'weight.nested_quant_map']) {
          expect(state[key], key).toEqual(before[key]);
        }
        expect(weight.sourceDType).toBe(dtype);
        const worst = worstOf(state, format, sum);
        expect(worst.codes).toBeLessThan(1e-5);
        expect(worst.scales).toBeLessThan(1e-5);
        expect(lost.kept).toBeGreaterThan(0.9);
        // The old one stays; the new one is as good a base.
        expect(await w.toBitsandbytes()).toEqual(before);
        const back = unmergeLora(weight, parts).weight;
        expect((await back.toBitsandbytes())['weight.quant_map']).toEqual(
          before['weight.quant_map'],
        );
      });
    },
  );

  it.each(CASES)(
    'by probes keeps them too, %s, double %s, own %j',
    async (format, double, tables) => {
      await scope(async () => {
        const [N, K] = [6, 128];
        const dense = Tensor.randn([N, K], { seed: 4, device });
        const w = await ownWeight(format, double, tables, dense, 64);
        const place = { inFeatures: K, outFeatures: N, device, weight: w };
        const adapter = adapters.dora.create({ ...place, r: 2, seed: 1 });
        adapter.parameters.loraB?.write(Tensor.randn([N, 2], { seed: 2, device }).readSync());
        const wanted = adapter.merge(dequantize(w, { dtype: 'f32' })).weight as Tensor;
        const state = await (adapter.merge(w).weight as QuantizedWeight).toBitsandbytes();
        const before = await w.toBitsandbytes();
        for (const key of ['weight.quant_map', 'weight.nested_quant_map']) {
          expect(state[key], key).toEqual(before[key]);
        }
        const worst = worstOf(state, format, wanted.readSync());
        expect(worst.codes).toBeLessThan(1e-5);
        expect(worst.scales).toBeLessThan(1e-5);
      });
    },
  );

  it('by zeros and by an odd number of elements has codes of the level that is nearest to 0', async () => {
    await scope(async () => {
      const w = await ownWeight('nf4', false, ['main'], Tensor.zeros([1, 65], { device }), 64);
      const parts = {
        loraA: Tensor.zeros([1, 65], { device }),
        loraB: Tensor.zeros([1, 1], { device }),
      };
      const { weight } = mergeLora(w, parts);
      expect(
        dequantize(weight)
          .readSync()
          .every((v) => v === 0),
      ).toBe(true);
      const packed = bytes(await weight.toBitsandbytes(), 'weight');
      expect([...packed]).toEqual(new Array(33).fill(0x77));
    });
  });

  it('refuses what is not finite', async () => {
    await scope(async () => {
      const w = await ownWeight(
        'nf4',
        true,
        ['main'],
        Tensor.randn([2, 64], { seed: 1, device }),
        64,
      );
      const loraA = Tensor.from(new Float32Array(64).fill(3e38), [1, 64], { device });
      const loraB = Tensor.from([3e38, 1], [2, 1], { device });
      expect(() => mergeLora(w, { loraA, loraB })).toThrow(
        expect.objectContaining({ code: 'ERR_NON_FINITE' }),
      );
    });
  });
});

describe.each(available)('a file with the format’s own tables on %s', (device) => {
  it.each([
    ['nf4', true],
    ['fp4', true],
    ['int8', true],
  ] as const)(
    'is merged to the bytes that quantize gives, %s, double %s',
    async (format, doubleQuant) => {
      await scope(async () => {
        const dense = Tensor.randn([8, 64], { seed: 6, device });
        const w = await ownWeight(format, doubleQuant, [], dense, 64);
        const parts = {
          loraA: Tensor.randn([2, 64], { seed: 7, device }),
          loraB: Tensor.randn([8, 2], { seed: 8, device }),
        };
        const sum = mergeLora(dequantize(w), parts).weight;
        const wanted = quantize(sum, { format, blocksize: 64, doubleQuant });
        const { weight } = mergeLora(w, parts);
        expect(await weight.toBitsandbytes()).toEqual(await wanted.toBitsandbytes());
      });
    },
  );
});
