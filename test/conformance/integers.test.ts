// Integer-filled inputs whose sums stay under 2^24 are exact in f32 whatever the order: the result
// must be the oracle's bit for bit. An index mistake that a tolerance hides shows here.
import { describe, it } from 'vitest';
import {
  type BaseWeight,
  type Device,
  type DType,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  quantize,
  scope,
  type Tensor,
} from '../../lib/index.js';
import { source } from '../oracle/inputs.js';
import {
  exact,
  type LoraInputs,
  loraBackward64,
  loraForward64,
  type Matrix,
  map,
  matmul64,
  matmulInputGrad64,
  matrix,
  mistrust,
  roundTo,
} from '../oracle.js';
import { loraCase } from './lora-case.js';
import { DEVICES, DTYPES, operand, seeded, tensorOf, type WeightSpec } from './operands.js';

// FP4's magnitudes times 12 are 0.0625, 2, 3, 4, 6, 8 and 12; NF4's ends times 7 are ±7.
const LEVELS = { fp4: [2, 3, 4, 6, 8, 12], nf4: [7] } as const;

/** A weight of integers [N, K]: dense, or in a format that holds these very integers. */
function integerWeight(
  kind: 'dense' | 'nf4' | 'fp4',
  N: number,
  K: number,
  dtype: DType,
  device: Device,
  seed: number,
): { w: BaseWeight; values: Matrix } {
  const from = source(seed);
  const levels = kind === 'dense' ? [1, 2, 3, 4, 5] : LEVELS[kind];
  const largest = levels[levels.length - 1] as number;
  const draw = (_: unknown, i: number): number => {
    const size = i % 32 === 0 ? largest : (levels[from.integer(0, levels.length - 1)] as number);
    return from.uniform() < 0.5 ? -size : size;
  };
  const values = matrix(N, K, Float64Array.from({ length: N * K }, draw));
  const dense = tensorOf(values, { dtype, device });
  if (kind === 'dense') return { w: dense, values };
  return { w: quantize(dense, { format: kind, blocksize: 32 }), values };
}

const SHAPES = [
  [1, 1, 1],
  [1, 31, 172],
  [3, 33, 63],
  [17, 64, 65],
  [64, 13, 33],
  [65, 63, 31],
  [2, 5, 1030],
  [9, 700, 40],
  [70, 30, 600],
] as const;

const CASES = DEVICES.flatMap((device) =>
  DTYPES.flatMap((dtype) =>
    (['dense', 'nf4', 'fp4'] as const).map((kind) => ({ device, dtype, kind })),
  ),
);

const rounded = (m: Matrix, dtype: DType): Float64Array => map(m, (v) => roundTo(dtype, v)).data;

describe.each(CASES)('integers on $device, $dtype x, $kind w', ({ device, dtype, kind }) => {
  it('matmul and matmulInputGrad', async () => {
    for (const [index, [M, N, K]] of SHAPES.entries()) {
      await scope(async () => {
        const { w, values } = integerWeight(kind, N, K, dtype, device, index);
        const fill = (i: number) => ({ seed: seeded(index, i), dtype, device, integers: 8 });
        const x = operand(M, K, fill(1));
        const dy = operand(M, N, fill(2));
        const bias = operand(1, N, { ...fill(3), dtype: 'f32' });
        const y64 = matmul64(x.matrix, values, bias.matrix);
        const dx64 = matmulInputGrad64(dy.matrix, values);
        const name = `[${M}, ${N}, ${K}]`;
        const y = await matmul(x.tensor, w, { bias: bias.tensor }).read();
        exact(
          `y ${name}`,
          y.map((v) => v + 0),
          rounded(y64.value, dtype).map((v) => v + 0),
        );
        const dx = await matmulInputGrad(dy.tensor, w).read();
        exact(
          `dx ${name}`,
          dx.map((v) => v + 0),
          rounded(dx64.value, dtype).map((v) => v + 0),
        );
      });
    }
  });

  it('loraForward and loraBackward', async () => {
    for (const [index, r] of [1, 3, 8, 17, 64].entries()) {
      await scope(async () => {
        const [M, N, K] = SHAPES[index + 1] as readonly [number, number, number];
        const spec: WeightSpec = { name: 'dense', dense: dtype };
        // p = 1/2 doubles the kept elements; scaling is 2.
        const variant = { integers: 2, bias: true, loraBias: true, dropout: 0.5 };
        const c = loraCase({ M, N, K, r }, variant, spec, dtype, device, index + 40);
        const { w, values } = integerWeight(kind, N, K, dtype, device, index);
        const inputs: LoraInputs = { ...c.inputs, w: values };
        const forward = loraForward64(inputs);
        mistrust('y', forward.value.data);
        const largest = Math.max(...forward.p.data);
        if (largest >= 2 ** 24) throw new Error(`the case is not exact: ${largest}`);
        const { y, saved } = loraForward(c.x, w, c.adapter, c.options);
        const plain = (values: Float32Array | Float64Array) => values.map((v) => v + 0);
        exact(`y ${c.name}`, plain(await y.read()), plain(rounded(forward.value, dtype)));
        const expected = loraBackward64(inputs, c.dy64);
        const gradients = loraBackward(c.dy, saved);
        for (const part of ['dx', 'dLoraA', 'dLoraB', 'dBias', 'dLoraBias'] as const) {
          if (Math.max(...expected[part].p.data) >= 2 ** 24) throw new Error(`${part} not exact`);
          const gradient = gradients[part] as Tensor;
          const right = rounded(expected[part].value, gradient.dtype);
          exact(`${part} ${c.name}`, plain(await gradient.read()), plain(right));
        }
      });
    }
  });
});
