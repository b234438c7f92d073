import { fail, wrongType } from '../../core/errors.js';
import type { Tensor } from '../../core/tensor.js';
import { readOptions } from '../../core/validate.js';
import { QuantizedWeight } from '../../quant/quantized-weight.js';
import { eachCode, hostLevels, type LevelGrid } from './level-grid.js';

function requireFinite(op: string, name: string, values: Float32Array): void {
  const bad = values.findIndex((value) => !Number.isFinite(value));
  if (bad >= 0) fail('ERR_NON_FINITE', op, name, 'finite', `${values[bad]} at ${bad}`);
}

/**
 * The codes of a weight on levels that all rows share, as a quantised weight, which the fused kernels take: the values of
 * {@link fakeQuantizeLevels} for the same tensors, bit for bit.
 * @param w [N, K], the weight before rounding
 * @param grid as it was trained; `levels` [1, n]
 * @returns [N, K] on the device of w, of as many bits as n levels need
 * @throws ERR_TYPE · ERR_SHAPE for levels of rows · ERR_DEVICE · ERR_DISPOSED · ERR_VALUE for scales that are not positive ·
 * ERR_NON_FINITE · ERR_OOM
 * @example
 * const w4 = freezeLevels(w, { levels, scale });
 */
export function freezeLevels(w: Tensor, grid: LevelGrid): QuantizedWeight {
  const op = 'freezeLevels';
  if (grid === null || typeof grid !== 'object') throw wrongType(op, 'grid', 'an object', grid);
  const given = readOptions(op, grid, { levels: true, scale: true }) as LevelGrid;
  const host = hostLevels(op, w, given);
  const { N, K, n, levels, scales, groupSize, values } = host;
  if (levels.length !== n) {
    fail('ERR_SHAPE', op, 'levels', `of shape [1, ${n}]: one table for all rows`, `[${N}, ${n}]`);
  }
  requireFinite(op, 'w', values);
  requireFinite(op, 'levels', levels);
  requireFinite(op, 'scale', scales);
  const bad = scales.findIndex((scale) => !(scale > 0));
  if (bad >= 0) fail('ERR_VALUE', op, 'scale', 'positive', `${scales[bad]} at ${bad}`);
  const bits = Math.max(1, Math.ceil(Math.log2(n)));
  const table = new Float32Array(2 ** bits).fill(levels[n - 1] as number);
  table.set(levels);
  const codes = new Uint8Array(N * K);
  eachCode(host, (at, _, level) => {
    codes[at] = level;
  });
  return QuantizedWeight.fromPlanes(
    {
      rows: N,
      columns: K,
      bits,
      codes,
      levels: table,
      grid: { kind: 'tiles', rows: 1, columns: groupSize },
      scale: { values: { dtype: 'f32', data: scales } },
    },
    { device: w.device },
  );
}
