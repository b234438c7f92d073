/** Norms of adapted weights, with loraA rounded on the way and sums that lie in planes, and layers with them. */
import {
  type DType,
  factoredNorm,
  loraExpandWithNorms,
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

/** Rows, N, K and r of a layer that is computed with its norms: one op, whose launches overlap. */
const LAYERS: readonly (readonly [M: number, N: number, K: number, r: number])[] = [
  // Both by the family of few tokens, in planes; both by tiles; the layer by tiles of a large weight.
  [3, 264, 2008, 12],
  [70, 72, 96, 5],
  [300, 256, 320, 40],
];

export function layersWithNorms(): KernelCase[] {
  return LAYERS.map(([M, N, K, r]) => ({
    name: `layer with norms bf16 nf4 [${M}, ${N}, ${K}] r ${r}`,
    async run(device) {
      const random = (seed: number, rows: number, cols: number, dtype: DType = 'f32') =>
        Tensors.randn([rows, cols], { seed, dtype, device: 'cpu' }).to({ device });
      const dense = Tensors.randn([N, K], { seed: 64, dtype: 'bf16', device: 'cpu' });
      const w = quantize(dense, { format: 'nf4' }).to({ device });
      const factors = { loraA: random(65, r, K), loraB: random(66, N, r) };
      const weightNorms = Tensors.from(new Float32Array(N).fill(8), [N], { device });
      const [x, h] = [random(67, M, K, 'bf16'), random(68, M, r)];
      const { y, norms: out } = loraExpandWithNorms(x, w, h, factors, {
        scaling: 1 / 64,
        weightNorms,
      });
      return hashOf([y, out]);
    },
  }));
}
