// A layer of experts against float64: routing, gates, the products of every expert over every format, LoRA of experts of
// their own and shared, the weighted sum; empty experts, one that gets all rows, dropped slots; the same bits on any number
// of threads and for a row alone; the steps on the tape.
import { describe, expect, it } from 'vitest';
import {
  checkGradients,
  combineRows,
  combineRowsBackward,
  type Device,
  type DType,
  embedding,
  expertsMatmul,
  expertsMatmulBackward,
  Indices,
  LoraAdapter,
  loraExpand,
  loraForward,
  ModelTape,
  routeRows,
  scope,
  selectExperts,
  selectExpertsBackward,
  setThreads,
  Tensor,
  type Value,
} from '../../lib/index.js';
import {
  combine64,
  combineGrad64,
  expertsBackward64,
  expertsMatmul64,
  route64,
  select64,
  selectGrad64,
} from '../oracle/experts.js';
import { bound, exact, type Matrix, matrix, promisedOf } from '../oracle.js';
import {
  DEVICES,
  DTYPES,
  type Operand,
  operand,
  PRODUCTS,
  seeded,
  type WeightSpec,
  weightOperand,
} from './operands.js';

/** The values of indices, which no call reads: rows of a table that holds their numbers. */
function valuesOf(indices: Indices): number[] {
  const { limit, device } = indices;
  if (indices.length === 0) return [];
  const table = Tensor.from(
    Float32Array.from({ length: limit }, (_, i) => i),
    [limit, 1],
    { device },
  );
  return [...embedding(indices, table).readSync()];
}

/** How the pairs of rows and experts are spread. */
type Spread = 'even' | 'one' | 'gaps' | 'dropped';
const SPREADS: readonly Spread[] = ['even', 'one', 'gaps', 'dropped'];

/** k different experts of each row, or for `one` the same k of all. */
function chosenOf(spread: Spread, M: number, k: number, E: number): number[] {
  return Array.from({ length: M * k }, (_, i) => {
    const [m, j] = [Math.floor(i / k), i % k];
    switch (spread) {
      case 'one':
        return (E - 1 + j) % E;
      case 'gaps':
        return (2 * (m + j)) % E;
      case 'dropped':
        return (m + j) % 3 === 0 ? [-1, E, E + 5][m % 3] : (m * 7 + j) % E;
      default:
        return (m * 7 + j) % E;
    }
  }) as number[];
}

/** A route of the device and of the oracle. */
function routed(chosen: readonly number[], k: number, E: number, device: Device) {
  const ids = Indices.from(chosen as number[], { limit: E + 6, holes: true, device });
  return { route: routeRows(ids, { k, experts: E }), route64: route64(chosen, k, E) };
}

describe.each(DEVICES)('%s', (device) => {
  it.each(SPREADS)('routeRows: %s', async (spread) => {
    for (const [M, k, E] of [
      [0, 2, 3],
      [1, 1, 1],
      [1, 4, 5],
      [7, 3, 8],
      [300, 2, 6],
      [129, 4, 130],
      [2000, 1, 1024],
      [70_000, 1, 5], // more pairs than 256 blocks of 256
    ] as const) {
      await scope(async () => {
        const made = routed(chosenOf(spread, M, k, E), k, E, device);
        expect([made.route.rows, made.route.slots, made.route.device]).toEqual([M, M * k, device]);
        const { order, inverse, offsets } = made.route;
        expect(valuesOf(offsets)).toEqual(made.route64.offsets);
        expect(valuesOf(order)).toEqual(made.route64.order);
        expect(valuesOf(inverse)).toEqual(made.route64.inverse);
      });
    }
  });

  it.each(DTYPES)('selectExperts and its gradient: %s', async (dtype) => {
    for (const [M, E, k] of [
      [0, 4, 2],
      [1, 1, 1],
      [5, 4, 4],
      [33, 8, 2],
      [3, 37, 5],
      [700, 128, 8],
      [2, 1024, 3],
    ] as const) {
      for (const softmax of ['chosen', 'all'] as const) {
        await scope(async () => {
          const logits = operand(M, E, { seed: M + E, dtype, device, std: 2 });
          const made = selectExperts(logits.tensor, { k, softmax });
          expect([made.gates.shape, made.gates.dtype]).toEqual([[M, k], 'f32']);
          const wanted = select64(logits.matrix, k, softmax);
          expect(valuesOf(made.experts)).toEqual(wanted.chosen);
          const gates = matrix(M, k, wanted.gates);
          bound('gates', await made.gates.read(), { value: gates, p: gates }, { c: 4 });
          const dGates = operand(M, k, { seed: 3, device });
          const dLogits = selectExpertsBackward(dGates.tensor, logits.tensor, { ...made, softmax });
          expect([dLogits.shape, dLogits.dtype]).toEqual([[M, E], dtype]);
          // The softmax of one logit is constant.
          if (M === 0 || (softmax === 'chosen' ? k : E) === 1) return;
          const grad = selectGrad64(wanted, dGates.matrix);
          bound('dLogits', await dLogits.read(), grad, { dtype, c: 8, mostlyZeros: 'not chosen' });
        });
      }
    }
  });

  it('selectExperts: of equal logits the first, NaN as the largest, infinities', async () => {
    await scope(async () => {
      const of = async (values: number[], k: number) => {
        const logits = Tensor.from(values, [1, values.length], { device });
        const { experts, gates } = selectExperts(logits, { k });
        return { experts: valuesOf(experts), gates: [...(await gates.read())] };
      };
      const equal = await of([1, 3, 3, 0, 3], 3);
      expect(equal.experts).toEqual([1, 2, 4]);
      for (const gate of equal.gates) expect(gate).toBe(Math.fround(1 / 3));
      expect((await of([1, Number.NaN, 2, Number.NaN], 3)).experts).toEqual([1, 3, 2]);
      const low = await of([-Infinity, 5, -Infinity], 2);
      expect(low).toEqual({ experts: [1, 0], gates: [1, 0] });
      const all = await of([-1e30, 1e30, 0], 2);
      expect(all).toEqual({ experts: [1, 2], gates: [1, 0] });
    });
  });

  it.each(DTYPES)('combineRows and its gradients: %s', async (dtype) => {
    for (const [spread, M, k, E, N] of [
      ['even', 1, 1, 1, 1],
      ['even', 5, 2, 4, 33],
      ['dropped', 40, 3, 5, 130],
      ['gaps', 9, 4, 6, 2049],
      ['one', 300, 2, 3, 48],
    ] as const) {
      for (const withGates of [true, false]) {
        await scope(async () => {
          const { route, route64: oracle } = routed(chosenOf(spread, M, k, E), k, E, device);
          const y = operand(M * k, N, { seed: N, dtype, device });
          const gates = withGates ? operand(M, k, { seed: M, device }) : undefined;
          const dOut = operand(M, N, { seed: 9, dtype, device });
          const given = gates === undefined ? {} : { gates: gates.tensor };
          const out = combineRows(y.tensor, route, given);
          expect([out.shape, out.dtype]).toEqual([[M, N], dtype]);
          const sized = { value: y.matrix, p: matrix(M * k, N, y.matrix.data.map(Math.abs)) };
          const mostlyZeros = 'dropped slots';
          bound('out', await out.read(), combine64(oracle, sized, gates?.matrix), {
            dtype,
            mostlyZeros,
          });
          const made = combineRowsBackward(dOut.tensor, route, { ...given, y: y.tensor });
          const wanted = combineGrad64(oracle, dOut.matrix, y.matrix, gates?.matrix);
          const options = { dtype, mostlyZeros };
          bound('dy', await (made.dy as Tensor).read(), wanted.dy, options);
          bound('dGates', await (made.dGates as Tensor).read(), wanted.dGates, { mostlyZeros });
          const alone = combineRowsBackward(dOut.tensor, route, { ...given, dtype: 'f32' });
          expect([alone.dGates, alone.dy?.dtype]).toEqual([undefined, 'f32']);
        });
      }
    }
  });
});

interface Layer {
  readonly M: number;
  readonly k: number;
  readonly E: number;
  readonly N: number;
  readonly K: number;
  readonly spread: Spread;
  readonly gather: boolean;
}

/** A group of a blockwise format does not cross experts; no other size is a multiple of anything. */
function layersOf({ format, doubleQuant }: WeightSpec): readonly Layer[] {
  const [N, K] = format === undefined ? [17, 53] : doubleQuant === true ? [64, 256] : [24, 40];
  return [
    { M: 1, k: 1, E: 2, N, K, spread: 'even', gather: true },
    { M: 1, k: 3, E: 5, N, K, spread: 'even', gather: true },
    { M: 37, k: 2, E: 8, N, K, spread: 'gaps', gather: true },
    { M: 70, k: 1, E: 3, N, K, spread: 'one', gather: false },
    { M: 19, k: 4, E: 7, N, K, spread: 'dropped', gather: false },
  ];
}

/** What fills tiles of 128: its columns forward, then backward. In f32 they take more columns. */
const largeOf = (dtype: DType): readonly Layer[] => {
  const P = dtype === 'f32' ? 2880 : 1664;
  const layer = { M: 65, k: 2, E: 3, spread: 'dropped', gather: true } as const;
  return [
    { ...layer, N: P, K: 96 },
    { ...layer, N: 96, K: P },
  ];
};

const R = 5;
type Shared = 'none' | 'own' | 'shared a' | 'shared b';

describe.each(PRODUCTS)(
  'expertsMatmul on $device in $dtype, $spec.name',
  ({ device, dtype, spec }) => {
    it('has the products, LoRA and gradients of float64', async () => {
      const variants: readonly Shared[] = ['none', 'own', 'shared a', 'shared b'];
      for (const [at, layer] of layersOf(spec).entries()) {
        const variant = variants[(at + DTYPES.indexOf(dtype)) % variants.length] as Shared;
        for (const lora of new Set<Shared>(['none', variant])) {
          await scope(() => checkLayer(layer, lora, spec, dtype, device));
        }
      }
    });
  },
);

const LARGE = PRODUCTS.filter(
  ({ device, spec }) =>
    device !== 'reference' && ['dense f32', 'dense bf16', 'nf4', 'int8'].includes(spec.name),
);

describe.each(LARGE)('large products of experts on $device in $dtype, $spec.name', (of) => {
  it('are those of float64', async () => {
    for (const layer of largeOf(of.dtype)) {
      await scope(() => checkLayer(layer, 'own', of.spec, of.dtype, of.device));
    }
  });
});

async function checkLayer(
  layer: Layer,
  variant: Shared,
  spec: WeightSpec,
  dtype: DType,
  device: Device,
): Promise<void> {
  const { M, k, E, N, K, spread, gather } = layer;
  const seed = M + 7 * E;
  const { route, route64: oracle } = routed(chosenOf(spread, M, k, E), k, E, device);
  const part = (i: number, rows: number, cols: number, of: DType, shape?: number[]): Operand =>
    operand(rows, cols, {
      seed: seeded(seed, i),
      dtype: of,
      device,
      std: 0.7,
      ...(shape && { shape }),
    });
  const x = part(1, gather ? M : M * k, K, dtype);
  const dy = part(2, M * k, N, dtype);
  const bias = part(3, E, N, 'f32');
  const weight = weightOperand(spec, E * N, K, dtype, { seed: seeded(seed, 4), device });
  const ofA = variant === 'shared a' ? 1 : E;
  const ofB = variant === 'shared b' ? 1 : E;
  const factor: DType = variant === 'own' ? dtype : 'f32';
  const a = part(5, ofA * R, K, factor, [ofA, R, K]);
  const b = part(6, ofB * N, R, factor, [ofB, N, R]);
  const scaling = 1.5;
  const lora = variant === 'none' ? {} : { lora: { loraA: a.tensor, loraB: b.tensor, scaling } };
  const inputs = {
    x: x.matrix,
    w: weight.matrix,
    bias: bias.matrix,
    gather,
    lora: variant === 'none' ? undefined : { a: a.matrix, b: b.matrix, r: R, scaling },
  };
  const name = `${variant} ${JSON.stringify(layer)}`;
  const shape = { M: M * k, N, K, r: variant === 'none' ? 0 : R };
  const c = (result: string) => promisedOf(device, result, shape, dtype);
  const mostlyZeros = 'dropped slots and empty experts';
  const made = expertsMatmul(x.tensor, weight.w, route, { ...lora, gather, bias: bias.tensor });
  expect([made.y.shape, made.y.dtype]).toEqual([[M * k, N], dtype]);
  const forward = expertsMatmul64(oracle, inputs);
  bound(`y ${name}`, await made.y.read(), forward.y, { c: c('y'), dtype, mostlyZeros });
  const backward = expertsBackward64(oracle, inputs, dy.matrix);
  const found = expertsMatmulBackward(dy.tensor, weight.w, route, {
    ...lora,
    gather,
    ...(made.h === undefined ? {} : { x: x.tensor, h: made.h }),
  });
  // The gradients of a row's slots are rounded, and then added.
  const dx = gather ? combine64(oracle, backward.dx) : backward.dx;
  const rounded = gather && dtype !== 'f32' ? 2 ** (dtype === 'bf16' ? -8 : -11) : 0;
  bound(`dx ${name}`, await (found.dx as Tensor).read(), dx, {
    c: c('dx') + k,
    dtype,
    mostlyZeros,
    slack: (i) => rounded * (dx.p.data[i] as number),
  });
  if (made.h === undefined) return;
  bound(`h ${name}`, await made.h.read(), forward.h, { c: c('h'), mostlyZeros });
  for (const gradient of ['dLoraA', 'dLoraB'] as const) {
    const tensor = found[gradient] as Tensor;
    expect([tensor.dtype, tensor.shape]).toEqual([
      factor,
      (gradient === 'dLoraA' ? a : b).tensor.shape,
    ]);
    const wanted: { value: Matrix; p: Matrix } = backward[gradient];
    bound(`${gradient} ${name}`, await tensor.read(), wanted, {
      c: c(gradient),
      dtype: factor,
      mostlyZeros,
    });
  }
}

describe.each(DEVICES.flatMap((device) => DTYPES.map((dtype) => ({ device, dtype }))))(
  'bits on $device in $dtype',
  ({ device, dtype }) => {
    const [M, k, E, N, K] = [90, 2, 6, 64, 96];
    const spec: WeightSpec = { name: 'nf4', format: 'nf4' };
    const operandsOf = () => {
      const x = operand(M, K, { seed: 1, dtype, device });
      const { w } = weightOperand(spec, E * N, K, dtype, { seed: 2, device });
      const loraA = operand(E * R, K, { seed: 3, device, shape: [E, R, K] }).tensor;
      const loraB = operand(E * N, R, { seed: 4, device, shape: [E, N, R] }).tensor;
      return { x, w, lora: { loraA, loraB, scaling: 2 } };
    };

    it('are the same on any number of threads', async () => {
      await scope(async () => {
        const { x, w, lora } = operandsOf();
        const { route } = routed(chosenOf('even', M, k, E), k, E, device);
        const gates = operand(M, k, { seed: 5, device }).tensor;
        const run = async () => {
          const { y, h } = expertsMatmul(x.tensor, w, route, { lora });
          const out = combineRows(y, route, { gates });
          const { dy, dGates } = combineRowsBackward(out, route, { y, gates });
          const back = expertsMatmulBackward(dy as Tensor, w, route, {
            lora,
            x: x.tensor,
            h: h as Tensor,
          });
          const { dx, dLoraA, dLoraB } = back;
          const all = [y, out, dGates, dx, dLoraA, dLoraB] as Tensor[];
          return Promise.all(all.map((tensor) => tensor.read()));
        };
        setThreads(1);
        const one = await run();
        for (const threads of [2, 5]) {
          setThreads(threads);
          for (const [i, values] of (await run()).entries()) {
            exact(`${threads} threads, ${i}`, values, one[i] as Float32Array);
          }
        }
        setThreads(2);
      });
    });

    it('depend on a row and its expert only, and are those of loraForward', async () => {
      await scope(async () => {
        const { x, w, lora } = operandsOf();
        const chosen = chosenOf('even', M, k, E);
        const all = routed(chosen, k, E, device);
        const { y } = expertsMatmul(x.tensor, w, all.route, { lora });
        const values = await y.read();
        for (const m of [0, 41, M - 1]) {
          const own = chosen.slice(m * k, (m + 1) * k);
          const data = x.matrix.data.slice(m * K, (m + 1) * K);
          const row = Tensor.from(data, [1, K], { dtype, device });
          const alone = routed(own, k, E, device);
          const one = expertsMatmul(row, w, alone.route, { lora });
          const few = await one.y.read();
          for (let j = 0; j < k; j++) {
            const slot = all.route64.inverse[m * k + j] as number;
            const from = alone.route64.inverse[j] as number;
            const want = values.slice(slot * N, (slot + 1) * N);
            exact(`row ${m}, ${j}`, few.slice(from * N, (from + 1) * N), want);
          }
        }
        // One expert that gets all rows is a linear layer with an adapter.
        const whole = routed(new Array(M).fill(0), 1, 1, device);
        const { w: single } = weightOperand(spec, N, K, dtype, { seed: 2, device });
        const draw = (rows: number, cols: number, seed: number) =>
          operand(rows, cols, { seed, device }).tensor;
        const [loraA, loraB] = [draw(R, K, 6), draw(N, R, 7)];
        const adapter = new LoraAdapter({ loraA, loraB, loraAlpha: 2 * R });
        const shared = {
          loraA: loraA.reshape([1, R, K]),
          loraB: loraB.reshape([1, N, R]),
          scaling: 2,
        };
        const layer = expertsMatmul(x.tensor, single, whole.route, { lora: shared });
        // On CUDA h is that of a batch of adapters, whose sums have another order.
        const linear = device.startsWith('cuda')
          ? loraExpand(x.tensor, single, layer.h as Tensor, loraB, { scaling: 2 })
          : loraForward(x.tensor, single, adapter).y;
        exact('linear', await layer.y.read(), await linear.read());
      });
    });
  },
);

it('the steps of a layer on the tape have the gradients of differences', () => {
  scope(() => {
    const device: Device = 'reference';
    const [M, k, E, N, K, r] = [5, 2, 4, 6, 8, 2] as const;
    const make = (seed: number, shape: number[]) => Tensor.randn(shape, { seed, device });
    const w = make(7, [E * N, K]);
    const down = make(8, [E * K, N]);
    const routes = new Set<string>();
    const run = ({ x, router, a, b }: Record<string, Tensor>) => {
      const t = new ModelTape();
      const inputs = [x, router, a, b].map((tensor) => t.variable(tensor as Tensor));
      const [xv, rv, av, bv] = inputs as [Value, Value, Value, Value];
      const { route, gates } = t.selectExperts(t.matmul(xv, rv), { k });
      // A step of the differences over a change of the experts would show nothing.
      routes.add(valuesOf(route.order).join());
      const inner = t.expertsMatmul(xv, w, route, { lora: { a: av, b: bv, scaling: 0.5 } });
      const y = t.expertsMatmul(t.map(inner, 'tanh'), down, route, { gather: false });
      return { t, out: t.combineRows(y, gates, route), inputs };
    };
    const reports = checkGradients({
      inputs: {
        x: make(1, [M, K]),
        router: make(11, [E, K]),
        a: make(3, [E, r, K]),
        b: make(4, [1, N, r]),
      },
      forward: (inputs) => run(inputs).out.tensor,
      backward: (dy, given) => {
        const { t, out, inputs } = run(given);
        const [x, router, a, b] = t.gradients('step', out, dy, inputs) as [
          Tensor,
          Tensor,
          Tensor,
          Tensor,
        ];
        return { x, router, a, b };
      },
    });
    expect(reports.map(({ passed }) => passed)).toEqual([true, true, true, true]);
    expect(routes.size).toBe(1);
  });
});

it('what a scope keeps of the tape is freed with it, the route too', () => {
  scope(() => {
    const device: Device = 'cpu';
    const x = Tensor.randn([6, 8], { seed: 1, device });
    const w = Tensor.randn([12, 8], { seed: 2, device });
    const made = scope(() => {
      const tape = new ModelTape();
      const input = tape.variable(x);
      const { route, gates } = tape.selectExperts(tape.linear(input, w), { k: 2 });
      const y = tape.expertsMatmul(input, w, route);
      return { tape, input, y, out: tape.combineRows(y, gates, route) };
    });
    const dy = Tensor.randn([6, 1], { seed: 3, device });
    const [dx] = made.tape.gradients('step', made.out, dy, [made.input], { release: true });
    expect((dx as Tensor).shape).toEqual([6, 8]);
    expect(made.tape.kept.every(({ disposed }) => disposed)).toBe(true);
  });
});
