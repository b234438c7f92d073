// Rows of a base weight: the same values as those rows of the whole, wherever they begin.
import { describe, expect, it } from 'vitest';
import { denseRows, dequantize, quantize, rowStep, scope, Tensor } from '../../lib/index.js';
import { DEVICES, DTYPES, WEIGHTS } from './operands.js';

/** K, N and blocksize: blocks that end with rows, and blocks that run across them. */
const SIZES = [
  [64, 40, 64],
  [96, 700, 64],
  [33, 70, 32],
] as const;

describe.each(DEVICES)('denseRows on %s', (device) => {
  it.each(WEIGHTS)('$name', async ({ dense, format, doubleQuant = false }) => {
    await scope(async () => {
      for (const [K, N, blocksize] of SIZES) {
        const source = Tensor.randn([N, K], { seed: K, device, dtype: dense ?? 'f32' });
        const w =
          format === undefined ? source : quantize(source, { format, blocksize, doubleQuant });
        const step = rowStep(w);
        for (const dtype of DTYPES) {
          const whole = await (w instanceof Tensor
            ? w.to({ dtype })
            : dequantize(w, { dtype })
          ).read();
          for (const begin of new Set([0, step, 3 * step].filter((row) => row <= N))) {
            const end = Math.min(N, begin + 5);
            const part = denseRows(w, begin, end, { dtype });
            expect(part.shape).toEqual([end - begin, K]);
            expect(part.dtype).toBe(dtype);
            expect(await part.read()).toEqual(whole.slice(begin * K, end * K));
          }
        }
      }
    });
  });

  it('begins where the scales of a quantised weight begin', () => {
    scope(() => {
      const w = Tensor.randn([64, 48], { seed: 1, device });
      expect(rowStep(w)).toBe(1);
      expect(rowStep(quantize(w, { format: 'nf4', blocksize: 64 }))).toBe(4);
      expect(rowStep(quantize(w, { format: 'nf4', blocksize: 64, doubleQuant: true }))).toBe(1024);
    });
  });
});
