// lib/quant/formats.ts and the native table say the same about every format.
import { describe, expect, it } from 'vitest';
import { binding } from '../../lib/core/binding.js';
import { dequantize, FORMATS, quantize, scope, Tensor } from '../../lib/index.js';
import { codebookOf, exact, type OracleFormat } from '../oracle.js';

describe('quantisation formats', () => {
  it('are the same rows on both sides', () => {
    const native = binding().formats();
    expect(native.map(({ codebook, ...row }) => row)).toEqual([...FORMATS]);
    expect(native.map(({ codebook }) => codebook.length)).toEqual(FORMATS.map((f) => f.levels));
    expect(FORMATS.map(({ name }) => name)).toEqual(['nf4', 'fp4', 'int8', 'int4']);
    expect(Object.isFrozen(FORMATS)).toBe(true);
  });

  it.each([...FORMATS])(
    '$name: the codebook is the oracle’s, and each level survives',
    async (row) => {
      await scope(async () => {
        const book = codebookOf(row.name as OracleFormat);
        expect(book.length).toBe(row.levels);
        const levels = Tensor.from(book, [1, book.length], { device: 'reference' });
        const weight = quantize(levels, { format: row.name, blocksize: row.maxBlocksize });
        if (row.name !== 'int4') {
          const state = await weight.toBitsandbytes();
          exact('codebook', state['weight.quant_map']?.data as Float32Array, book);
        }
        exact('levels', await dequantize(weight).read(), book);
      });
    },
  );
});
