import { Tensor } from '../../core/tensor.js';
import { transposed } from '../../linalg/rows.js';
import { qr } from '../../linalg/tensors/qr.js';
import { matmulInputGrad } from '../../ops/matmul.js';
import { defineStart } from '../definition/definition.js';
import { requireRank } from '../parts/rank.js';

/**
 * The QR decomposition of w: `loraB = Q` of its first r columns, and the first r rows of R, `loraA = Qᵀ · w`; the base is
 * `w − s · loraB · loraA`. As in PEFT's `olora`, s does not divide the factors. Q depends on the first r columns of w alone. R has
 * no negative diagonal here; LAPACK's signs differ by row.
 */
export const olora = defineStart({
  start: 'olora',
  reference:
    'Büyükakyüz, OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models, 2024, arXiv:2406.01775',
  from: 'weight',
  defaults: {},
  replacesBase: true,
  factors: ({ w, N, K, device }, { r }) => {
    requireRank('olora', r, N, K);
    const values = w.readSync();
    const first = Float32Array.from(
      { length: N * r },
      (_, at) => values[Math.floor(at / r) * K + (at % r)] as number,
    );
    const { q: loraB } = qr(Tensor.from(first, [N, r], { device }));
    const rows = transposed(Float64Array.from(loraB.readSync()), N, r);
    const turned = Tensor.from(Float32Array.from(rows), [r, N], { device });
    return { loraA: matmulInputGrad(turned, w), loraB, base: 'residual' };
  },
});
