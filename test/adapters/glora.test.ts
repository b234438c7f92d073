// GLoRA's paths from PEFT's folders, of layers with a bias and without. Expected values are written out here.
import { describe, expect, it } from 'vitest';
import { adapterFromPeft, adapters, adaptersToPeft, scope, Tensor } from '../../lib/index.js';
import { namesIn, near, type Raw, raw, shapesOf, wave } from './peft-folder.js';

const [B, T, N, K, r] = [2, 3, 4, 6, 2];
const device = 'cpu' as const;
const [x, w, shift] = [wave(B * T * K, 4), wave(N * K, 9), wave(N, 1)];
const place = { inFeatures: K, outFeatures: N, device };

type Entry = (row: number, col: number) => number;
interface Path {
  readonly tensors: Readonly<Record<string, Raw>>;
  readonly at: Entry;
}

/** A path [rows, cols] as the file has it, and its entries. */
function pathOf(kind: string, letter: string, rows: number, cols: number, phase: number): Path {
  const name = `glora_${letter}`;
  if (kind === 'lora') {
    const [d, u] = [
      raw([rows, r], wave(rows * r, phase)),
      raw([r, cols], wave(r * cols, phase + 1)),
    ];
    const at: Entry = (i, j) => {
      let sum = 0;
      for (let k = 0; k < r; k++)
        sum += (d.data[i * r + k] as number) * (u.data[k * cols + j] as number);
      return sum;
    };
    return { tensors: { [`${name}.Xd`]: d, [`${name}.Xu`]: u }, at };
  }
  if (kind === 'none') return { tensors: {}, at: () => 0 };
  const shape = kind === 'constant' ? [1] : 'DE'.includes(letter) ? [rows] : [rows, 1];
  const values = raw(shape, wave(kind === 'constant' ? 1 : rows, phase));
  const at: Entry = (i) => values.data[kind === 'constant' ? 0 : i] as number;
  return { tensors: { [`${name}.X`]: values }, at };
}

const cases = [
  ...['lora', 'vector', 'constant', 'none'].map((ab) => [ab, 'lora', 'constant', true] as const),
  ['lora', 'vector', 'vector', true],
  ['vector', 'none', 'vector', true],
  ['vector', 'vector', 'none', true],
  ['constant', 'none', 'none', true],
  ['none', 'none', 'none', true],
  ...['lora', 'vector', 'constant', 'none'].map((ab) => [ab, 'lora', 'vector', false] as const),
] as const;

describe('a GLoRA folder', () => {
  it.each(cases)('of %s, %s, %s, with a bias: %s', async (ab, c, de, biased) => {
    await scope(async () => {
      const [a, b] = [pathOf(ab, 'A', N, K, 1), pathOf(ab, 'B', N, K, 3)];
      const ofBias = (kind: string) => (biased ? kind : 'none');
      const cPath = pathOf(ofBias(c), 'C', K, 1, 5);
      const [d, e] = [pathOf(ofBias(de), 'D', N, 1, 7), pathOf(ofBias(de), 'E', N, 1, 8)];
      const tensors = namesIn('lin', {
        ...a.tensors,
        ...b.tensors,
        ...cPath.tensors,
        ...d.tensors,
        ...e.tensors,
      });
      const config = { peft_type: 'GLORA', r, config_A_B: ab, config_C: c, config_D_E: de };
      const adapter = adapterFromPeft({ config, tensors }, 'lin', place);
      expect(adapter.config).toEqual({ r, pathAB: ab, pathC: ofBias(c), pathDE: ofBias(de) });

      const weight: Entry = (n, k) => {
        const value = w[n * K + k] as number;
        return value + value * a.at(n, k) + b.at(n, k);
      };
      const bias = (n: number): number => {
        let sum = 0;
        for (let k = 0; k < K; k++) sum += (w[n * K + k] as number) * cPath.at(k, 0);
        const own = biased ? (shift[n] as number) : 0;
        return own + own * d.at(n, 0) + e.at(n, 0) + sum;
      };
      const expected = Array.from({ length: B * T * N }, (_, at) => {
        const [m, n] = [Math.floor(at / N), at % N];
        let sum = bias(n);
        for (let k = 0; k < K; k++) sum += (x[m * K + k] as number) * weight(n, k);
        return sum;
      });
      const base = Tensor.from(w, [N, K], { device });
      const given = biased ? { bias: Tensor.from(shift, [N], { device }) } : {};
      const input = Tensor.from(x, [B, T, K], { device });
      const { y } = adapter.forward(input, base, given);
      expect(y.shape).toEqual([B, T, N]);
      near(y.readSync(), expected);
      const merged = adapter.merge(base, given);
      near(
        (merged.weight as Tensor).readSync(),
        Float64Array.from(w, (_, i) => weight(Math.floor(i / K), i % K)),
      );
      if (biased)
        near(
          (merged.bias as Tensor).readSync(),
          Array.from({ length: N }, (_, n) => bias(n)),
        );
      else expect(merged.bias).toBeUndefined();

      // bf16 activations, and parameters in bf16: within their roundings.
      const half = { dtype: 'bf16' as const };
      const rounded = adapterFromPeft({ config, tensors }, 'lin', { ...place, ...half });
      const again = rounded.forward(input.to(half), base.to(half), given).y;
      expect(again.dtype).toBe('bf16');
      const size = Math.max(...expected.map(Math.abs));
      near(again.readSync(), expected, 0.05 * size);

      const written = await adaptersToPeft(new Map([['lin', adapter]]));
      expect(shapesOf(written.tensors)).toEqual(shapesOf(tensors));
      expect(adapterFromPeft(written, 'lin', place).config).toEqual(adapter.config);
    });
  });

  it('that has some of what belongs to a bias must have all', () => {
    const [a, b] = [pathOf('constant', 'A', N, K, 1), pathOf('constant', 'B', N, K, 3)];
    const d = pathOf('vector', 'D', N, 1, 7);
    const tensors = namesIn('lin', { ...a.tensors, ...b.tensors, ...d.tensors });
    const config = { peft_type: 'GLORA', r, config_A_B: 'constant', config_D_E: 'vector' };
    expect(() => adapterFromPeft({ config, tensors }, 'lin', place)).toThrow(
      expect.objectContaining({ code: 'ERR_FILE', message: expect.stringContaining('glora_C.Xd') }),
    );
  });

  it.each([
    [{ pathAB: 'LoRA_4' }, /pathAB must be one of lora, vector, constant, none, got "LoRA_4"/],
    [{ pathC: 'constant' }, /pathC must be one of lora, vector, none, got "constant"/],
    [{ pathDE: 'lora' }, /pathDE must be one of vector, constant, none, got "lora"/],
  ])('is refused with %o', (settings, text) => {
    expect(() => adapters.glora.create({ ...place, ...settings })).toThrow(
      expect.objectContaining({ code: 'ERR_VALUE', message: expect.stringMatching(text) }),
    );
  });
});
