import { Tensor } from '../../core/tensor.js';
import { svd } from '../../linalg/tensors/svd.js';
import { defineStart, type LayerInputs, type StartLayer } from '../definition/definition.js';
import { covarianceOf, inputsOf } from '../parts/inputs.js';

/** The covariance of the inputs, and the sum of their variances. */
function spread(layer: StartLayer): { readonly covariance: Tensor; readonly total: number } {
  const inputs: LayerInputs = inputsOf(layer);
  const { K, device } = layer;
  const values = covarianceOf(inputs, K);
  let total = 0;
  for (let k = 0; k < K; k++) total += values[k * K + k] as number;
  return { covariance: Tensor.from(Float32Array.from(values), [K, K], { device }), total };
}

const mostOf = (r: number, rho: number, K: number): number => Math.min(Math.round(r * rho), K);

/**
 * The leading principal components of the inputs as `loraA`, and `loraB = 0`; the base is w. Ranks move to where they explain most:
 * of the first `rho · r` components of every layer, the r times number of layers that explain the largest shares of their layer's
 * variance remain, and a layer keeps at least one. With `whiten` each row is divided by the root of its singular value.
 * The authors and PEFT find the components by an incremental SVD; here they are those of all rows.
 */
export const eva = defineStart({
  start: 'eva',
  reference:
    'Paischer et al., One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation, 2024, arXiv:2410.07170',
  from: 'inputs',
  defaults: { rho: 2, whiten: false },
  peft: 'eva',
  check: ({ rho }) => (rho >= 1 ? undefined : ['rho', 'at least 1', String(rho)]),
  measure: (layer, { r, seed, settings: { rho } }) => {
    const { covariance, total } = spread(layer);
    const { s } = svd(covariance, { r: mostOf(r, rho, layer.K), seed });
    return Array.from(s, (value) => (total > 0 ? value / total : 0));
  },
  ranks: (measured, r) => {
    const all = measured.flatMap((shares, layer) =>
      shares.slice(1).map((share) => ({ share, layer })),
    );
    const ranks: number[] = measured.map(() => 1);
    all.sort((a, b) => b.share - a.share || a.layer - b.layer);
    for (const { layer } of all.slice(0, (r - 1) * measured.length)) {
      ranks[layer] = (ranks[layer] as number) + 1;
    }
    return ranks;
  },
  factors: (layer, { r, seed, settings: { whiten } }) => {
    const { rows } = inputsOf(layer);
    const { s, v } = svd(spread(layer).covariance, { r, seed });
    const { N, device } = layer;
    const loraB = Tensor.zeros([N, r], { device });
    if (!whiten) return { loraA: v, loraB };
    // Of the rows themselves: the root of a covariance's value, times that of the number of rows.
    const values = Float32Array.from(v.readSync(), (value, at) => {
      const singular = Math.sqrt((s[Math.floor(at / layer.K)] as number) * rows);
      return singular > 0 ? value / Math.sqrt(singular) : 0;
    });
    return { loraA: Tensor.from(values, [r, layer.K], { device }), loraB };
  },
});
