import { lastDim } from '../core/check-tensor.js';
import { fail, shown, wrongType } from '../core/errors.js';
import { full } from '../core/full.js';
import type { Tensor } from '../core/tensor.js';
import { mapTensor, multiplyAdd, sumProduct } from '../ops/elementwise.js';
import { checkStep, type Value } from './gradient-tape.js';
import type { Tape } from './tape.js';

/** Options of {@link layerNorm} and {@link rmsNorm}. */
export interface NormParts {
  /** [K]; default 1 */
  readonly weight?: Value | undefined;
  /** [K]; default 0 */
  readonly bias?: Value | undefined;
  /** Added under the root; must be positive. Default 1e-5 for `layerNorm`, 1e-6 for `rmsNorm`. */
  readonly eps?: number;
}

/** `(x - mean) / √(mean of (x - mean)² + eps)` of each row in f32. Without `centred` the mean is not subtracted. */
function normalised(t: Tape, x: Value, eps: number, centred: boolean): Value {
  const a = x.tensor;
  const K = lastDim(a);
  const meanOf = (of: Tensor, by?: Tensor): Tensor =>
    multiplyAdd({ a: sumProduct(of, by, { axis: 1 }).reshape([a.size / K, 1]), alpha: 1 / K });
  const wide = a.dtype === 'f32' ? a : a.to({ dtype: 'f32' });
  const moved = centred ? multiplyAdd({ a: wide, c: meanOf(wide), beta: -1 }) : wide;
  const least = full([1], eps, { device: a.device });
  const scale = mapTensor(multiplyAdd({ a: meanOf(moved, moved), c: least }), 'rsqrt');
  const y = multiplyAdd({ a: moved, b: scale });
  // dx = scale · (dy - mean(dy) - y · mean(dy ⊙ y))
  return t.record(y, [x], [y, scale], (dy, pass) => {
    const along = multiplyAdd({ a: y, b: meanOf(dy, y), c: dy, alpha: -1 });
    const across = centred ? multiplyAdd({ a: along, c: meanOf(dy), beta: -1 }) : along;
    pass.give(x, multiplyAdd({ a: across, b: scale, dtype: a.dtype }));
  });
}

function norm(op: string, t: Tape, x: Value, parts: NormParts, standard: number): Value {
  checkStep(op, t, { x });
  if (parts === null || typeof parts !== 'object') throw wrongType(op, 'parts', 'an object', parts);
  const { weight, bias, eps = standard } = parts;
  checkStep(op, t, {
    ...(weight === undefined ? {} : { weight }),
    ...(bias === undefined ? {} : { bias }),
  });
  if (!(eps > 0)) fail('ERR_VALUE', op, 'eps', 'above 0', shown(eps));
  let y = normalised(t, x, eps, op === 'layerNorm');
  if (weight !== undefined) y = t.multiply(y, weight);
  if (bias !== undefined) y = t.add(y, bias);
  return t.cast(y, x.tensor.dtype);
}

/**
 * `(x - mean) / √(variance + eps) ⊙ weight + bias` over the last dimension: LayerNorm (Ba et al., 2016,
 * arXiv:1607.06450), with the variance without Bessel's correction. A step on the tape, computed in f32 and
 * rounded once to the dtype of x. Row sums are in double precision.
 * @param x [..., K]
 * @throws ERR_VALUE, ERR_SHAPE, ERR_DEVICE, ERR_OOM
 * @example
 * const y = t.linear(layerNorm(t, x, { weight, bias }), w);
 */
export function layerNorm(t: Tape, x: Value, parts: NormParts = {}): Value {
  return norm('layerNorm', t, x, parts, 1e-5);
}

/**
 * `x / √(mean(x²) + eps) ⊙ weight + bias` over the last dimension: RMSNorm (Zhang and Sennrich, 2019,
 * arXiv:1910.07467); otherwise like {@link layerNorm}.
 * @example
 * const y = rmsNorm(t, x, { weight: t.variable(weight), eps: 1e-5 });
 */
export function rmsNorm(t: Tape, x: Value, parts: NormParts = {}): Value {
  return norm('rmsNorm', t, x, parts, 1e-6);
}
