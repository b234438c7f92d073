// lib/core/formats.ts and the native table say the same about every format.
import { describe, expect, it } from 'vitest';
import { binding } from '../../lib/core/binding.js';
import { dequantize, devices, FORMATS, quantize, scope, Tensor } from '../../lib/index.js';
import { codebookOf, exact, ORACLE_FORMATS } from '../oracle.js';

describe('quantisation formats', () => {
  it('are the same rows on both sides', () => {
    const native = binding().formats();
    const rows = FORMATS.map(({ bitsandbytes, ...row }) => row);
    expect(native.map(({ codebook, ...row }) => row)).toEqual(rows);
    expect(native.map(({ codebook }) => codebook.length)).toEqual(FORMATS.map((f) => f.levels));
    expect(new Set(FORMATS.map(({ name }) => name))).toEqual(new Set(ORACLE_FORMATS));
    expect(Object.isFrozen(FORMATS)).toBe(true);
  });

  it('are the features of every device', () => {
    const names = FORMATS.map(({ name }) => name);
    for (const { device, features } of devices()) {
      expect(features.slice(0, names.length), device).toEqual(names);
    }
  });

  it.each([...FORMATS])(
    '$name: the codebook is the oracle’s, and each level survives',
    async (row) => {
      await scope(async () => {
        const book = codebookOf(row.name);
        expect(book.length).toBe(row.levels);
        const levels = Tensor.from(book, [1, book.length], { device: 'reference' });
        const weight = quantize(levels, { format: row.name, blocksize: row.maxBlocksize });
        if (row.bitsandbytes) {
          const state = await weight.toBitsandbytes();
          exact('codebook', state['weight.quant_map']?.data as Float32Array, book);
        }
        exact('levels', await dequantize(weight).read(), book);
      });
    },
  );
});
