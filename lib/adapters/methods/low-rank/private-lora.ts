import { defineAdapter } from '../../definition/method.js';
import { belowOne } from '../../parts/counts.js';

/**
 * Three separate products that can run in different places: the frozen `a` and `b` in the cloud,
 * the trained `m` on the user's device: `y = x·wᵀ + ((x · aᵀ) · mᵀ) · bᵀ`.
 */
export const privateLora = defineAdapter({
  method: 'private-lora',
  reference:
    'Wang et al., PrivateLoRA for Efficient Privacy Preserving LLM, 2023, arXiv:2311.14030',
  defaults: { rA: 32, rB: 32 },
  trained: ['m'],
  frozen: ['a', 'b'],
  check: ({ config }) => belowOne(config, 'rA', 'rB'),
  shapes: ({ N, K, config: { rA, rB } }) => ({ m: [rB, rA], a: [rA, K], b: [N, rB] }),
  init: (make) => ({
    m: make.zeros('m'),
    a: make.kaiming('a'),
    b: make.kaiming('b'),
  }),
  forward: (t, { x, w, bias, p }) => t.expand(x, w, t.matmul(t.shrink(x, p.a), p.m), p.b, { bias }),
  update: ({ a, b, m }) => ({ loraA: a, loraB: b, core: m }),
});
