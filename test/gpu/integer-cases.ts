/**
 * Integer-filled calls of every op. Their sums are exact in f32 whatever the order, so that any two
 * devices must agree to the bit, whatever their tensor cores do with the last ones: a GPU and the
 * emulator, or the emulator and the CPU. Streaming ops are exact on any values.
 */
import {
  type BaseWeight,
  type Device,
  type DType,
  dequantize,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  type QuantFormat,
  quantize,
  type Tensor,
} from '../../lib/index.js';
import { loraCase } from '../conformance/lora-case.js';
import {
  DTYPES,
  mixes,
  operand,
  tensorOf,
  WEIGHTS,
  type WeightSpec,
} from '../conformance/operands.js';
import { source } from '../oracle/inputs.js';
import { codebookOf, matrix } from '../oracle.js';

export interface IntegerCase {
  readonly name: string;
  /** Whether it is too much for a quick run on an emulator. */
  readonly large: boolean;
  /** Hands each result over before what follows may take it. */
  run(device: Device, keep: Keep): Promise<void>;
}
export type Keep = (name: string, result: Tensor) => Promise<void>;

/** Of 12: 2, 3, 4, 6, 8 and 12. */
const FP4_LEVELS = [
  1 / 6,
  1 / 4,
  1 / 3,
  1 / 2,
  2 / 3,
  1,
  -1 / 6,
  -1 / 4,
  -1 / 3,
  -1 / 2,
  -2 / 3,
  -1,
];

/** Multiples of a block's scale that the codebook holds exactly. */
const levelsOf = (format: QuantFormat): readonly number[] =>
  format === 'fp4' ? FP4_LEVELS : [-1, 0, 1].filter((v) => codebookOf(format).includes(v));

const BLOCKSIZE = 64;

/** A weight of integers [N, K] that its format holds as they are. */
function integerWeight(
  { format, dense = 'f32', doubleQuant = false }: WeightSpec,
  N: number,
  K: number,
  device: Device,
  seed: number,
): BaseWeight {
  if (format === undefined) {
    return operand(N, K, { seed, dtype: dense, device, integers: 5 }).tensor;
  }
  const from = source(seed);
  const levels = levelsOf(format);
  const unit = format === 'fp4' ? 12 : 1;
  let scale = unit;
  const values = Float64Array.from({ length: N * K }, (_, i) => {
    // Scales that are all the same survive their own quantisation; others do not.
    if (i % BLOCKSIZE === 0) scale = unit * (doubleQuant ? 2 : from.integer(1, 3));
    const level = i % BLOCKSIZE === 0 ? 1 : (levels[from.integer(0, levels.length - 1)] as number);
    return Math.round(level * scale);
  });
  const tensor = tensorOf(matrix(N, K, values), { dtype: 'f32', device });
  return quantize(tensor, { format, blocksize: BLOCKSIZE, doubleQuant });
}

/** What goes through the large shapes, which are minutes to an emulator: each way to decode once. */
const LARGE = ['dense bf16 bf16', 'nf4 with double quantisation bf16', 'fp4 f16', 'int8 f16'];

/** [M, N, K] */
const SHAPES = [
  [1, 72, 192],
  [5, 40, 100],
  [17, 64, 65],
  [33, 65, 96],
  [65, 136, 160],
  [130, 128, 256],
  [3, 17, 43],
] as const;
/** From a megabyte of weight on the kernels are others; from 512 tokens on those of sm_90 too. */
const LARGE_SHAPES = [
  [1, 1032, 2080],
  [12, 1032, 2080],
  [50, 1032, 2080],
  [520, 2184, 1000],
] as const;

function productCase(
  spec: WeightSpec,
  dtype: DType,
  shape: readonly number[],
  large: boolean,
): IntegerCase {
  const [M, N, K] = shape as [number, number, number];
  return {
    name: `matmul ${dtype} ${spec.name} [${M}, ${N}, ${K}]`,
    large,
    async run(device, keep) {
      const fill = { dtype, device, integers: 4 };
      const x = operand(M, K, { ...fill, seed: 1 }).tensor;
      const dy = operand(M, N, { ...fill, seed: 2 }).tensor;
      const bias = operand(1, N, { seed: 3, device, integers: 4, shape: [N] }).tensor;
      const w = integerWeight(spec, N, K, device, 4);
      await keep('y', matmul(x, w, { bias }));
      await keep('dx', matmulInputGrad(dy, w));
    },
  };
}

/** Products of int8 codes, whose sums are integers whatever the values. */
function codesCase(dtype: DType, shape: readonly number[], large: boolean): IntegerCase {
  const [M, N, K] = shape as [number, number, number];
  return {
    name: `matmul ${dtype} int8 codes [${M}, ${N}, ${K}]`,
    large,
    async run(device, keep) {
      const x = operand(M, K, { dtype, device, seed: 1 }).tensor;
      const bias = operand(1, N, { seed: 2, device, shape: [N] }).tensor;
      const dense = operand(N, K, { seed: 3, device }).tensor;
      const w = quantize(dense, { format: 'int8', rowwise: true });
      await keep('w', dequantize(w));
      await keep('y', matmul(x, w, { bias, compute: 'int8' }));
    },
  };
}

const RANKS = [8, 3, 16, 72, 1, 64, 17];

function adapterCase(
  spec: WeightSpec,
  dtype: DType,
  shape: readonly number[],
  r: number,
  large: boolean,
): IntegerCase {
  const [M, N, K] = shape as [number, number, number];
  // p = 1/2 doubles what is kept.
  const variant = { integers: 1, bias: true, loraBias: true, dropout: r % 2 === 0 ? 0.5 : 0 };
  return {
    name: `lora ${dtype} ${spec.name} [${M}, ${N}, ${K}] r ${r}${variant.dropout > 0 ? ' dropout' : ''}`,
    large,
    async run(device, keep) {
      const dense: WeightSpec = { name: '', dense: dtype };
      const c = loraCase({ M, N, K, r }, variant, dense, dtype, device, 9);
      const w = integerWeight(spec, N, K, device, 4);
      const { y, saved } = loraForward(c.x, w, c.adapter, c.options);
      await keep('y', y);
      if (saved.h !== undefined) await keep('h', saved.h);
      for (const [name, gradient] of Object.entries(loraBackward(c.dy, saved))) {
        if (gradient !== undefined) await keep(name, gradient as Tensor);
      }
    },
  };
}

export function integerCases(): IntegerCase[] {
  const cases: IntegerCase[] = [];
  for (const dtype of DTYPES) {
    for (const [M, N, K] of SHAPES.filter((shape) => shape[2] % 32 === 0)) {
      cases.push(codesCase(dtype, [M, N, K], false));
    }
    cases.push(codesCase(dtype, [2058, 1040, 1056], true));
  }
  for (const spec of WEIGHTS) {
    for (const dtype of DTYPES.filter((type) => mixes(spec, type))) {
      for (const [i, shape] of SHAPES.entries()) {
        cases.push(productCase(spec, dtype, shape, false));
        cases.push(adapterCase(spec, dtype, shape, RANKS[i] as number, false));
      }
      if (!LARGE.includes(`${spec.name} ${dtype}`)) continue;
      for (const shape of LARGE_SHAPES) {
        cases.push(
          productCase(spec, dtype, shape, true),
          adapterCase(spec, dtype, shape, 16, true),
        );
      }
    }
  }
  return cases;
}
