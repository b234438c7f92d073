/** Maps of features and products of blocks: every kernel and every form of their operands. */
import {
  blockMatmul,
  blockMatmulInputGrad,
  blockWeightGrad,
  dequantize,
  FeatureMap,
  factoredNorm,
  mapFeatures,
  mergeLora,
  QuantizedWeight,
  type Tensor,
  weightNorms,
} from '../../lib/index.js';
import { DTYPES, operand, WEIGHTS, weightOperand } from '../conformance/operands.js';
import { hashOf, type KernelCase, misplaced } from './case-parts.js';

/** Lists of 0 to 6 inputs, some in several. */
const listsOf = (K: number, J: number): number[][] =>
  Array.from({ length: J }, (_, j) => {
    const list = new Set<number>();
    for (let i = 0; i < j % 7; i++) list.add((j * 31 + i * 17) % K);
    return [...list];
  });

/** [M, K, J]: more lists than threads, few of them, one; rows in one turn and in many. */
const MAPS = [
  [3, 40, 300],
  [700, 12, 5],
  [65, 9, 1],
] as const;

function maps(): KernelCase[] {
  return DTYPES.flatMap((dtype, i) =>
    [false, true].map((placed) => ({
      name: `mapFeatures ${placed ? 'unaligned ' : ''}${dtype}`,
      async run(device) {
        const other = DTYPES[(i + 1) % DTYPES.length] as (typeof DTYPES)[number];
        const at = async (tensor: Tensor): Promise<Tensor> => (placed ? misplaced(tensor) : tensor);
        const results: Tensor[] = [];
        for (const [M, K, J] of MAPS) {
          const x = await at(operand(M, K, { seed: 1, dtype, device }).tensor);
          const c = await at(operand(M, J, { seed: 2, dtype: other, device }).tensor);
          const lists = new FeatureMap({
            inFeatures: K,
            outFeatures: J,
            lists: listsOf(K, J),
            device,
          });
          const index = Int32Array.from({ length: J }, (_, j) => ((j * 13) % (K + 1)) - 1);
          const gather = FeatureMap.gather(index, K, { device });
          results.push(
            mapFeatures(x, lists),
            mapFeatures(x, lists, { c, alpha: 0.5, beta: 2, dtype: other }),
            mapFeatures(x, gather),
            mapFeatures(x, gather, { c, alpha: 0.5, beta: 2 }),
            mapFeatures(c, lists.adjoint),
          );
        }
        return hashOf(results);
      },
    })),
  );
}

/** [M, G, N, K]: narrow and wide tiles with ragged edges, sums over a span, several planes. */
const BLOCKS = [
  [5, 3, 2, 3],
  [140, 2, 8, 33],
  [33, 2, 40, 34],
  [3, 2, 9, 300],
  [2100, 1, 5, 9],
] as const;

function blocks(): KernelCase[] {
  return DTYPES.flatMap((dtype) =>
    DTYPES.filter((type) => type === dtype || type === 'f32' || dtype === 'f32').map((type) => ({
      name: `blocks ${dtype}, w ${type}`,
      async run(device) {
        const results: Tensor[] = [];
        for (const [M, G, N, K] of BLOCKS) {
          const make = (shape: number[], seed: number, of = dtype) =>
            operand(
              shape.reduce((a, b) => a * b, 1) / (shape.at(-1) as number),
              shape.at(-1) as number,
              {
                seed,
                dtype: of,
                device,
                shape,
              },
            ).tensor;
          const x = make([M, G, K], 1);
          const dy = make([M, G, N], 2);
          const w = make([G, N, K], 3, type);
          results.push(blockMatmul(x, w), blockMatmulInputGrad(dy, w), blockWeightGrad(dy, x));
        }
        return hashOf(results);
      },
    })),
  );
}

/** Norms of weights, and weights that are read and written by tiles. */
function weights(): KernelCase[] {
  return WEIGHTS.map((spec) => ({
    name: `weights ${spec.name}`,
    async run(device) {
      const [N, K] = [9, 100];
      const { w } = weightOperand(spec, N, K, 'f32', { seed: 1, device });
      const loraA = operand(3, K, { seed: 2, device }).tensor;
      const loraB = operand(N, 3, { seed: 3, device }).tensor;
      const norms = [weightNorms(w), factoredNorm({ w, loraA, loraB, scaling: 0.5 })];
      // More rows than a block's, and ranks that end in a second tile.
      const dtype = spec.dense === 'f16' ? 'f16' : 'bf16';
      const large = weightOperand(spec, 70, K, dtype, { seed: 4, device }).w;
      const factors = {
        loraA: operand(20, K, { seed: 5, device, dtype }).tensor,
        loraB: operand(70, 20, { seed: 6, device, dtype }).tensor,
      };
      norms.push(factoredNorm({ w: large, ...factors, dtype }));
      const { weight } = mergeLora(w, { loraA, loraB, beta: 0.5 });
      const merged = QuantizedWeight.is(weight) ? dequantize(weight) : weight;
      return hashOf([...norms, merged]);
    },
  }));
}

export const features = (): KernelCase[] => [...maps(), ...blocks(), ...weights()];
