import { defineAdapter } from '../../definition/method.js';
import { factorsOf, type KroneckerSizes, kroneckerLinear, kroneckerMaps } from './kronecker.js';

/** The sizes of both factors, from those of the left one. */
function sizesOf(N: number, K: number, config: { leftN: number; leftK: number }): KroneckerSizes {
  const a = config.leftN > 0 ? config.leftN : factorsOf(N, -1)[0];
  const c = config.leftK > 0 ? config.leftK : factorsOf(K, -1)[0];
  return { a, b: N / a, c, d: K / c };
}

/**
 * Kronecker adapter: `y = x·wᵀ + scale · x·(kronA ⊗ kronB)ᵀ`, kronA [leftN, leftK], kronB [N /
 * leftN, K / leftK]; 0 selects the largest divisor up to the root. The product is never formed.
 */
export const krona = defineAdapter({
  method: 'krona',
  reference:
    'Edalati et al., KronA: Parameter Efficient Tuning with Kronecker Adapter, 2022, arXiv:2212.10650',
  defaults: { leftN: 0, leftK: 0, scale: 1 },
  trained: ['kronA', 'kronB'],
  shapes: ({ N, K, config }) => {
    const { a, b, c, d } = sizesOf(N, K, config);
    return { kronA: [a, c], kronB: [b, d] };
  },
  check: ({ N, K, config: { leftN, leftK } }) => {
    if (leftN !== 0 && !(leftN > 0 && N % leftN === 0)) {
      return ['leftN', `a divisor of N (${N}), or 0`, String(leftN)];
    }
    return leftK === 0 || (leftK > 0 && K % leftK === 0)
      ? undefined
      : ['leftK', `a divisor of K (${K}), or 0`, String(leftK)];
  },
  init: (make) => ({ kronA: make.kaiming('kronA'), kronB: make.zeros('kronB') }),
  prepare: ({ N, K, config, device }) => kroneckerMaps(sizesOf(N, K, config), device),
  forward: (t, { x, w, bias, p, config, state }) =>
    kroneckerLinear(t, { x, w, bias }, [p.kronA, p.kronB], state, config.scale),
});
