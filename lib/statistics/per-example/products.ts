/** Products of the rows of single examples, for all examples of a layer at once. */

import { fail } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { type ExpertRoute, routeRows } from '../../ops/experts/expert-route.js';
import { expertsMatmulBackward } from '../../ops/experts/experts-matmul.js';
import { Indices } from '../../ops/model/indices.js';
import type { FactorRows } from './tape.js';

const kOp = 'perExampleGradients';

/** What a product is made of. */
type ProductRows = Pick<FactorRows, 'small' | 'big' | 'scaling'>;

/** The rows of examples as those of experts: each example has its own. */
export function routeOf(
  [first]: readonly ProductRows[],
  examples: number,
): ExpertRoute | undefined {
  if (first === undefined) return undefined;
  const { device, shape } = first.small;
  const [M = 0] = shape;
  if (M % examples !== 0) {
    fail('ERR_SHAPE', kOp, 'examples', `a divisor of the ${M} rows of a layer`, String(examples));
  }
  const each = M / examples;
  const chosen = Int32Array.from({ length: M }, (_, m) => Math.floor(m / each));
  return routeRows(Indices.from(chosen, { limit: examples, device }), { k: 1, experts: examples });
}

/** [examples, cols · r]: the product of each example's rows, scaling · bigᵀ · small. */
export function examplesOf(
  { small, big, scaling }: ProductRows,
  route: ExpertRoute | undefined,
): Tensor {
  const { rows: M, experts: E } = route as ExpertRoute;
  const [rows = 0, r = 0] = small.shape;
  const [, cols = 0] = big.shape;
  if (rows !== M) fail('ERR_SHAPE', kOp, 'the rows of all layers', String(M), String(rows));
  return scope(() => {
    const { device } = small;
    // The gradients of experts' factors over a base that is not read.
    const { dLoraB } = expertsMatmulBackward(
      big,
      Tensor.zeros([E * cols, 1], { device, dtype: big.dtype }),
      route as ExpertRoute,
      {
        lora: {
          loraA: Tensor.zeros([1, r, 1], { device }),
          loraB: Tensor.zeros([E, cols, r], { device }),
          scaling,
        },
        h: small,
        gather: false,
        needs: ['dLoraB'],
      },
    );
    return (dLoraB as Tensor).reshape([E, cols * r]);
  });
}
