/** Batches of many adapters: every kernel and every form of their operands. */
import { type Device, type DType, LoraAdapter, type Tensor } from '../../lib/index.js';
import { type GroupedShape, groupedCase, nameOf } from '../conformance/grouped-case.js';
import { DTYPES, mixes, operand, WEIGHTS } from '../conformance/operands.js';
import { hashOf, type KernelCase } from './case-parts.js';

/**
 * Ragged tiles, several of them, sums over a span; gates, row weights, biases, rows of no adapter, of
 * one and of several.
 */
const SHAPES: readonly GroupedShape[] = [
  { M: 3, N: 5, K: 7, ranks: [1, 2] },
  { M: 75, N: 40, K: 36, ranks: [33, 4], nullEvery: 4, bias: true, loraBias: true, sorted: true },
  { M: 9, N: 300, K: 520, ranks: [3, 5, 2], dropout: 0.3, nullEvery: 5 },
  { M: 12, N: 35, K: 66, ranks: [300, 6], maskGiven: true, dropout: 0.2, sameDType: true },
  { M: 290, N: 6, K: 9, ranks: [2, 1], rowScale: true, loraBias: true, nullEvery: 3, sorted: true },
  { M: 70, N: 34, K: 40, ranks: [5, 33], slots: 2, rowScale: true, loraBias: true, nullEvery: 3 },
  { M: 6, N: 36, K: 5, ranks: [3, 2, 4], slots: 4, rowScale: true, loraBias: true, bias: true },
  // The gates' sums go over a span of the lanes.
  { M: 1, N: 8200, K: 5, ranks: [2], rowScale: true, loraBias: true },
];

/**
 * Few rows of each adapter, which Hopper takes in one launch: factors in whole pieces and not, clusters of four and of
 * eight, several of a tile, the last of them partly without columns, rows of lora_b in f32 that come in turns, rows of
 * no adapter and of several, and more ranks than a cluster takes.
 */
const few = (dtype: DType): GroupedShape[] => [
  {
    M: 9,
    N: 1100,
    K: 264,
    ranks: [16, 8, 32],
    nullEvery: 4,
    bias: true,
    loraBias: true,
    sameDType: true,
  },
  { M: 7, N: 70, K: 37, ranks: [20, 3, 1], dropout: 0.3, rowScale: true, sameDType: true },
  { M: 3, N: dtype === 'f32' ? 4000 : 300, K: 12, ranks: [128, 3], bias: true, sameDType: true },
  {
    M: 6,
    N: 520,
    K: 66,
    ranks: [65, 64, 7],
    slots: 2,
    rowScale: true,
    loraBias: true,
    nullEvery: 5,
  },
  { M: 11, N: 20, K: 300, ranks: [12, 5], maskGiven: true, dropout: 0.2 },
  { M: 5, N: 40, K: 20, ranks: [129, 2], nullEvery: 4 },
];

function fewRows(): KernelCase[] {
  return DTYPES.flatMap((dtype) =>
    WEIGHTS.filter(({ name }) => name === `dense ${dtype}` || name === 'nf4').map((spec) => ({
      name: `grouped few rows ${dtype} ${spec.name}`,
      smoke: dtype !== 'f16',
      async run(device: Device) {
        const results: Tensor[] = [];
        for (const [index, shape] of few(dtype).entries()) {
          const c = groupedCase(shape, spec, dtype, device, index + 3);
          const { y, saved } = c.group.forward(c.x, c.w, c.rows, c.options);
          results.push(y, saved.h as Tensor);
        }
        return hashOf(results);
      },
    })),
  );
}

/** Base products of a megabyte of weight and more, whose family and cut of K are chosen by M. */
const LARGE: readonly GroupedShape[] = [
  { M: 9, N: 2056, K: 1056, ranks: [3, 16], nullEvery: 5 },
  { M: 70, N: 1032, K: 2080, ranks: [5] },
];

function large(): KernelCase[] {
  return WEIGHTS.filter(({ name }) => /^dense bf16$|^nf4 with/.test(name)).flatMap((spec, i) =>
    LARGE.map((shape) => ({
      name: `grouped large bf16 ${spec.name} [${shape.M}, ${shape.N}, ${shape.K}]`,
      async run(device) {
        const c = groupedCase(shape, spec, 'bf16', device, i + 1);
        const { y, saved } = c.group.forward(c.x, c.w, c.rows, c.options);
        const { dx } = c.group.backward(c.dy, saved, { needs: ['dx'] });
        return hashOf([y, dx as Tensor]);
      },
    })),
  );
}

/**
 * Many rows of each adapter, which small cards take adapter by adapter: in whole pieces and not, rows of x of
 * more than a piece, rows that lie in order, and dx that is added to.
 */
const SEGMENTS: readonly GroupedShape[] = [
  { M: 560, N: 264, K: 256, ranks: [16, 33], nullEvery: 9, bias: true, loraBias: true },
  { M: 256, N: 4104, K: 128, ranks: [20], nullEvery: 2, sameDType: true },
  { M: 260, N: 4118, K: 75, ranks: [20], nullEvery: 2 },
  { M: 390, N: 258, K: 301, ranks: [40, 5], sorted: true },
];

function segments(): KernelCase[] {
  return (['bf16', 'f16'] as const).flatMap((dtype) =>
    SEGMENTS.map((shape, index) => ({
      name: `grouped segments ${dtype} nf4 [${shape.M}, ${shape.N}, ${shape.K}]`,
      smoke: dtype !== 'f16',
      async run(device: Device) {
        const spec = WEIGHTS.find(({ name }) => name === 'nf4') as (typeof WEIGHTS)[number];
        const c = groupedCase(shape, spec, dtype, device, index + 2);
        const { y, saved } = c.group.forward(c.x, c.w, c.rows, c.options);
        const all = c.group.backward(c.dy, saved, { keep: true });
        const each = [...all.adapters.values()].flatMap((parts) => Object.values(parts));
        const dx = operand(shape.M, shape.K, { seed: 7, dtype, device }).tensor;
        c.group.backward(c.dy, saved, { needs: ['dx'], accumulateInto: { dx }, keep: true });
        return hashOf([y, saved.h as Tensor, all.dx as Tensor, ...each, dx]);
      },
    })),
  );
}

export function grouped(): KernelCase[] {
  const specs = WEIGHTS.filter(({ name }) => /^dense (f32|bf16)$|^nf4$/.test(name));
  const every = DTYPES.flatMap((dtype): KernelCase[] =>
    specs
      .filter((spec) => mixes(spec, dtype))
      .map((spec) => ({
        name: `grouped ${dtype} ${spec.name}`,
        smoke: dtype !== 'f16' || spec.name === 'nf4',
        async run(device) {
          const results: Tensor[] = [];
          for (const [index, shape] of SHAPES.entries()) {
            const c = groupedCase(shape, spec, dtype, device, index + 3);
            const { y, saved } = c.group.forward(c.x, c.w, c.rows, c.options);
            const all = c.group.backward(c.dy, saved, { keep: true });
            const each = [...all.adapters.values()].flatMap((parts) => Object.values(parts));
            // Once more, added to what is there.
            const [M, K] = [shape.M, shape.K];
            const dx = operand(M, K, { seed: 7, dtype, device }).tensor;
            const into = operand(shape.ranks[0] as number, K, { seed: 8, dtype: 'bf16', device });
            const { adapters } = c.group.backward(c.dy, saved, {
              accumulateInto: {
                dx,
                adapters: new Map([[nameOf(0), { dLoraA: into.tensor }]]),
                ...(all.dRowScale === undefined ? {} : { dRowScale: all.dRowScale }),
              },
            });
            const again = c.group.forward(c.x, c.w, c.rows, c.options);
            c.group.backward(c.dy, again.saved, { accumulateInto: { adapters } });
            // One factor of each is frozen; then nothing is.
            for (const [e, { loraA, loraB, loraAlpha }] of c.adapters.entries()) {
              const train = e % 2 === 0 ? { trainA: false } : { trainB: false };
              c.group.update(nameOf(e), new LoraAdapter({ loraA, loraB, loraAlpha, ...train }));
            }
            const part = c.group.forward(c.x, c.w, c.rows, { seed: 1 });
            const some = c.group.backward(c.dy, part.saved, { needs: ['adapters'] });
            results.push(y, all.dx as Tensor, ...each, dx);
            if (all.dRowScale !== undefined) results.push(all.dRowScale);
            for (const { adapters: gradients } of [{ adapters }, some]) {
              for (const parts of gradients.values()) results.push(...Object.values(parts));
            }
          }
          return hashOf(results);
        },
      })),
  );
  return [...every, ...fewRows(), ...large(), ...segments()];
}
