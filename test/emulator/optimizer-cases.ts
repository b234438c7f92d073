/** Steps of optimisers: tensors of each type, ragged and unaligned ones, several blocks and launches. */
import { adamwStep, type DType, globalNorm, Tensor } from '../../lib/index.js';
import { DTYPES, operand } from '../conformance/operands.js';
import { hashOf, type KernelCase, misplaced } from './case-parts.js';

/** Of one, of whole runs, with ends of a run, of more than a block, and none. */
const SIZES = [1, 64, 131, 4096, 4099, 0, 9001] as const;

export function optimizers(): KernelCase[] {
  return DTYPES.flatMap((dtype, i) =>
    [false, true].map((placed) => {
      const other = DTYPES[(i + 1) % DTYPES.length] as DType;
      return {
        name: `optimizer ${placed ? 'unaligned ' : ''}${dtype}`,
        async run(device) {
          const make = async (size: number, kind: number, seed: number, as: DType) => {
            const fill = { seed: 10 * kind + seed, dtype: as, device, std: 0.5, shape: [size] };
            const { tensor } = operand(1, size, fill);
            // One operand is enough for all to go element by element.
            return placed && kind === 1 && size > 0 ? misplaced(tensor) : tensor;
          };
          const lists: Tensor[][] = [];
          for (const [kind, as] of [dtype, other, 'f32'].entries()) {
            const list = SIZES.map((size, k) => make(size, kind, k, as as DType));
            lists.push(await Promise.all(list));
          }
          const [p, g, m] = lists as [Tensor[], Tensor[], Tensor[]];
          const v = SIZES.map((size) => Tensor.zeros([size], { device }));
          const norm = globalNorm(g);
          const scalar = (value: number) => Tensor.from([value], [1], { device });
          const [lr, step] = [scalar(0.01), scalar(6)];
          const lrScale = SIZES.map((_, k) => 1 + (k % 2));
          adamwStep(p, g, m, v, { lr, step, norm, maxNorm: 1, lrScale });
          adamwStep(p, g, m, v, { lr: 0.02, step: 8, weightDecay: SIZES.map((_, k) => k / 10) });
          adamwStep(p, g, m, v, { lr, step, norm: scalar(Number.NaN) });
          return hashOf([norm, step, ...p, ...m, ...v]);
        },
      } satisfies KernelCase;
    }),
  ).concat({
    name: 'optimizer of 200 parameters',
    async run(device) {
      const [p, g, m, v] = [1, 2, 3, 4].map((seed) =>
        Array.from({ length: 200 }, (_, i) => {
          const size = 1 + (i % 5);
          const spec = { seed: 1000 * seed + i, device, shape: [size] };
          return seed < 4 ? operand(1, size, spec).tensor : Tensor.zeros([size], { device });
        }),
      ) as [Tensor[], Tensor[], Tensor[], Tensor[]];
      const norm = globalNorm(g);
      adamwStep(p, g, m, v, { lr: 0.1, step: 1, norm, maxNorm: 3 });
      return hashOf([norm, ...p, ...m, ...v]);
    },
  });
}
