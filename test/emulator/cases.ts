/**
 * Small calls that between them reach every kernel of cuda/, every tile and every special path, with
 * ragged edges: what the checks of the emulator, the mutation proof and the comparison of its modes
 * run over. Correct values are the conformance suite's business; here the bits count.
 */
import { createHash } from 'node:crypto';
import {
  type Device,
  type DType,
  dequantize,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  type QuantFormat,
  type QuantizedWeight,
  quantize,
  Tensor as Tensors,
} from '../../lib/index.js';
import { type LoraShape, type LoraVariant, loraCase } from '../conformance/lora-case.js';
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
import { attentionCases } from './attention-cases.js';
import { hashOf, type KernelCase } from './case-parts.js';
import { special, unaligned } from './edge-cases.js';
import { expertCases } from './expert-cases.js';
import { families } from './family-cases.js';
import { features } from './feature-cases.js';
import { grouped } from './grouped-cases.js';
import { int8 } from './int8-cases.js';
import { gradients, large, several, shrinking, turning } from './large-cases.js';
import { embeddings, losses } from './loss-cases.js';
import { rmsNorms } from './model-cases.js';
import { layersWithNorms, norms } from './norm-cases.js';
import { optimizers } from './optimizer-cases.js';
import { planes } from './planes-cases.js';
import { elementwise, halves, shrinks } from './small-cases.js';

/** Of codes, scales and tables, and of the values. */
async function hashOfWeight(w: QuantizedWeight): Promise<string> {
  const hash = createHash('sha256');
  for (const [key, part] of Object.entries(await w.toBitsandbytes()).sort()) {
    hash.update(key);
    const { buffer, byteOffset, byteLength } = part.data;
    hash.update(new Uint8Array(buffer, byteOffset, byteLength));
  }
  const values = await hashOf(DTYPES.map((to) => dequantize(w, { dtype: to })));
  return hash.update(values).digest('hex').slice(0, 16);
}

function streaming(): KernelCase[] {
  const cases: KernelCase[] = [];
  for (const format of ['nf4', 'fp4', 'int8'] as const satisfies readonly QuantFormat[]) {
    for (const doubleQuant of [false, true]) {
      for (const [dtype, rows, cols, blocksize] of [
        ['f32', 3, 100, 32],
        ['bf16', 65, 128, 64],
        ['f16', 7, 333, 256],
        ['f32', 2, 4099, 4096],
      ] as const) {
        const name = `quantize ${format}${doubleQuant ? ' doubly' : ''} ${dtype} [${rows}, ${cols}] / ${blocksize}`;
        cases.push({
          name,
          async run(device) {
            const { tensor } = operand(rows, cols, { seed: 5, dtype, device });
            return hashOfWeight(quantize(tensor, { format, blocksize, doubleQuant }));
          },
        });
      }
    }
  }
  for (const format of ['nf4', 'int8'] as const) {
    cases.push({
      // So that the sum of the scales is exact in one order only.
      name: `quantize ${format} doubly, rows of growing scale [4, 4096]`,
      async run(device) {
        const { rows, cols, data } = operand(4, 4096, { seed: 9, device }).matrix;
        const grown = data.map((value, i) => Math.fround(value * 2 ** (15 * Math.floor(i / cols))));
        const w = tensorOf(matrix(rows, cols, Float64Array.from(grown)), { device });
        return hashOf(
          [64, 4096].map((blocksize) =>
            dequantize(quantize(w, { format, blocksize, doubleQuant: blocksize === 64 })),
          ),
        );
      },
    });
  }
  cases.push(...rowwise());
  for (const from of DTYPES) {
    for (const to of DTYPES) {
      if (from === to) continue;
      cases.push({
        name: `cast ${from} to ${to}`,
        run: (device) =>
          hashOf([operand(9, 131, { seed: 6, dtype: from, device }).tensor.to({ dtype: to })]),
      });
    }
    cases.push({
      name: `random ${from}`,
      run: (device) =>
        hashOf([
          Tensors.randn([5, 77], { seed: 7, dtype: from, device }),
          Tensors.uniform([5, 77], { seed: 8, dtype: from, device }),
        ]),
    });
  }
  return cases;
}

/** Rowwise int8: a warp a row, a block with some idle groups, rows of whole chunks and of more. */
function rowwise(): KernelCase[] {
  const options = { format: 'int8', rowwise: true } as const;
  return DTYPES.flatMap((dtype) => [
    ...(
      [
        [5, 32],
        [3, 1056],
        [2, 4096],
        [2, 8224],
      ] as const
    ).map(([rows, cols]) => ({
      name: `quantize rowwise ${dtype} [${rows}, ${cols}]`,
      async run(device: Device) {
        const { data } = operand(rows, cols, { seed: 12, dtype, device }).matrix;
        // A row of zeros, and the largest at a row's end.
        const values = data.map((v, i) => (i >= cols && i < 2 * cols ? 0 : v));
        values[cols - 1] = 100;
        const w = tensorOf(matrix(rows, cols, values), { dtype, device });
        return hashOfWeight(quantize(w, options));
      },
    })),
    {
      // The first is told of, of those in several groups, warps and rows.
      name: `quantize rowwise ${dtype}, not finite [4, 2080]`,
      async run(device: Device) {
        const values = Float64Array.from({ length: 4 * 2080 }, (_, i) => i % 7);
        for (const at of [4159, 4000, 2080 + 3, 2080 + 77, 7000]) values[at] = Number.NaN;
        values[2080 + 2] = dtype === 'f16' ? Number.NEGATIVE_INFINITY : -1e5;
        const w = quantize(tensorOf(matrix(4, 2080, values), { dtype, device }), options);
        const told = await w.toBitsandbytes().then(
          () => 'nothing',
          (error: Error) => error.message,
        );
        return createHash('sha256').update(told).digest('hex').slice(0, 16);
      },
    },
  ]);
}

/** [M, N, K]: one row, ragged small, one over a tile, whole tiles. */
const SHAPES = [
  [1, 72, 192],
  [5, 40, 100],
  [33, 65, 96],
  [65, 136, 160],
  [130, 128, 256],
  [3, 17, 43],
] as const;

function products(): KernelCase[] {
  return WEIGHTS.flatMap((spec) =>
    DTYPES.filter((dtype) => mixes(spec, dtype)).flatMap((dtype) =>
      SHAPES.map(([M, N, K]) => ({
        name: `matmul ${dtype} ${spec.name} [${M}, ${N}, ${K}]`,
        async run(device: Device) {
          const x = operand(M, K, { seed: 11, dtype, device }).tensor;
          const dy = operand(M, N, { seed: 12, dtype, device }).tensor;
          const bias = operand(1, N, { seed: 13, device, shape: [N] }).tensor;
          const { w } = weightOperand(spec, N, K, dtype, { seed: 14, device });
          return hashOf([matmul(x, w, { bias }), matmul(x, w), matmulInputGrad(dy, w)]);
        },
      })),
    ),
  );
}

const VARIANTS: ReadonlyArray<LoraVariant & { r: number }> = [
  { r: 8 },
  { r: 3, bias: true, loraBias: true, dropout: 0.3 },
  { r: 16, sameDType: true, dropout: 0.5, maskGiven: true },
  { r: 72, bias: true, sameDType: true },
];

async function lora(
  shape: LoraShape,
  variant: LoraVariant,
  spec: WeightSpec,
  dtype: DType,
  device: Device,
): Promise<string> {
  const given = loraCase(shape, variant, spec, dtype, device, 21);
  const { y, saved } = loraForward(given.x, given.w, given.adapter, given.options);
  const h = saved.h;
  const first = await hashOf([y, h]);
  const gradients = loraBackward(given.dy, saved);
  const all = await hashOf(Object.values(gradients));
  return createHash('sha256').update(first).update(all).digest('hex').slice(0, 16);
}

function adapters(): KernelCase[] {
  const specs = WEIGHTS.filter(({ name }) =>
    [
      'dense f32',
      'dense bf16',
      'dense f16',
      'nf4',
      'nf4 with double quantisation',
      'int8',
    ].includes(name),
  );
  return specs.flatMap((spec) =>
    DTYPES.filter((dtype) => mixes(spec, dtype)).flatMap((dtype) =>
      SHAPES.flatMap(([M, N, K], i) => {
        const { r, ...variant } = VARIANTS[i % VARIANTS.length] as LoraVariant & { r: number };
        return {
          name: `lora ${dtype} ${spec.name} [${M}, ${N}, ${K}] r ${r} ${Object.keys(variant).join(' ')}`.trimEnd(),
          run: (device: Device) => lora({ M, N, K, r }, variant, spec, dtype, device),
        };
      }),
    ),
  );
}

export function kernelCases(): KernelCase[] {
  return [
    ...streaming(),
    ...products(),
    ...adapters(),
    ...elementwise(),
    ...optimizers(),
    ...planes(),
    ...halves(),
    ...shrinks(),
    ...features(),
    ...norms(),
    ...layersWithNorms(),
    ...grouped(),
    ...int8(),
    ...unaligned(),
    ...special(),
    ...large(),
    ...several(),
    ...shrinking(),
    ...turning(),
    ...gradients(),
    ...families(),
    ...attentionCases(),
    ...rmsNorms(),
    ...embeddings(),
    ...losses(),
    ...expertCases(),
  ];
}
