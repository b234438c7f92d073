/** A layer of experts: routes, gates, products with LoRA and their gradients, and weighted sums. */
import {
  combineRows,
  combineRowsBackward,
  type Device,
  type DType,
  type ExpertRoute,
  embedding,
  expertsMatmul,
  expertsMatmulBackward,
  Indices,
  routeRows,
  selectExperts,
  selectExpertsBackward,
  Tensor,
} from '../../lib/index.js';
import {
  DTYPES,
  mixes,
  operand,
  WEIGHTS,
  type WeightSpec,
  weightOperand,
} from '../conformance/operands.js';
import { hashOf, type KernelCase } from './case-parts.js';

/** Numbers of indices as a tensor: rows of a table that holds them. */
function numbersOf(indices: Indices): Tensor {
  const { limit, device } = indices;
  const table = Float32Array.from({ length: limit }, (_, i) => i);
  return embedding(indices, Tensor.from(table, [limit, 1], { device }));
}

/** Pairs of which each seventh names an expert that is not there, and of which expert 1 has none. */
function routeOf(M: number, k: number, E: number, device: Device): ExpertRoute {
  const ids = Array.from({ length: M * k }, (_, i) => {
    const expert = (i * 5 + Math.floor(i / k)) % E;
    if (i % 7 === 3) return i % 2 === 0 ? E : E + 2;
    return expert === 1 ? 0 : expert;
  });
  return routeRows(Indices.from(ids, { limit: E + 3, holes: true, device }), { k, experts: E });
}

/** [M, k, E]: one pair, a turn and less, several turns, more experts than lanes, and several turns of a block. */
const ROUTES = [
  [1, 1, 1],
  [85, 3, 4],
  [150, 2, 70],
  [700, 1, 1024],
  [33_000, 2, 3],
] as const;

function routes(): KernelCase[] {
  return ROUTES.map(([M, k, E]) => ({
    name: `experts route [${M}, ${k}] of ${E}`,
    smoke: M < 1000,
    run(device) {
      const { order, inverse, offsets } = routeOf(M, k, E, device);
      return hashOf([order, inverse, offsets].map(numbersOf));
    },
  }));
}

/** Equal logits, NaN and infinities; and sums that are exact in one order only. */
function odd(): KernelCase[] {
  return [
    {
      name: 'experts gates of equal logits',
      run(device) {
        const { NaN: nan, POSITIVE_INFINITY: most } = Number;
        const values = [1, 3, 3, 0, 3, nan, 2, nan, 0, 0, 0, 0, -most, 5, -most, 4];
        const { experts, gates } = selectExperts(Tensor.from(values, [4, 4], { device }), { k: 3 });
        return hashOf([numbersOf(experts), gates]);
      },
    },
    {
      name: 'experts rows in one order',
      run(device) {
        // 2^25 - 2^25 + 1 is 1 from left to right, and 0 from right to left, where the 1 is lost.
        const ids = Indices.from([2, 1, 0, 0, 1, 2], { limit: 3, device });
        const route = routeRows(ids, { k: 3, experts: 3 });
        const gates = Tensor.from([1, 1, 1, 1, 1, 1], [2, 3], { device });
        const big = 2 ** 25;
        const y = Tensor.from([1, big, -big, -big, big, 1], [6, 1], { device });
        return hashOf([combineRows(y, route, { gates })]);
      },
    },
  ];
}

function gates(): KernelCase[] {
  return DTYPES.flatMap((dtype) => [
    {
      name: `experts gates ${dtype}`,
      async run(device: Device) {
        const made: Tensor[] = [];
        for (const [M, E, k] of [
          [1, 1, 1],
          [5, 37, 4],
          [9, 130, 33],
          [5, 1024, 2],
        ] as const) {
          for (const softmax of ['chosen', 'all'] as const) {
            const logits = operand(M, E, { seed: E, dtype, device, std: 2 }).tensor;
            const chosen = selectExperts(logits, { k, softmax });
            const dGates = operand(M, k, { seed: 3, device }).tensor;
            const dLogits = selectExpertsBackward(dGates, logits, { ...chosen, softmax });
            made.push(numbersOf(chosen.experts), chosen.gates, dLogits);
          }
        }
        return hashOf(made);
      },
    },
    {
      name: `experts rows ${dtype}`,
      async run(device: Device) {
        const made: (Tensor | undefined)[] = [];
        for (const [M, k, E, N] of [
          [1, 1, 1, 1],
          [9, 3, 4, 37],
          [3, 2, 5, 1304],
        ] as const) {
          const route = routeOf(M, k, E, device);
          const y = operand(M * k, N, { seed: N, dtype, device }).tensor;
          const weights = { gates: operand(M, k, { seed: 4, device }).tensor };
          const dOut = operand(M, N, { seed: 5, dtype, device }).tensor;
          const back = combineRowsBackward(dOut, route, { ...weights, y });
          const bare = combineRowsBackward(dOut, route, { dtype: 'f32' });
          made.push(combineRows(y, route, weights), combineRows(y, route));
          made.push(back.dy, back.dGates, bare.dy);
        }
        return hashOf(made);
      },
    },
  ]);
}

interface Shape {
  readonly M: number;
  readonly k: number;
  readonly E: number;
  readonly N: number;
  readonly K: number;
  readonly gather: boolean;
  readonly shared?: 'a' | 'b';
}

async function product(
  { M, k, E, N, K, gather, shared }: Shape,
  spec: WeightSpec,
  dtype: DType,
  device: Device,
  r: number,
): Promise<string> {
  const route = routeOf(M, k, E, device);
  const { w } = weightOperand(spec, E * N, K, dtype, { seed: 2, device });
  const x = operand(gather ? M : M * k, K, { seed: 1, dtype, device }).tensor;
  const dy = operand(M * k, N, { seed: 3, dtype, device }).tensor;
  const bias = operand(E, N, { seed: 4, device }).tensor;
  const factor = (seed: number, experts: number, rows: number, cols: number) =>
    operand(experts * rows, cols, { seed, device, shape: [experts, rows, cols] }).tensor;
  const lora = {
    loraA: factor(5, shared === 'a' ? 1 : E, r, K),
    loraB: factor(6, shared === 'b' ? 1 : E, N, r),
    scaling: 1.5,
  };
  const plain = expertsMatmul(x, w, route, { gather });
  const { y, h } = expertsMatmul(x, w, route, { gather, bias, lora });
  const back = expertsMatmulBackward(dy, w, route, { gather, lora, x, h: h as Tensor });
  // Without the sum over a row's slots.
  const { dx } = expertsMatmulBackward(dy, w, route, { gather: false });
  return hashOf([plain.y, y, h, dx, back.dx, back.dLoraA, back.dLoraB]);
}

const named = ({ name }: WeightSpec): string => name.replace('with double quantisation', 'doubly');
const label = ({ M, k, E, N, K, gather, shared }: Shape): string =>
  `[${M}, ${k}] of ${E} [${N}, ${K}]${gather ? '' : ' in order'}${shared ? ` shared ${shared}` : ''}`;
const SPECS = WEIGHTS.filter(({ name }) =>
  ['dense f32', 'dense bf16', 'dense f16', 'nf4', 'nf4 with double quantisation', 'int8'].includes(
    name,
  ),
);

/** The bases of a smoke run's f16: one for each kernel. */
const SMOKE_F16: ReadonlySet<string> = new Set(['dense f16', 'nf4', 'int8']);

/** Whole pieces and blocks, and rows that are none; where tiles are small, and large on few multiprocessors. */
const shapes = ({ format, doubleQuant }: WeightSpec): Shape[] => {
  const large = { M: 130, k: 1, E: 2, N: 160, K: 128, gather: true };
  if (format === undefined) {
    return [
      { M: 19, k: 2, E: 5, N: 13, K: 35, gather: true },
      { M: 9, k: 3, E: 4, N: 72, K: 136, gather: false, shared: 'b' },
      { M: 2, k: 2, E: 64, N: 3, K: 35, gather: true },
      { M: 9, k: 3, E: 4, N: 40, K: 72, gather: true },
      large,
    ];
  }
  if (doubleQuant === true) return [{ M: 21, k: 2, E: 3, N: 64, K: 256, gather: true }];
  return [
    { M: 19, k: 2, E: 5, N: 64, K: 53, gather: true, shared: 'a' },
    { M: 23, k: 2, E: 4, N: 72, K: 96, gather: false },
    large,
  ];
};

function products(): KernelCase[] {
  return SPECS.flatMap((spec) =>
    DTYPES.filter((dtype) => mixes(spec, dtype)).flatMap((dtype) =>
      shapes(spec).map((shape, i) => ({
        name: `experts ${dtype} ${named(spec)} ${label(shape)}`,
        smoke: dtype !== 'f16' || SMOKE_F16.has(spec.name),
        run: (device) => product(shape, spec, dtype, device, i === 1 ? 8 : 3),
      })),
    ),
  );
}

export function expertCases(): KernelCase[] {
  return [...routes(), ...odd(), ...gates(), ...products()];
}
