/** Products of int8 codes (`compute: 'int8'` of rowwise weights). */
import {
  type BaseWeight,
  type Device,
  type DType,
  GroupedLora,
  LoraAdapter,
  loraExpand,
  loraForward,
  matmul,
  quantize,
} from '../../lib/index.js';
import { DTYPES, operand, tensorOf } from '../conformance/operands.js';
import { matrix } from '../oracle.js';
import { hashOf, type KernelCase, misplaced } from './case-parts.js';

const INT8 = { compute: 'int8' } as const;

function rowwise(N: number, K: number, device: Device): BaseWeight {
  const { tensor } = operand(N, K, { seed: 91, std: 0.5, device });
  return quantize(tensor, { format: 'int8', rowwise: true });
}

function adapterOf(N: number, K: number, r: number, dtype: DType, device: Device): LoraAdapter {
  return new LoraAdapter({
    loraA: operand(r, K, { seed: 92, std: 0.2, dtype, device }).tensor,
    loraB: operand(N, r, { seed: 93, dtype, device }).tensor,
    loraBias: operand(1, N, { seed: 94, device, shape: [N] }).tensor,
    loraAlpha: 2 * r,
  });
}

/**
 * [M, N, K]: each tile with ragged edges, whole, and of more slabs than stages; rows of tiles over a group; rows
 * of x over what a block of threads holds. From 129 rows on tiles are of 256 x 256 by wgmma where there are few
 * multiprocessors: several tiles a cluster, in one and in several columns; one group of
 * pairs of row tiles, and one more of a single pair.
 */
const SHAPES = [
  [1, 33, 96],
  [17, 40, 1056],
  [32, 64, 128],
  [33, 72, 544],
  [70, 65, 160],
  [128, 128, 256],
  [130, 136, 416],
  [1100, 136, 32],
  [2, 9, 8256],
  [260, 520, 672],
  [129, 521, 96],
  [256, 768, 128],
  [2048, 136, 32],
  [2100, 260, 32],
] as const;

export function int8(): KernelCase[] {
  const cases: KernelCase[] = [];
  for (const dtype of DTYPES) {
    for (const [M, N, K] of SHAPES) {
      cases.push({
        name: `int8 matmul ${dtype} [${M}, ${N}, ${K}]`,
        async run(device) {
          const x = operand(M, K, { seed: 95, dtype, device }).tensor;
          const bias = operand(1, N, { seed: 96, device, shape: [N] }).tensor;
          const w = rowwise(N, K, device);
          return hashOf([matmul(x, w, { bias, ...INT8 }), matmul(x, w, INT8)]);
        },
      });
    }
    for (const [M, N, K, r] of [
      [5, 40, 96, 3],
      [40, 72, 160, 16],
      [130, 136, 64, 72],
      [270, 280, 544, 20],
      [129, 515, 64, 3],
    ] as const) {
      cases.push({
        name: `int8 lora ${dtype} [${M}, ${N}, ${K}] r ${r}`,
        async run(device) {
          const x = operand(M, K, { seed: 97, dtype, device }).tensor;
          const w = rowwise(N, K, device);
          const ys = (['f32', dtype] as const).map(
            (factors) => loraForward(x, w, adapterOf(N, K, r, factors, device), INT8).y,
          );
          return hashOf(ys);
        },
      });
    }
    cases.push({
      // h is given, so that all of it has the same bits on every card.
      name: `int8 expand ${dtype} [270, 280, 96] r 20`,
      async run(device) {
        const x = operand(270, 96, { seed: 97, dtype, device }).tensor;
        const h = operand(270, 20, { seed: 89, device }).tensor;
        const loraB = operand(280, 20, { seed: 93, dtype, device }).tensor;
        return hashOf([loraExpand(x, rowwise(280, 96, device), h, loraB, INT8)]);
      },
    });
    cases.push({
      name: `int8 grouped ${dtype} [20, 40, 96] r 4`,
      async run(device) {
        const x = operand(20, 96, { seed: 98, dtype, device }).tensor;
        const group = new GroupedLora({ inFeatures: 96, outFeatures: 40, device });
        group.add('one', adapterOf(40, 96, 4, dtype, device));
        const rows = Array.from({ length: 20 }, (_, m) => (m % 3 === 0 ? null : 'one'));
        return hashOf([group.forward(x, rowwise(40, 96, device), rows, INT8).y]);
      },
    });
    cases.push({
      name: `int8 unaligned ${dtype} [33, 44, 96]`,
      async run(device) {
        const x = await misplaced(operand(33, 96, { seed: 99, dtype, device }).tensor);
        return hashOf([matmul(x, rowwise(44, 96, device), INT8)]);
      },
    });
    cases.push({
      name: `int8 special ${dtype} [6, 40, 64]`,
      async run(device) {
        const data = Float64Array.from(operand(6, 64, { seed: 90, dtype, device }).matrix.data);
        data.fill(0, 0, 64);
        data[70] = Number.NaN;
        data[191] = Number.POSITIVE_INFINITY;
        data[192] = Number.NEGATIVE_INFINITY;
        // Scales that are denormals, and that round to 0.
        for (let k = 0; k < 64; k++) data[256 + k] = 2 ** -149 * (k % 50);
        for (let k = 0; k < 64; k++) data[320 + k] = 2 ** -135 * (k - 31);
        const x = tensorOf(matrix(6, 64, data), { dtype, device });
        return hashOf([matmul(x, rowwise(40, 64, device), INT8)]);
      },
    });
  }
  return cases;
}
