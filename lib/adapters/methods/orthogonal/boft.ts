import { FeatureMap } from '../../../ops/feature-map.js';
import { defineAdapter } from '../../definition/method.js';
import { cayley, matrixMaps, skew } from './rotation.js';

/**
 * The order of factor i: within blocks of 2^i block sizes, the two halves are interleaved, first the
 * even numbers, then the odd ones.
 */
function butterflyOrder(K: number, blockSize: number, i: number): Int32Array {
  const half = blockSize / 2;
  const run = blockSize * 2 ** i;
  const pieces = run / half;
  const even = Math.ceil(pieces / 2);
  return Int32Array.from({ length: K }, (_, at) => {
    const within = at % run;
    const turn = Math.floor(within / half);
    const piece = turn < even ? 2 * turn : 2 * (turn - even) + 1;
    return at - within + piece * half + (within % half);
  });
}

/**
 * Butterfly orthogonal fine-tuning: `y = boftS ⊙ ((x · F_n … F_1)·wᵀ) + bias`. Factor i is a blockwise
 * rotation between two mutually inverse permutations, `P·B·Pᵀ`; each block of B is the Cayley transform of
 * the skew-symmetric part of its boftR [size, size]. PEFT's dropout of whole blocks is not supported.
 */
export const boft = defineAdapter({
  method: 'boft',
  reference:
    'Liu et al., Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization, 2023, arXiv:2311.06243',
  defaults: { blockSize: 4, factors: 1 },
  trained: ['boftR', 'boftS'],
  shapes: ({ N, K, config: { blockSize, factors } }) => ({
    boftR: [factors, K / blockSize, blockSize, blockSize],
    boftS: [N, 1],
  }),
  check: ({ K, config: { blockSize, factors } }) => {
    if (!(Number.isInteger(factors) && factors >= 1 && factors <= 30)) {
      return ['factors', 'an integer from 1 to 30', String(factors)];
    }
    if (factors > 1 && blockSize % 2 !== 0) {
      return ['blockSize', 'even if there is more than one factor', String(blockSize)];
    }
    const run = blockSize * 2 ** (factors - 1);
    if (!(blockSize > 0) || K % run !== 0) {
      return [
        'blockSize',
        `such that ${2 ** (factors - 1)} x blockSize divides ${K}`,
        String(blockSize),
      ];
    }
    return undefined;
  },
  init: (make) => ({ boftR: make.zeros('boftR'), boftS: make.full('boftS', 1) }),
  prepare: ({ K, config: { blockSize, factors }, device }) => {
    const D = K / blockSize;
    const count = factors * D;
    // Factor i of all the blocks, row by row, as a stack.
    const stacks = Array.from({ length: factors }, (_, factor) =>
      FeatureMap.gather(
        Int32Array.from({ length: K * blockSize }, (_, at) => {
          const j = at % blockSize;
          const i = Math.floor(at / blockSize) % blockSize;
          const g = factor * D + Math.floor(at / blockSize ** 2);
          return (i * count + g) * blockSize + j;
        }),
        count * blockSize ** 2,
        { device },
      ),
    );
    const orders =
      factors === 1
        ? []
        : stacks.map((_, i) => FeatureMap.permute(butterflyOrder(K, blockSize, i), { device }));
    return { maps: matrixMaps(count, blockSize, device), stacks, orders };
  },
  forward: (t, { x, w, bias, p, config, state, K, N }) => {
    const { blockSize } = config;
    const { maps, stacks, orders } = state;
    const D = K / blockSize;
    const rows = cayley(t, skew(t, p.boftR, maps, 0.5), maps);
    const flat = t.reshape(rows, [rows.tensor.size]);
    const folded = [...x.shape.slice(0, -1), D, blockSize];
    const turned = stacks.reduceRight((input, stack, i) => {
      const blocks = t.reshape(t.features(flat, stack), [D, blockSize, blockSize]);
      const order = orders[i];
      const shuffled = order === undefined ? input : t.features(input, order.adjoint);
      const y = t.reshape(t.blockProduct(t.reshape(shuffled, folded), blocks), x.shape);
      return order === undefined ? y : t.features(y, order);
    }, x);
    const scaled = t.multiply(t.linear(turned, w), t.reshape(p.boftS, [N]));
    return bias === undefined ? scaled : t.add(scaled, bias);
  },
  peft: {
    type: 'BOFT',
    zeros: ['boft_dropout'],
    tensors: { boftR: 'boft_R', boftS: 'boft_s' },
    read: (config, _, shapeOf) => {
      // PEFT falls back to one factor if it cannot build its CUDA extension.
      const [factors, , size] = shapeOf('boftR') ?? [];
      return {
        blockSize: size ?? Number(config.boft_block_size ?? 4),
        factors: factors ?? Number(config.boft_n_butterfly_factor ?? 1),
      };
    },
    caveat: ({ factors }) =>
      factors === 1
        ? undefined
        : 'PEFT supports more than one factor only where it can build its CUDA extension: elsewhere it uses one factor and rejects the folder',
    write: ({ blockSize, factors }) => ({
      boft_block_size: blockSize,
      boft_block_num: 0,
      boft_n_butterfly_factor: factors,
    }),
  },
});
