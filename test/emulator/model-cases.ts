/** The ops of a decoder around its linear layers. */
import { type DType, rmsNormBackward, rmsNormForward, type Tensor } from '../../lib/index.js';
import { DTYPES, operand } from '../conformance/operands.js';
import { hashOf, type KernelCase, misplaced } from './case-parts.js';

/**
 * [M, D]: one element, rows that share a warp, a warp a row, several warps a row, a block a row, and more than a
 * block holds; ragged where it is.
 */
const NORMS = [
  [3, 1],
  [37, 24],
  [5, 131],
  [9, 256],
  [3, 1100],
  [2, 4104],
  [1, 8713],
] as const;

const next = (dtype: DType, step: number): DType =>
  DTYPES[(DTYPES.indexOf(dtype) + step) % DTYPES.length] as DType;

export function rmsNorms(): KernelCase[] {
  return DTYPES.flatMap((dtype) =>
    NORMS.flatMap(([M, D]) =>
      [false, true].flatMap((placed) => {
        // Long rows are slow under the emulator, and their ends are like those of others.
        if (placed && D > 1000) return [];
        return {
          name: `rms norm ${placed ? 'unaligned ' : ''}${dtype} [${M}, ${D}]`,
          async run(device) {
            const make = async (rows: number, seed: number, type: DType): Promise<Tensor> => {
              const { tensor } = operand(rows, D, {
                seed,
                dtype: type,
                device,
                ...(rows === 1 ? { shape: [D] } : {}),
              });
              return placed ? misplaced(tensor) : tensor;
            };
            const of = (seed: number, type: DType) =>
              make(M, seed, type).then((tensor) => tensor.reshape([M, D]));
            const [x, residual, dy] = [await of(1, dtype), await of(2, dtype), await of(3, dtype)];
            const wide = await of(4, next(dtype, 1));
            const g = await make(1, 5, next(dtype, 2));
            const plain = rmsNormForward(x, g, { eps: 0.01 });
            const added = rmsNormForward(x, g, { residual, plusOne: true });
            const mixed = rmsNormForward(x, g, { residual: wide });
            const [invRms, invRmsAdded] = [plain.invRms as Tensor, added.invRms as Tensor];
            const grads = [
              rmsNormBackward(dy, x, g, { invRms }),
              rmsNormBackward(dy, added.sum as Tensor, g, {
                invRms: invRmsAdded,
                dSum: residual,
                plusOne: true,
              }),
              rmsNormBackward(wide, x, g, { invRms, dSum: wide }),
            ];
            return hashOf([
              ...[plain, added, mixed].flatMap(({ y, sum, invRms: kept }) => [y, sum, kept]),
              ...grads.flatMap(({ dx, dg }) => [dx, dg]),
            ]);
          },
        };
      }),
    ),
  );
}
