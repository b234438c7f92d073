import { transposed } from '../../linalg/rows.js';
import { defineOptimizer } from '../definition/define.js';
import { roundToBf16 } from '../parts/bf16.js';
import { adamCheck } from '../parts/checks.js';
import { factorRows, gram, product, symmetricInverse } from '../parts/matrices.js';
import { adamRule } from '../parts/rules.js';

const kDamping = 1e-8;

/**
 * The optimiser of LoRA-FA (Zhang and others, LoRA-FA: Memory-efficient Low-rank Adaptation, 2023, arXiv:2308.03303), as PEFT's
 * `LoraFAOptimizer` in float32: loraA keeps its values, and loraB's gradient becomes the one whose change of the weight is
 * nearest to that of the full gradient. The step is that of transformers' AdamW (eps before the correction, decay after the
 * step). With `bf16` the product has the precision that PEFT gives it where the machine has bf16.
 *
 *   gB ← s⁻² gB (AAᵀ + 1e-8 · I)⁻¹
 */
export const loraFa = defineOptimizer({
  optimizer: 'lora-fa',
  reference:
    'Zhang and others, LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning, 2023, arXiv:2308.03303',
  defaults: { beta1: 0.9, beta2: 0.999, eps: 1e-6, bf16: false },
  check: adamCheck,
  notNegative: ['v'],
  group: ({ role }) => ({ frozen: role === 'down' }),
  state: ({ tensor: { shape } }) => ({ m: shape, v: shape }),
  precondition: (pair) => {
    const { r, inFeatures: K, outFeatures: N, scaling, settings } = pair;
    const { g } = pair.b;
    const round = settings.bf16 ? roundToBf16 : (value: number) => value;
    const rows = factorRows(pair);
    const right = symmetricInverse(gram(rows.a, r, K, kDamping), r).map(round);
    const up = transposed(Float64Array.from(g, round), N, r);
    const made = product(right, r, r, up, N).map((value) => round(round(value) / scaling ** 2));
    g.set(transposed(made, r, N));
  },
  update: (u) => adamRule(u, u.state.m, u.state.v, u.settings, { decay: 'after', earlyEps: true }),
});
