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
  LoraAdapter,
  loraBackward,
  loraForward,
  matmul,
  matmulInputGrad,
  type QuantFormat,
  quantize,
  type Tensor,
  Tensor as Tensors,
} from '../../lib/index.js';
import { type LoraShape, type LoraVariant, loraCase } from '../conformance/lora-case.js';
import {
  DTYPES,
  mixes,
  operand,
  WEIGHTS,
  type WeightSpec,
  weightOperand,
} from '../conformance/operands.js';

export interface KernelCase {
  readonly name: string;
  /** Bits of everything that the call computes, hashed. */
  run(device: Device): Promise<string>;
}

async function hashOf(tensors: ReadonlyArray<Tensor | undefined>): Promise<string> {
  const hash = createHash('sha256');
  for (const tensor of tensors) {
    if (tensor === undefined) continue;
    const bytes = tensor.dtype === 'f32' ? await tensor.read() : await tensor.readBits();
    hash.update(new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength));
  }
  return hash.digest('hex').slice(0, 16);
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
            const w = quantize(tensor, { format, blocksize, doubleQuant });
            const state = await w.toBitsandbytes();
            const hash = createHash('sha256');
            for (const [key, part] of Object.entries(state).sort()) {
              hash.update(key);
              if (ArrayBuffer.isView(part)) {
                hash.update(new Uint8Array(part.buffer, part.byteOffset, part.byteLength));
              }
            }
            const values = await hashOf(DTYPES.map((to) => dequantize(w, { dtype: to })));
            return hash.update(values).digest('hex').slice(0, 16);
          },
        });
      }
    }
  }
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

/**
 * Weights from a megabyte on, where the family is chosen by M: few tokens, and on compute capability
 * 9.0 enough of them for wgmma. K and N end inside a tile.
 */
function large(): KernelCase[] {
  const few = (
    [
      ['nf4', false, 'bf16', [1, 12, 25, 50]],
      ['nf4', true, 'f16', [3, 64]],
      ['fp4', true, 'bf16', [8]],
      ['int8', false, 'f16', [1, 12, 25, 50]],
      ['int8', true, 'bf16', [16]],
      [undefined, false, 'bf16', [1, 12]],
      [undefined, false, 'f16', [25, 50]],
    ] as const
  ).flatMap(([format, doubleQuant, dtype, counts]) =>
    counts.map((M) => ({
      format,
      doubleQuant,
      dtype,
      M,
      N: 1032,
      K: 2080,
      r: M % 2 === 0 ? 8 : 0,
    })),
  );
  const many = (
    [
      ['nf4', true, 'bf16', 2184, 1000, 16],
      ['int8', false, 'f16', 2184, 1000, 0],
      [undefined, false, 'f16', 4360, 520, 3],
    ] as const
  ).map(([format, doubleQuant, dtype, N, K, r]) => ({
    format,
    doubleQuant,
    dtype,
    M: 520,
    N,
    K,
    r,
  }));
  // On compute capability 9.0 by wgmma, whose blocks of 256 outputs must fill the device.
  const fewOfHopper = (
    [
      ['nf4', true, 'bf16', 64, 8],
      ['fp4', false, 'f16', 33, 0],
    ] as const
  ).map(([format, doubleQuant, dtype, M, r]) => ({
    format,
    doubleQuant,
    dtype,
    M,
    N: 3080,
    K: 1824,
    r,
  }));
  return [...few, ...fewOfHopper, ...many].map(({ format, doubleQuant, dtype, M, N, K, r }) => ({
    name: `large ${dtype} ${format ?? 'dense'}${doubleQuant ? ' doubly' : ''} [${M}, ${N}, ${K}] r ${r}`,
    async run(device) {
      const random = (seed: number, shape: number[], as: DType) =>
        Tensors.randn(shape, { seed, dtype: as, device });
      const x = random(31, [M, K], dtype);
      const dense = random(32, [N, K], dtype);
      const w = format === undefined ? dense : quantize(dense, { format, doubleQuant });
      const bias = random(33, [N], 'f32');
      if (r === 0) return hashOf([matmul(x, w, { bias })]);
      const adapter = new LoraAdapter({
        loraA: random(34, [r, K], 'f32'),
        loraB: random(35, [N, r], r === 3 ? dtype : 'f32'),
        loraAlpha: r,
        loraBias: random(36, [N], 'f32'),
      });
      return hashOf([loraForward(x, w, adapter, { bias, training: false }).y]);
    },
  }));
}

export function kernelCases(): KernelCase[] {
  return [...streaming(), ...products(), ...adapters(), ...large()];
}
