import { transposed } from '../../linalg/rows.js';
import { defineOptimizer } from '../definition/define.js';
import type { HostPair } from '../definition/definition.js';
import { adamw } from '../elementwise/adamw.js';
import { sgd } from '../elementwise/sgd.js';
import { negative } from '../parts/checks.js';
import { factorRows, gram, product, symmetricInverse } from '../parts/matrices.js';

/** Settings of {@link riemannian} beside those of its base. */
export interface RiemannianSettings {
  /** Added to the diagonals. */
  readonly damping: number;
}

/** gA ← (BᵀB + damping)⁻¹ gA and gB ← gB (AAᵀ + damping)⁻¹. */
function precondition(pair: HostPair<RiemannianSettings>): void {
  const { r, inFeatures: K, outFeatures: N, settings } = pair;
  const rows = factorRows(pair);
  const { g: gA } = pair.a;
  const { g: gB } = pair.b;
  const left = symmetricInverse(gram(rows.b, r, N, settings.damping), r);
  const right = symmetricInverse(gram(rows.a, r, K, settings.damping), r);
  const up = transposed(Float64Array.from(gB), N, r);
  if (gA.length > 0) gA.set(product(left, r, r, Float64Array.from(gA), K));
  if (gB.length > 0) gB.set(transposed(product(right, r, r, up, N), r, N));
}

const reference =
  'Zhang and Pilanci, Riemannian Preconditioned LoRA for Fine-Tuning Foundation Models, 2024, arXiv:2402.02347';

/**
 * Riemannian-preconditioned LoRA (Zhang and Pilanci, 2024, arXiv:2402.02347), as PEFT's `create_riemannian_optimizer` with
 * AdamW: each factor's gradient is divided by the Gram matrix of the other, with a damping on its diagonal.
 *
 *   gA ← (BᵀB + damping · I)⁻¹ gA      gB ← gB (AAᵀ + damping · I)⁻¹
 */
export const riemannian = defineOptimizer({
  optimizer: 'riemannian',
  reference,
  base: adamw,
  defaults: { damping: 0.01 } as RiemannianSettings,
  check: (settings) => negative(settings, 'damping') ?? adamw.check?.(settings),
  precondition,
});

/** {@link riemannian} over SGD, without momentum: the scaled gradient descent of the paper. */
export const riemannianSgd = defineOptimizer({
  optimizer: 'riemannian-sgd',
  reference,
  base: sgd,
  defaults: { damping: 0.01, momentum: 0 } as RiemannianSettings & { readonly momentum: number },
  check: (settings) => negative(settings, 'damping') ?? sgd.check?.(settings),
  precondition,
});
