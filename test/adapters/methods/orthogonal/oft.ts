import type { Matrix, OracleLayer } from '../../../oracle/adapter-layer.js';
import { blockDiagonal, cayleyOf, seriesOf, skewOf, slab } from '../../../oracle/adapter-maths.js';
import type { MethodTests } from '../../settings.js';

/** w times the transpose of the rotation of the input. */
function oftOf({ w, K, config, p }: OracleLayer): { weight: Matrix } {
  const weight = p.weight as Matrix;
  const size = config.blocks > 0 ? K / config.blocks : config.blockSize;
  const blocks = Array.from({ length: K / size }, (_, g) => {
    const row = slab(weight, config.share ? 0 : g, 1).data;
    const limit = config.eps / Math.sqrt(weight.rows);
    const norm = Math.sqrt(2 * row.reduce((sum, v) => sum + v * v, 0));
    const shrink = config.coft && norm > limit ? limit / norm : 1;
    const q = skewOf(row, size).map((v) => v * shrink);
    return config.terms > 0 ? seriesOf(q, config.terms) : cayleyOf(q);
  });
  return { weight: w.times(blockDiagonal(blocks).transposed()) };
}

export const tests: MethodTests = {
  formulas: {
    oft: oftOf,
  },
  cases: {
    oft: { settings: { blockSize: 8, terms: 0 } },
    'oft/series': { settings: { blockSize: 8, terms: 5 } },
    'oft/shared': { settings: { blocks: 4, terms: 0, share: true } },
    'oft/constrained': { settings: { blocks: 4, terms: 0, coft: true, eps: 100 } },
  },
};
