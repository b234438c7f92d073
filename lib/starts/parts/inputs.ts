import { fail } from '../../core/errors.js';
import type { LayerInputs, StartLayer } from '../definition/definition.js';

/** @throws ERR_VALUE */
export function inputsOf({ inputs, module }: StartLayer): LayerInputs {
  if (inputs === undefined) fail('ERR_VALUE', `start of ${module}`, 'inputs', 'observed', 'none');
  return inputs;
}

/** The mean of xᵀx over the rows, [K, K]. */
export const autocorrelationOf = ({ gram, rows }: LayerInputs): Float64Array =>
  gram.map((value) => value / rows);

/** The same around the mean of the rows. */
export function covarianceOf({ gram, sum, rows }: LayerInputs, K: number): Float64Array {
  return gram.map((value, at) => {
    const [i, j] = [Math.floor(at / K), at % K];
    return (value - ((sum[i] as number) * (sum[j] as number)) / rows) / rows;
  });
}

/** Adds a share of the mean of the diagonal to the diagonal of [K, K]. */
export function damped(values: Float64Array, K: number, share: number): Float64Array {
  let trace = 0;
  for (let k = 0; k < K; k++) trace += values[k * K + k] as number;
  const out = values.slice();
  for (let k = 0; k < K; k++) out[k * K + k] = (out[k * K + k] as number) + (share * trace) / K;
  return out;
}
