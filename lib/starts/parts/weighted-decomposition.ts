/** A weight as codes and factors whose error is weighted entry by entry. */

import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { svd } from '../../linalg/tensors/svd.js';
import { mapTensor, multiplyAdd, sumProduct } from '../../ops/elementwise.js';
import { unmergeLora } from '../../ops/lora/merge.js';
import { QuantizedWeight } from '../../quant/quantized-weight.js';
import {
  type NormalFloatOptions,
  quantizeNormalFloat,
} from '../../quantizers/normal-float-blocks.js';
import type { StartLayer } from '../definition/definition.js';
import { decoded } from './decoded.js';
import { balanced } from './factors.js';

/** Weights of an error, and their separable part: roots of the means of rows and of columns. */
export interface Importance {
  /** [N, K], the roots. */
  readonly roots: Tensor;
  /** [N, 1] */
  readonly rows: Tensor;
  /** [K] */
  readonly columns: Tensor;
}

/** The least importance of a row or column, as a share of the mean: the SVD divides by them. */
const kLeast = 1e-6;

/** @param fisher [N, K], not negative */
export function importanceOf(fisher: Tensor): Importance {
  const { device } = fisher;
  const [N = 0, K = 0] = fisher.shape;
  const rootsOf = (sums: Tensor, count: number, shape: readonly number[]) => {
    const values = sums.readSync();
    const mean = values.reduce((a, b) => a + b, 0) / values.length || 1;
    const data = values.map((v) => Math.sqrt(Math.max(v, kLeast * mean) / count));
    return Tensor.from(data, shape, { device });
  };
  return {
    roots: mapTensor(fisher, 'sqrt'),
    rows: rootsOf(sumProduct(fisher, undefined, { axis: 1 }), K, [N, 1]),
    columns: rootsOf(sumProduct(fisher, undefined, { axis: 0 }), N, [K]),
  };
}

/** A weight as codes and factors, and the weighted square of what they miss. */
export type Decomposition = {
  readonly base: QuantizedWeight;
  readonly loraA: Tensor;
  readonly loraB: Tensor;
  readonly cost: number;
};

export interface DecompositionOptions {
  readonly r: number;
  readonly scaling: number;
  readonly seed: number;
  readonly rounds: number;
  readonly iterations: number | 'exact';
}

/** Turns of factors and codes, factors first, until the error rises: the best of them. */
export function decompose(
  { w, N, K, device }: Pick<StartLayer, 'w' | 'N' | 'K' | 'device'>,
  { roots, rows, columns }: Importance,
  format: NormalFloatOptions,
  { r, scaling, seed, rounds, iterations }: DecompositionOptions,
): Decomposition {
  let best: Decomposition | undefined;
  let rest = w;
  for (let round = 0; round < rounds; round++) {
    const made = scope((): Decomposition => {
      const seen = multiplyAdd({ a: multiplyAdd({ a: rest, b: rows }), b: columns });
      const { u, s, v } = svd(seen, { r, seed, iterations });
      const own = {
        s,
        u: multiplyAdd({ a: u, b: mapTensor(rows, 'reciprocal') }),
        v: multiplyAdd({ a: v, b: mapTensor(columns, 'reciprocal') }),
      };
      const factors = balanced(own, scaling);
      const left = unmergeLora(w.to({}), { ...factors, scaling }).weight as Tensor;
      const planes = quantizeNormalFloat(left.readSync(), N, K, format);
      const base = QuantizedWeight.fromPlanes(planes, { device });
      const error = multiplyAdd({ a: left, c: decoded(base), beta: -1 });
      const weighted = multiplyAdd({ a: error, b: roots }).reshape([1, N * K]);
      const [cost = 0] = sumProduct(weighted, weighted, { axis: 1 }).readSync();
      return { base, ...factors, cost };
    });
    if (best !== undefined && made.cost > best.cost) break;
    best = made;
    rest = scope(() => multiplyAdd({ a: w, c: decoded(made.base), beta: -1 }));
  }
  return best as Decomposition;
}
