import { rowDots, transposed } from '../../linalg/rows.js';
import { defineMerge, type LoraUpdate } from '../definition/definition.js';
import { checkRank, sumOfFactors } from '../parts/factors.js';
import { sameScaling } from '../parts/same.js';

/** `‖loraB · loraA‖` from the products of the factors with themselves. */
export function updateNorm({ loraA, loraB, r, inFeatures: K, outFeatures: N }: LoraUpdate): number {
  const a = Float64Array.from(loraA);
  const b = transposed(Float64Array.from(loraB), N, r);
  const ofA = rowDots(a, r, a, r, K);
  const ofB = rowDots(b, r, b, r, N);
  return Math.sqrt(
    Math.max(
      ofA.reduce((sum, value, i) => sum + value * (ofB[i] as number), 0),
      0,
    ),
  );
}

/** The first r rows of A and columns of B; those that are missing are 0. */
function ofRank(update: LoraUpdate, r: number): LoraUpdate {
  const { loraA, loraB, r: own, inFeatures: K, outFeatures: N } = update;
  const both = Math.min(own, r);
  const a = new Float32Array(r * K);
  a.set(loraA.subarray(0, both * K));
  const b = new Float32Array(N * r);
  for (let n = 0; n < N; n++) b.set(loraB.subarray(n * own, n * own + both), n * r);
  return { ...update, loraA: a, loraB: b, r };
}

/**
 * HetLoRA: factors of different ranks are padded with zeros and averaged, each client by its share times the norm ‖B A‖ of
 * its update of the layer. `rank` cuts the result to a client's rank; 0 keeps the largest. Scalings must be equal.
 */
export const hetlora = defineMerge({
  merge: 'hetlora',
  reference:
    'Cho et al., Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models, 2024, arXiv:2401.06432',
  defaults: { rank: 0 },
  weights: 'shares',
  check: checkRank,
  layer: (call) => {
    sameScaling(call);
    const most = Math.max(...call.updates.map(({ r }) => r));
    const sizes = call.updates.map((update, i) => updateNorm(update) * (call.weights[i] as number));
    const total = sizes.reduce((sum, size) => sum + size, 0);
    // Updates of nothing have no norms to go by.
    const shares = total === 0 ? call.weights : sizes.map((size) => size / total);
    const updates = call.updates.map((update) => ofRank(update, most));
    const average = sumOfFactors({ ...call, updates }, shares, shares);
    return ofRank(average, call.settings.rank || most);
  },
});
