// Codes, scales and nested state bit for bit as the oracle has them; dequantisation exact.
import { describe, expect, it } from 'vitest';
import { nativeAsync } from '../../lib/core/binding.js';
import {
  dequantize,
  FORMATS,
  type QuantFormat,
  QuantizedWeight,
  quantize,
  scope,
  Tensor,
} from '../../lib/index.js';
import { normalMatrix } from '../oracle/inputs.js';
import {
  codebookOf,
  dequantiseBlocks,
  dynamicMap,
  exact,
  type Matrix,
  map,
  matrix,
  mistrust,
  nestAbsmax,
  packNibbles,
  quantiseBlocks,
  roundAll,
  roundTo,
  unnestAbsmax,
  zeroCodeOf,
} from '../oracle.js';
import { DEVICES, DTYPES, tensorOf } from './operands.js';

/** What a matrix of weights looks like; each edge is a reason. */
const CONTENTS: Record<string, (values: Matrix, blocksize: number, format: QuantFormat) => Matrix> =
  {
    'normal values': (values) => values,
    'a block of zeros': (values, blocksize) =>
      map(values, (v, i) => (Math.floor(i / blocksize) === 1 ? 0 : v)),
    'one outlier': (values) => map(values, (v, i) => (i === 70 ? 1000 : v)),
    'a negative outlier': (values) => map(values, (v, i) => (i === 3 ? -1000 : v)),
    'denormal values': (values) => map(values, (v, i) => (i < 96 ? v * 1e-40 : v)),
    'one value throughout': (values) => map(values, () => -0.375),
    'negative zeros': (values) => map(values, (v, i) => (i % 3 === 0 ? -0 : v)),
    'midpoints and levels': (values, _, format) => {
      const book = codebookOf(format);
      const at = (i: number): number => book[i % book.length] as number;
      return map(values, (_, i) => {
        if (i % 32 === 15) return 1;
        return i % 2 === 0 ? at(i) : (at(i) + at(i + 1)) / 2;
      });
    },
  };

/** What a device holds, by the keys of bitsandbytes' states. */
async function parts(weight: QuantizedWeight): Promise<Map<string, ArrayLike<number>>> {
  if (FORMATS.find(({ name }) => name === weight.format)?.bitsandbytes) {
    const state = await weight.toBitsandbytes();
    return new Map(Object.entries(state).map(([key, { data }]) => [key, data as Float32Array]));
  }
  const handle = QuantizedWeight.handleOf(weight, 'test', 'weight');
  const read = (part: string) =>
    nativeAsync<ArrayBuffer>('test', (raw, done) => raw.read(handle, part, 'f32', done));
  const bytes = async (part: string) => new Uint8Array(await read(part));
  const floats = async (part: string) => new Float32Array(await read(part));
  const map = new Map<string, ArrayLike<number>>([
    ['weight', await bytes('codes')],
    ['weight.quant_map', await floats('codebook')],
  ]);
  if (!weight.doubleQuant) return map.set('weight.absmax', await floats('absmax'));
  return map
    .set('weight.absmax', await bytes('absmax8bit'))
    .set('weight.nested_absmax', await floats('nestedAbsmax'))
    .set('weight.nested_quant_map', await floats('absmaxCodebook'));
}

const SHAPES: readonly (readonly [N: number, K: number])[] = [
  [1, 1],
  [5, 27],
  [7, 33],
  [4, 32],
  [64, 65],
  [13, 172],
];

const CASES = DEVICES.flatMap((device) =>
  FORMATS.map((row) => ({ ...row, device, format: row.name })),
);

describe.each(CASES)('quantize to $format on $device', (row) => {
  const { device, format, bits } = row;
  async function check(
    values: Matrix,
    blocksize: number,
    doubleQuant: boolean,
    dtype: 'f32' | 'bf16' | 'f16',
    name: string,
  ) {
    await scope(async () => {
      const exactValues = matrix(values.rows, values.cols, roundAll(dtype, values.data));
      const w = tensorOf(exactValues, { dtype, device });
      const weight = quantize(w, { format, blocksize, doubleQuant });
      const expected = quantiseBlocks(exactValues.data, format, blocksize);
      const actual = await parts(weight);
      const get = (key: string): ArrayLike<number> => actual.get(key) as ArrayLike<number>;
      const packed = bits === 8 ? expected.codes : packNibbles(expected.codes, zeroCodeOf(format));
      exact(`${name} codes`, get('weight'), packed);
      exact(`${name} codebook`, get('weight.quant_map'), codebookOf(format));
      let { absmax } = expected;
      if (doubleQuant) {
        const nested = nestAbsmax(absmax);
        exact(`${name} absmax_8bit`, get('weight.absmax'), nested.absmax8bit);
        exact(`${name} nested_absmax`, get('weight.nested_absmax'), nested.nestedAbsmax);
        exact(`${name} absmax_codebook`, get('weight.nested_quant_map'), dynamicMap());
        absmax = unnestAbsmax(nested);
      } else {
        exact(`${name} absmax`, get('weight.absmax'), absmax);
      }
      const decoded = dequantiseBlocks({ ...expected, absmax });
      for (const out of DTYPES) {
        const dense = dequantize(weight, { dtype: out });
        const rounded = decoded.map((value) => roundTo(out, value));
        exact(`${name} dequantised to ${out}`, await dense.read(), rounded);
      }
      expect(weight.shape).toEqual([values.rows, values.cols]);
    });
  }

  it.each(DTYPES)('every shape, from %s', async (dtype) => {
    for (const [N, K] of SHAPES) {
      for (const doubleQuant of [false, true]) {
        const values = normalMatrix(N, K, N * 1000 + K, 0.1);
        mistrust('w', values.data);
        await check(values, 64, doubleQuant, dtype, `[${N}, ${K}] ${doubleQuant}`);
      }
    }
  });

  it.each([32, 64, 128, 256, 512, 1024, 2048, 4096])('blocksize %i', async (blocksize) => {
    await check(normalMatrix(5, 2049, blocksize, 0.1), blocksize, false, 'f32', `${blocksize}`);
    await check(
      normalMatrix(83, 211, blocksize, 0.1),
      blocksize,
      true,
      'f32',
      `${blocksize} nested`,
    );
  });

  it.each(Object.entries(CONTENTS))('%s', async (name, content) => {
    for (const dtype of DTYPES) {
      const values = content(normalMatrix(11, 37, 9), 64, format);
      // f16 holds no 1e-40: those are zeros there, which is an edge as well.
      for (const doubleQuant of [false, true]) {
        await check(values, 64, doubleQuant, dtype, `${name} ${dtype} ${doubleQuant}`);
      }
    }
  });

  it('more blocks than one nested block, and more elements than one task', async () => {
    await check(normalMatrix(300, 257, 4, 0.02), 64, true, 'bf16', '[300, 257]');
  });

  it('the default blocksize and dtype, byteLength, and a weight without elements', async () => {
    await scope(async () => {
      const w = tensorOf(normalMatrix(8, 64, 1), { dtype: 'bf16', device });
      const weight = quantize(w, { format });
      expect(weight.blocksize).toBe(row.defaultBlocksize);
      expect(weight.doubleQuant).toBe(false);
      expect(dequantize(weight).dtype).toBe('bf16');
      const blocks = 512 / row.defaultBlocksize;
      expect(weight.byteLength).toBe((512 * bits) / 8 + blocks * 4 + row.levels * 4);
      const none = quantize(Tensor.zeros([0, 5], { device }), { format });
      expect(await dequantize(none).read()).toEqual(new Float32Array());
    });
  });
});
