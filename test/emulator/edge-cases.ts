/** Operands at odd places, of odd values and of size zero. */
import {
  type Device,
  dequantize,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  quantize,
  type Tensor,
  Tensor as Tensors,
} from '../../lib/index.js';
import {
  type LoraCase,
  type LoraShape,
  type LoraVariant,
  loraCase,
} from '../conformance/lora-case.js';
import {
  DTYPES,
  mixes,
  operand,
  tensorOf,
  WEIGHTS,
  type WeightSpec,
  weightOperand,
} from '../conformance/operands.js';
import { matrix } from '../oracle.js';
import { hashOf, type KernelCase, misplaced, withInfinities } from './case-parts.js';

/** Operands that cannot be read by whole words, nor as whole rows of them. */
export function unaligned(): KernelCase[] {
  const cases: KernelCase[] = [];
  for (const dtype of DTYPES) {
    for (const to of DTYPES) {
      cases.push({
        name: `unaligned cast ${dtype} to ${to}`,
        async run(device) {
          const { tensor } = operand(9, 131, { seed: 41, dtype, device });
          const there = await misplaced(tensor);
          return hashOf([there.to({ dtype: to }), tensor.to({ dtype: to })]);
        },
      });
    }
    for (const format of ['nf4', 'int8'] as const) {
      cases.push({
        name: `unaligned quantize ${format} ${dtype}`,
        async run(device) {
          const { tensor } = operand(7, 333, { seed: 42, dtype, device });
          const w = quantize(await misplaced(tensor), { format, blocksize: 64 });
          return hashOf([dequantize(w, { dtype })]);
        },
      });
    }
    cases.push({
      name: `unaligned quantize rowwise ${dtype}`,
      async run(device) {
        const { tensor } = operand(3, 352, { seed: 42, dtype, device });
        const w = quantize(await misplaced(tensor), { format: 'int8', rowwise: true });
        return hashOf([dequantize(w, { dtype })]);
      },
    });
    for (const spec of WEIGHTS.filter((one) => mixes(one, dtype))) {
      cases.push({
        name: `unaligned matmul ${dtype} ${spec.name} [33, 68, 96]`,
        async run(device) {
          const x = await misplaced(operand(33, 96, { seed: 43, dtype, device }).tensor);
          const dy = await misplaced(operand(33, 68, { seed: 44, dtype, device }).tensor);
          const { w } = weightOperand(spec, 68, 96, dtype, { seed: 45, device });
          const placed = w instanceof Tensors ? await misplaced(w) : w;
          return hashOf([matmul(x, placed), matmulInputGrad(dy, placed)]);
        },
      });
    }
    const dense = WEIGHTS.find((spec) => spec.dense === dtype) as WeightSpec;
    for (const [name, variant] of [
      ['seed', { dropout: 0.4 }],
      ['mask', { dropout: 0.4, maskGiven: true }],
    ] as const) {
      cases.push({
        name: `unaligned lora ${dtype} by ${name} [37, 66, 98] r 20`,
        async run(device) {
          const given = loraCase({ M: 37, N: 66, K: 98, r: 20 }, variant, dense, dtype, device, 46);
          const { dropoutMask, ...options } = given.options;
          const x = await misplaced(given.x);
          const { y, saved } = loraForward(x, given.w, given.adapter, {
            ...options,
            ...(dropoutMask === undefined ? {} : { dropoutMask: await misplaced(dropoutMask) }),
          });
          const gradients = loraBackward(await misplaced(given.dy), saved);
          return hashOf([y, ...Object.values(gradients)]);
        },
      });
    }
  }
  return cases;
}

/** Values that show what is added to a sum in excess, sizes of zero, masks of every kind. */
export function special(): KernelCase[] {
  const cases: KernelCase[] = [];
  for (const dtype of DTYPES) {
    for (const spec of WEIGHTS.filter((one) => mixes(one, dtype))) {
      for (const [M, N, K, column] of [
        // The column is where the last slab of K begins.
        [5, 41, 100, 0],
        [33, 72, 32, 0],
        [33, 72, 96, 64],
      ] as const) {
        cases.push({
          name: `infinities matmul ${dtype} ${spec.name} [${M}, ${N}, ${K}]`,
          async run(device) {
            const at = { dtype, device };
            const x = withInfinities(operand(M, K, { seed: 51, ...at }), at, column);
            const dy = withInfinities(operand(M, N, { seed: 52, ...at }), at, column && 64);
            const { w } = weightOperand(spec, N, K, dtype, { seed: 53, device });
            const infinite = withInfinities(operand(N, K, { seed: 54, ...at }), at, column);
            const finite = operand(M, K, { seed: 55, ...at }).tensor;
            const grad = operand(M, N, { seed: 56, ...at }).tensor;
            const only = operand(N, K, { seed: 57, ...at }).matrix;
            const spoilt = Float64Array.from(only.data);
            spoilt[(N > 64 ? 64 : 0) * K] = Infinity;
            const one = tensorOf(matrix(N, K, spoilt), at);
            return hashOf([
              matmul(x, w),
              matmulInputGrad(dy, w),
              ...(spec.dense === dtype
                ? [matmul(finite, infinite), matmulInputGrad(grad, one)]
                : []),
            ]);
          },
        });
      }
    }
    const dense = WEIGHTS.find((spec) => spec.dense === dtype) as WeightSpec;
    const own = (
      name: string,
      shape: LoraShape,
      variant: LoraVariant,
      change: (given: LoraCase, device: Device) => Partial<LoraCase> = () => ({}),
    ) =>
      cases.push({
        name: `${name} ${dtype} [${shape.M}, ${shape.N}, ${shape.K}] r ${shape.r}`,
        async run(device) {
          const given = loraCase(shape, variant, dense, dtype, device, 61);
          const { x, dy, w, adapter, options } = { ...given, ...change(given, device) };
          const { y, saved } = loraForward(x, w, adapter, options);
          const first = await hashOf([y, saved.h]);
          return first + (await hashOf(Object.values(loraBackward(dy, saved))));
        },
      });
    own(
      'lora infinities',
      { M: 21, N: 43, K: 67, r: 5 },
      { loraBias: true },
      ({ inputs, dy64 }, device) => {
        const at = { dtype, device };
        return {
          x: withInfinities({ matrix: inputs.x }, at),
          dy: withInfinities({ matrix: dy64 }, at),
        };
      },
    );
    // A reduction of several parts: of the gradients over M, of the shrink over K.
    own('lora parts', { M: 700, N: 40, K: 77, r: 3 }, { loraBias: true, bias: true });
    own('lora parts', { M: 20, N: 72, K: 1100, r: 20 }, { loraBias: true, dropout: 0.2 });
    own('lora empty', { M: 5, N: 40, K: 0, r: 8 }, { bias: true, loraBias: true });
    for (const to of DTYPES) {
      for (const K of [43, 64]) {
        const masked = { dropout: 0.4, maskGiven: true };
        own(`lora ${to} mask`, { M: 37, N: 66, K, r: 20 }, masked, ({ options }) => ({
          options: { ...options, dropoutMask: options.dropoutMask?.to({ dtype: to }) as Tensor },
        }));
      }
    }
    cases.push({
      name: `empty matmul ${dtype}`,
      async run(device) {
        const at = { dtype, device };
        const bias = operand(1, 40, { seed: 62, device, shape: [40] }).tensor;
        return hashOf([
          matmul(Tensors.zeros([5, 0], at), Tensors.zeros([40, 0], at), { bias }),
          matmulInputGrad(Tensors.zeros([5, 0], at), Tensors.zeros([0, 40], at)),
        ]);
      },
    });
  }
  return cases;
}
