/** The two ends of a decoder: rows of the embedding, and the loss behind the head. */
import { type DType, embedding, Indices, linearCrossEntropy } from '../../lib/index.js';
import {
  DTYPES,
  mixes,
  operand,
  WEIGHTS,
  type WeightSpec,
  weightOperand,
} from '../conformance/operands.js';
import { hashOf, type KernelCase, misplaced } from './case-parts.js';

const SPECS = WEIGHTS.filter(({ name }) =>
  ['dense f32', 'dense bf16', 'nf4', 'nf4 with double quantisation', 'int8'].includes(name),
);
const format = ({ name }: WeightSpec): string => name.replace('with double quantisation', 'doubly');

/** [V, D]: ragged rows, whole runs, and rows of several warps. */
export function embeddings(): KernelCase[] {
  return SPECS.flatMap((spec) =>
    DTYPES.flatMap((dtype) => ({
      name: `embedding ${dtype} ${format(spec)}`,
      async run(device) {
        const made = [];
        for (const [V, D] of [
          [7, 5],
          [40, 64],
          [3, 1100],
        ] as const) {
          const { w } = weightOperand(spec, V, D, 'f32', { seed: 31, device });
          const ids = Indices.from([V - 1, 0, -1, 2, 2, 1, 0], { limit: V, holes: true, device });
          made.push(embedding(ids, w, { scale: 1.5, dtype }));
        }
        return hashOf(made);
      },
    })),
  );
}

/**
 * [M, V, K]: one token, ragged, one block, several blocks, several chunks of tokens, and sums in planes, of
 * the gradient and of the logits.
 */
const LOSSES = [
  [1, 3, 1],
  [3, 43, 17],
  [9, 300, 64],
  [3, 12000, 16],
  [2050, 3, 8],
  [3, 8200, 256],
  [3, 512, 4096],
] as const;

/** Large ones of one weight: the kernels of products have cases of the others. */
const takes = ({ name }: WeightSpec, dtype: DType, [M, V, K]: (typeof LOSSES)[number]): boolean =>
  (Math.max(M, V) < 1000 || name === 'nf4') && (K < 100 || (name === 'nf4' && dtype !== 'f32'));

export function losses(): KernelCase[] {
  return SPECS.flatMap((spec) =>
    DTYPES.filter((dtype) => mixes(spec, dtype)).flatMap((dtype) =>
      LOSSES.filter((shape) => takes(spec, dtype, shape)).map(([M, V, K]) => ({
        name: `loss ${dtype} ${format(spec)} [${M}, ${V}, ${K}]`,
        async run(device) {
          // Logits of about the same size, whatever K is.
          const x = operand(M, K, { seed: 41, dtype, device, std: K > 100 ? 0.1 : 1 }).tensor;
          const { w } = weightOperand(spec, V, K, dtype, { seed: 42, device });
          const ids = Array.from({ length: M }, (_, m) =>
            M > 1 && m % 5 === 1 ? -1 : m % 3 === 0 ? V - 1 : (m * 7919) % V,
          );
          const targets = Indices.from(ids, { limit: V, holes: true, device });
          const weights = operand(1, M, { seed: 43, device, shape: [M] }).tensor;
          const plain = linearCrossEntropy(x, w, targets);
          const capped = linearCrossEntropy(x, w, targets, { scale: 0.5, softcap: 4, weights });
          const alone = linearCrossEntropy(await misplaced(x), w, targets, { gradient: false });
          const all = [plain, capped, alone];
          return hashOf(all.flatMap(({ losses: loss, dx }) => [loss, dx]));
        },
      })),
    ),
  );
}
