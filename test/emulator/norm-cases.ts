/** Norms of adapted weights, with loraA rounded on the way and sums that lie in planes. */
import {
  type DType,
  factoredNorm,
  type QuantFormat,
  quantize,
  Tensor as Tensors,
} from '../../lib/index.js';
import { matrix } from '../oracle.js';
import { hashOf, type KernelCase, withInfinities } from './case-parts.js';

interface Norms {
  readonly format?: QuantFormat;
  /** Of w and of its product with loraA. */
  readonly dtype: DType;
  readonly shape: readonly [N: number, K: number];
  readonly r: number;
  /** Of loraA. */
  readonly from: DType;
  /** Infinities in loraB. */
  readonly infinity?: boolean;
}

const NORMS: readonly Norms[] = [
  // Of few tokens: planes of both products that the last kernel adds, and such as are added before.
  { format: 'nf4', dtype: 'bf16', shape: [1032, 2080], r: 12, from: 'f32' },
  { dtype: 'f16', shape: [264, 2008], r: 24, from: 'f32' },
  { dtype: 'bf16', shape: [64, 8192], r: 3, from: 'f32' },
  { dtype: 'bf16', shape: [264, 2008], r: 1, from: 'f32', infinity: true },
  // Tiled, and loraA in two tiles of ranks whose rows are no whole chunks.
  { dtype: 'f16', shape: [70, 43], r: 40, from: 'f32' },
  { format: 'int8', dtype: 'bf16', shape: [70, 96], r: 5, from: 'f32' },
  // Rounded, and widened, by a launch of its own.
  { dtype: 'bf16', shape: [70, 40], r: 5, from: 'f16' },
  { dtype: 'f32', shape: [70, 43], r: 5, from: 'bf16' },
];

export function norms(): KernelCase[] {
  return NORMS.map(({ format, dtype, shape: [N, K], r, from, infinity }) => ({
    name: `norms ${dtype} ${format ?? 'dense'} [${N}, ${K}] ${from} adapter of r ${r}${infinity ? ' infinity' : ''}`,
    async run(device) {
      const random = (seed: number, rows: number, cols: number, as: DType) =>
        Tensors.randn([rows, cols], { seed, dtype: as, device: 'cpu' });
      const dense = random(61, N, K, dtype);
      const w = (format === undefined ? dense : quantize(dense, { format })).to({ device });
      const loraA = random(62, r, K, from).to({ device });
      const drawn = random(63, N, r, 'f32');
      const loraB = infinity
        ? withInfinities(
            { matrix: matrix(N, r, Float64Array.from(await drawn.read())) },
            { dtype: 'f32', device },
          )
        : drawn.to({ device });
      // So small, and so scaled, that the last bits of both products show.
      const weightNorms = Tensors.from(new Float32Array(N).fill(8), [N], { device });
      return hashOf([factoredNorm({ w, loraA, loraB, scaling: 1 / 64, weightNorms, dtype })]);
    },
  }));
}
