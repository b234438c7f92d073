/** Weights so large that they have kernels of their own. */
import {
  type Device,
  type DType,
  LoraAdapter,
  type LoraProjection,
  loraBackward,
  loraForward,
  loraForwardMany,
  loraForwardSwiglu,
  loraShrinkBackward,
  matmul,
  matmulInputGrad,
  type QuantFormat,
  quantize,
  type Tensor as Tensors,
} from '../../lib/index.js';
import type { LoraVariant } from '../conformance/lora-case.js';
import { tensorOf } from '../conformance/operands.js';
import { dropoutMask64, matrix } from '../oracle.js';
import { hashOf, type KernelCase, random, withInfinities } from './case-parts.js';

/** [M, N, K] and rank (0: no adapter) of a product with a weight that has a family of its own. */
interface Large {
  readonly format?: QuantFormat | undefined;
  readonly doubleQuant?: boolean;
  readonly blocksize?: number;
  readonly dtype: DType;
  readonly shape: readonly [number, number, number];
  readonly r: number;
  /** The gradient of the input in place of an adapter. */
  readonly backward?: boolean;
  /** Infinities at the start and the end of x, or of w. */
  readonly infinity?: boolean;
  readonly infiniteWeight?: boolean;
  readonly sm?: string;
}

/** Weights from a megabyte on, where the family is chosen by M. K and N end inside a tile. */
function largeShapes(): Large[] {
  const few = (
    [
      ['nf4', false, 'bf16', 1032, 2080, [1, 12, 25, 50]],
      ['nf4', true, 'f16', 1032, 2080, [3, 64]],
      ['fp4', true, 'bf16', 1032, 2080, [8]],
      ['int8', false, 'f16', 520, 2064, [1, 12, 25, 50]],
      ['int8', true, 'bf16', 520, 2064, [3, 16, 25, 50]],
      [undefined, false, 'bf16', 264, 2008, [1, 12, 25, 50]],
      [undefined, false, 'f16', 264, 2008, [2, 13, 25, 50]],
      ['nf4', false, 'f16', 1032, 2080, [12, 25]],
      ['nf4', true, 'bf16', 1032, 2080, [13, 64]],
      // On compute capability 9.0 by wgmma, whose blocks of 256 outputs, or of 128, must fill the device.
      ['nf4', true, 'bf16', 3080, 1824, [64]],
      ['fp4', false, 'f16', 3080, 1824, [33]],
      ['nf4', true, 'bf16', 2040, 1984, [64]],
      ['fp4', false, 'f16', 2040, 1984, [33]],
    ] as const
  ).flatMap(([format, doubleQuant, dtype, N, K, counts]) =>
    counts.map((M) => ({
      format,
      doubleQuant,
      dtype,
      shape: [M, N, K] as const,
      r: M % 2 === 0 ? 8 : M === 25 ? 3 : 0,
    })),
  );
  return [
    ...few,
    { format: 'nf4', dtype: 'bf16', shape: [5, 1032, 2080], r: 0, infinity: true },
    { format: 'nf4', dtype: 'f16', shape: [40, 1032, 2080], r: 0, infinity: true },
    { format: 'int8', dtype: 'f16', shape: [5, 520, 2064], r: 0, infinity: true },
    // The last row, which stands in for those past it, meets one block of scales less than others.
    { format: 'nf4', dtype: 'bf16', shape: [12, 1045, 2016], r: 0, blocksize: 128 },
    {
      format: 'nf4',
      doubleQuant: true,
      dtype: 'f16',
      shape: [40, 1045, 2016],
      r: 0,
      blocksize: 128,
    },
    { dtype: 'bf16', shape: [6, 264, 2008], r: 12 },
    { dtype: 'bf16', shape: [5, 264, 2008], r: 0, infinity: true },
    { dtype: 'bf16', shape: [5, 264, 2008], r: 0, infiniteWeight: true },
    // The reduction of few tiles in parts, forward and backward.
    { format: 'nf4', doubleQuant: true, dtype: 'bf16', shape: [70, 1031, 2080], r: 0 },
    // By wgmma where there are few multiprocessors: tiles of 64 and of 128 tokens, K in 1, 2 and 4.
    ...(
      [
        { format: 'nf4', dtype: 'f16', shape: [100, 250, 8448], r: 8 },
        { format: 'nf4', doubleQuant: true, dtype: 'bf16', shape: [100, 1000, 2112], r: 8 },
        { format: 'fp4', blocksize: 32, dtype: 'f16', shape: [70, 500, 4640], r: 3 },
        { format: 'nf4', blocksize: 32, dtype: 'bf16', shape: [128, 250, 9248], r: 0 },
        { format: 'nf4', dtype: 'f16', shape: [193, 500, 4256], r: 0, infinity: true },
        // Rows that begin inside a block of scales, and end in the ring's second turn.
        { format: 'nf4', dtype: 'bf16', shape: [193, 500, 4320], r: 0, blocksize: 128 },
        // Three tiles of 64 tokens are one wave of a card.
        { format: 'nf4', dtype: 'bf16', shape: [130, 11264, 256], r: 8 },
      ] as const
    ).map((one) => ({ ...one, sm: '90' })),
    // Slices in a cluster: of few blocks on few multiprocessors, and of 12 on a card.
    ...(['bf16', 'f16'] as const).flatMap((dtype) =>
      (
        [
          { format: 'nf4', shape: [25, 250, 8448], r: 3 },
          { format: 'int8', shape: [25, 250, 4208], r: 3 },
          { format: 'int8', doubleQuant: true, shape: [50, 250, 4208], r: 8 },
          { shape: [25, 250, 2104], r: 3 },
          { shape: [50, 250, 2104], r: 0 },
          { format: 'nf4', shape: [50, 1530, 1440], r: 8 },
        ] as const
      ).map((one) => ({ ...one, dtype, sm: '90' })),
    ),
    { dtype: 'f16', shape: [70, 2080, 1032], r: 0, backward: true },
    { format: 'int8', dtype: 'f16', shape: [70, 1040, 2080], r: 3 },
    // Enough tokens for wgmma, on all multiprocessors or on few.
    ...(
      [
        { format: 'nf4', doubleQuant: true, dtype: 'bf16', shape: [400, 2184, 1000], r: 16 },
        { format: 'fp4', dtype: 'bf16', shape: [400, 2191, 1001], r: 5 },
        { format: 'nf4', dtype: 'f16', shape: [400, 2184, 1000], r: 0 },
        { format: 'int8', dtype: 'f16', shape: [400, 1064, 1000], r: 0 },
        { dtype: 'f16', shape: [400, 1037, 520], r: 3 },
        { dtype: 'bf16', shape: [400, 1032, 520], r: 0 },
      ] as const
    ).map((one) => ({ ...one, sm: '90' })),
  ];
}

/** The same with an infinity at its start, and one at the end, beside what lies outside. */
async function infinite(drawn: Tensors, device: Device): Promise<Tensors> {
  const [rows, cols] = drawn.shape as [number, number];
  const values = Float64Array.from(await drawn.read());
  values[values.length - 1] = Infinity;
  return withInfinities({ matrix: matrix(rows, cols, values) }, { dtype: drawn.dtype, device });
}

export function large(): KernelCase[] {
  return largeShapes().map(({ format, doubleQuant, dtype, shape: [M, N, K], r, sm, ...more }) => ({
    ...(sm === undefined ? {} : { sm }),
    name: `large ${dtype} ${format ?? 'dense'}${doubleQuant ? ' doubly' : ''} [${M}, ${N}, ${K}] r ${r}${Object.entries(
      more,
    )
      .map(([key, value]) => (value === true ? ` ${key}` : ` ${key} ${value}`))
      .join('')}`,
    async run(device) {
      const drawn = random(31, [M, K], dtype);
      const x = more.infinity ? await infinite(drawn, device) : drawn.to({ device });
      const dense = random(32, [N, K], dtype);
      const w =
        format === undefined
          ? await (more.infiniteWeight ? infinite(dense, device) : dense.to({ device }))
          : quantize(dense, {
              format,
              doubleQuant: doubleQuant ?? false,
              ...(more.blocksize === undefined ? {} : { blocksize: more.blocksize }),
            }).to({ device });
      const bias = random(33, [N], 'f32').to({ device });
      if (more.backward) {
        const dy = random(37, [M, N], dtype).to({ device });
        return hashOf([matmul(x, w, { bias }), matmulInputGrad(dy, w)]);
      }
      if (r === 0) return hashOf([matmul(x, w, { bias })]);
      const adapter = new LoraAdapter({
        loraA: random(34, [r, K], 'f32').to({ device }),
        loraB: random(35, [N, r], r === 3 ? dtype : 'f32').to({ device }),
        loraAlpha: r,
        loraBias: random(36, [N], 'f32').to({ device }),
      });
      return hashOf([loraForward(x, w, adapter, { bias, training: false }).y]);
    },
  }));
}

/**
 * Layers over the same x, whose launches overlap from compute capability 9.0 on: with weights of a megabyte
 * and without, one of them without an adapter.
 */
export function several(): KernelCase[] {
  return [['nf4', [5, 1032, 2080]] as const, ['int8', [12, 40, 100]] as const].map(
    ([format, [M, N, K]]) => ({
      name: `large bf16 ${format} [${M}, ${N}, ${K}] three layers and a gate`,
      async run(device) {
        const x = random(51, [M, K], 'bf16').to({ device });
        const projections = [0, 10, 20].map((seed) => ({
          w: quantize(random(52 + seed, [N, K], 'bf16'), { format }).to({ device }),
          ...(seed === 20
            ? {}
            : {
                adapter: new LoraAdapter({
                  loraA: random(53 + seed, [8, K], 'f32').to({ device }),
                  loraB: random(54 + seed, [N, 8], 'f32').to({ device }),
                  loraAlpha: 8,
                }),
              }),
        }));
        const [gate, up] = projections as [LoraProjection, LoraProjection];
        const { ys } = loraForwardMany(x, projections, { training: false });
        return hashOf([...ys, loraForwardSwiglu(x, gate, up, { training: false }).y]);
      },
    }),
  );
}

/** h by the products' launch, on a card of few multiprocessors; and dh, where only the forward has a shrink. */
const BESIDE = {
  multiprocessors: '4',
  launches: [/^gemm_wgmma_128/],
  without: /^lora_(shrink|grad)/,
} as const;
const TURNED = { ...BESIDE, without: /^lora_grad/, once: /^lora_shrink/ } as const;

/**
 * Enough tokens, columns and megabytes for h to be computed beside the products, in the launch that they are
 * multiplied in: all dtypes of an adapter, ragged edges, infinities, and both kinds of gate. y
 * tells of h where it is used, the saved h of what is stored.
 */
export function shrinking(): KernelCase[] {
  return (
    [
      ['nf4', 'bf16', 'bf16', 520, 2184, 968, 16, {}],
      ['nf4', 'bf16', 'f32', 390, 2312, 912, 3, { dropout: 0.25, loraBias: true }],
      ['int8', 'f16', 'f16', 401, 2184, 520, 16, { dropout: 0.5, maskGiven: true }],
      [undefined, 'f16', 'f32', 401, 2600, 264, 8, { bias: true }],
      [undefined, 'bf16', 'f32', 520, 1288, 408, 5, { infinity: true }],
      // Less of K than a chunk for each of the three warps.
      [undefined, 'bf16', 'bf16', 385, 7288, 72, 8, {}],
      ['int8', 'bf16', 'bf16', 393, 1288, 832, 11, { infinity: true, dropout: 0.5 }],
      // Beyond 16 ranks: one unit of them, ragged and whole, and two. K ends in each part of a chunk of 32, and
      // in a block of scales.
      ['nf4', 'bf16', 'bf16', 390, 1032, 2040, 17, { dropout: 0.25 }],
      ['fp4', 'f16', 'f32', 401, 1032, 2040, 32, {}],
      ['int8', 'bf16', 'f32', 390, 1064, 1000, 29, { infinity: true, doubly: true }],
      [undefined, 'f16', 'f16', 388, 1032, 520, 24, { bias: true }],
      [undefined, 'bf16', 'f32', 385, 1288, 416, 17, {}],
      [undefined, 'bf16', 'bf16', 393, 1032, 520, 32, { dropout: 0.5, maskGiven: true }],
      [undefined, 'bf16', 'bf16', 385, 2056, 264, 33, {}],
      ['int8', 'bf16', 'bf16', 401, 2056, 520, 48, { doubly: true }],
      [undefined, 'bf16', 'bf16', 386, 2056, 272, 63, { bias: true }],
      ['int8', 'bf16', 'bf16', 390, 2184, 488, 64, { infinity: true }],
      ['nf4', 'bf16', 'bf16', 385, 2184, 968, 64, { doubly: true, loraBias: true }],
    ] as ReadonlyArray<
      readonly [
        QuantFormat | undefined,
        DType,
        DType,
        number,
        number,
        number,
        number,
        LoraVariant & { infinity?: boolean; doubly?: boolean },
      ]
    >
  ).map(([format, dtype, adapter, M, N, K, r, variant]) => ({
    sm: '90',
    ...BESIDE,
    name: `large ${dtype} ${format ?? 'dense'} [${M}, ${N}, ${K}] ${adapter} adapter of r ${r} beside the products ${Object.keys(variant).join(' ')}`.trimEnd(),
    async run(device) {
      const { infinity, doubly: doubleQuant = false } = variant;
      const drawn = random(41, [M, K], dtype);
      const x = infinity ? await infinite(drawn, device) : drawn.to({ device });
      const dense = random(42, [N, K], dtype);
      const w = (format === undefined ? dense : quantize(dense, { format, doubleQuant })).to({
        device,
      });
      const { bias, loraBias, dropout = 0, maskGiven } = variant;
      const lora = new LoraAdapter({
        loraA: random(43, [r, K], adapter).to({ device }),
        loraB: random(44, [N, r], adapter).to({ device }),
        loraAlpha: r,
        dropout,
        ...(loraBias ? { loraBias: random(45, [N], adapter).to({ device }) } : {}),
      });
      const mask = () => tensorOf(dropoutMask64(47, dropout, M, K), { device, shape: [M, K] });
      const { y, saved } = loraForward(x, w, lora, {
        ...(bias ? { bias: random(46, [N], 'f32').to({ device }) } : {}),
        ...(maskGiven ? { dropoutMask: mask() } : { seed: 47 }),
      });
      return hashOf([y, saved.h]);
    },
  }));
}

/**
 * The same of an input gradient by wgmma over the transposed weight: with and without a gate (as bits, beside
 * the panel), added to what dx holds, and at widths that are read one element at a time.
 */
export function turning(): KernelCase[] {
  return (
    [
      ['nf4', 'bf16', 'bf16', 390, 1000, 2184, 16, {}],
      ['fp4', 'f16', 'f32', 390, 1001, 2184, 5, { dropout: 0.25 }],
      ['int8', 'bf16', 'bf16', 401, 520, 2216, 11, { dropout: 0.5, maskGiven: true, added: true }],
      [undefined, 'f16', 'f32', 401, 264, 2184, 8, { added: true }],
      ['nf4', 'f16', 'f16', 400, 1000, 2191, 3, { dropout: 0.5, infinity: true, added: true }],
      // dh of more than 16 ranks.
      ['nf4', 'bf16', 'bf16', 390, 1000, 2184, 64, { dropout: 0.25 }],
      [undefined, 'bf16', 'bf16', 385, 264, 2056, 63, { added: true }],
      ['int8', 'bf16', 'bf16', 390, 1000, 1064, 32, { dropout: 0.25 }],
      ['int8', 'f16', 'f32', 390, 1000, 1064, 24, {}],
      [undefined, 'bf16', 'f32', 385, 504, 1048, 31, { infinity: true }],
      // A mask read one element at a time.
      ['int8', 'bf16', 'f32', 512, 520, 2191, 5, { dropout: 0.5, maskGiven: true }],
    ] as ReadonlyArray<
      readonly [
        QuantFormat | undefined,
        DType,
        DType,
        number,
        number,
        number,
        number,
        LoraVariant & { infinity?: boolean; added?: boolean },
      ]
    >
  ).map(([format, dtype, adapter, M, N, K, r, variant]) => ({
    sm: '90',
    // Rows of dy that are not 16-byte aligned have dh from a launch of its own.
    ...(N % 8 === 0 ? TURNED : {}),
    name: `large ${dtype} ${format ?? 'dense'} [${M}, ${N}, ${K}] dx and ${adapter} adapter of r ${r} ${Object.keys(variant).join(' ')}`.trimEnd(),
    async run(device) {
      const { infinity, added, dropout = 0, maskGiven } = variant;
      const drawn = random(51, [M, N], dtype);
      const dy = infinity ? await infinite(drawn, device) : drawn.to({ device });
      const dense = random(52, [N, K], dtype);
      const w = (format === undefined ? dense : quantize(dense, { format })).to({ device });
      const lora = new LoraAdapter({
        loraA: random(53, [r, K], adapter).to({ device }),
        loraB: random(54, [N, r], adapter).to({ device }),
        loraAlpha: r,
        dropout,
      });
      const mask = () => tensorOf(dropoutMask64(57, dropout, M, K), { device, shape: [M, K] });
      const { saved } = loraForward(random(55, [M, K], dtype).to({ device }), w, lora, {
        ...(maskGiven ? { dropoutMask: mask() } : { seed: 57 }),
      });
      const dx = random(56, [M, K], dtype).to({ device });
      const gradients = loraBackward(dy, saved, {
        needs: ['dx'],
        ...(added ? { accumulateInto: { dx } } : {}),
      });
      const whole = added ? dx : (gradients.dx as Tensors);
      return hashOf(Object.keys(variant).length === 0 ? [whole, matmulInputGrad(dy, w)] : [whole]);
    },
  }));
}

/**
 * The factors' gradients beside dx's products: with dh from the first launch, in one or both of them, with and
 * without a gate, added to what is held, beside infinities, with column sums from a pass of their own; and
 * d_lora_a alone where dh is given.
 */
export function gradients(): KernelCase[] {
  type Needs = ReadonlyArray<'dx' | 'dLoraA' | 'dLoraB' | 'dBias'>;
  const all: Needs = ['dx', 'dLoraA', 'dLoraB'];
  const cases = (
    [
      ['nf4', 'bf16', 'f32', 390, 3304, 3304, 16, [...all, 'dBias'], {}],
      ['nf4', 'f16', 'f16', 385, 3304, 3304, 5, all, { dropout: 0.5, added: true }],
      [undefined, 'bf16', 'bf16', 401, 1704, 2616, 16, ['dx', 'dLoraB'], { infinity: true }],
      ['int8', 'f16', 'f32', 401, 2616, 1704, 9, ['dx', 'dLoraA'], { dropout: 0.25 }],
    ] as ReadonlyArray<
      readonly [
        QuantFormat | undefined,
        DType,
        DType,
        number,
        number,
        number,
        number,
        Needs,
        LoraVariant & { infinity?: boolean; added?: boolean },
      ]
    >
  ).map(
    ([format, dtype, adapter, M, N, K, r, needs, variant]): KernelCase => ({
      sm: '90',
      name: `large ${dtype} ${format ?? 'dense'} [${M}, ${N}, ${K}] ${needs.join(', ')} of ${adapter} adapter of r ${r} ${Object.keys(variant).join(' ')}`.trimEnd(),
      async run(device) {
        const { infinity, added, dropout = 0 } = variant;
        const drawn = random(61, [M, N], dtype);
        const dy = infinity ? await infinite(drawn, device) : drawn.to({ device });
        const dense = random(62, [N, K], dtype);
        const w = (format === undefined ? dense : quantize(dense, { format })).to({ device });
        const lora = new LoraAdapter({
          loraA: random(63, [r, K], adapter).to({ device }),
          loraB: random(64, [N, r], adapter).to({ device }),
          loraAlpha: r,
          dropout,
        });
        const x = random(65, [M, K], dtype).to({ device });
        const { saved } = loraForward(x, w, lora, {
          seed: 67,
          bias: random(66, [N], 'f32').to({ device }),
        });
        const held = {
          dLoraA: random(68, [r, K], 'f32').to({ device }),
          dLoraB: random(69, [N, r], dtype).to({ device }),
        };
        const found = loraBackward(dy, saved, {
          needs,
          ...(added ? { accumulateInto: held } : {}),
        });
        return hashOf(needs.map((name) => found[name] as Tensors));
      },
    }),
  );
  return [
    ...cases,
    ...(
      [
        ['fp4', 'bf16', 'f32', 393, 1000, 2184, 11, 0.25],
        ['nf4', 'f16', 'f16', 400, 1000, 2184, 16, 0],
      ] as const
    ).map(
      ([format, dtype, adapter, M, N, K, r, dropout]): KernelCase => ({
        sm: '90',
        name: `large ${dtype} ${format} [${M}, ${N}, ${K}] dx and dLoraA of r ${r} from dh${dropout === 0 ? '' : ' behind a mask'}`,
        async run(device) {
          const dy = random(71, [M, N], dtype).to({ device });
          const w = quantize(random(72, [N, K], dtype), { format }).to({ device });
          const dh = random(73, [M, r], 'f32').to({ device });
          const x = random(74, [M, K], dtype).to({ device });
          const loraA = random(75, [r, K], adapter).to({ device });
          const { dx, dLoraA } = loraShrinkBackward(dy, w, dh, loraA, {
            x,
            ...(dropout === 0
              ? {}
              : {
                  dropout,
                  dropoutMask: tensorOf(dropoutMask64(77, dropout, M, K), {
                    device,
                    shape: [M, K],
                  }),
                }),
          });
          return hashOf([dx as Tensors, dLoraA as Tensors]);
        },
      }),
    ),
  ];
}
