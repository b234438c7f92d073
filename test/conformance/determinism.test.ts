// The same bits for any number of threads, for a row alone and in a batch, and run after run.
import { afterAll, describe, it } from 'vitest';
import {
  type Device,
  type DType,
  getThreads,
  loraBackward,
  loraExpand,
  loraExpandBackward,
  loraForward,
  loraShrink,
  loraShrinkBackward,
  matmul,
  matmulInputGrad,
  quantize,
  scope,
  setThreads,
  Tensor,
  weightGrad,
} from '../../lib/index.js';
import { exact, mistrust } from '../oracle.js';
import { loraCase } from './lora-case.js';
import { DEVICES, DTYPES, FULL_SWEEP, operand, QUANTISED, WEIGHTS } from './operands.js';

const threadsBefore = getThreads();
afterAll(() => setThreads(threadsBefore));

const NF4 = QUANTISED[1] as (typeof QUANTISED)[number]; // with double quantisation
const DENSE = WEIGHTS[0] as (typeof WEIGHTS)[number];

type Results = Map<string, Float32Array>;

/** Every op once; big enough for several tasks of every kind. */
async function everyOp(device: Device, dtype: DType): Promise<Results> {
  const results: Results = new Map();
  const keep = async (name: string, tensor: Tensor | undefined): Promise<void> => {
    results.set(name, await (tensor as Tensor).read());
  };
  await scope(async () => {
    const shape = { M: 133, N: 150, K: 331, r: 8 };
    for (const spec of [NF4, DENSE]) {
      const variant = { bias: true, dropout: 0.2, loraBias: true };
      const c = loraCase(shape, variant, spec, dtype, device, 5);
      const { y, saved } = loraForward(c.x, c.w, c.adapter, c.options);
      await keep(`${spec.name} y`, y);
      await keep(`${spec.name} h`, saved.h);
      for (const [name, gradient] of Object.entries(loraBackward(c.dy, saved))) {
        await keep(`${spec.name} ${name}`, gradient);
      }
      await keep(`${spec.name} matmul`, matmul(c.x, c.w));
      await keep(`${spec.name} dx`, matmulInputGrad(c.dy, c.w));
    }
    // The same bodies with h and dh given.
    const c = loraCase(shape, { dropout: 0.2 }, DENSE, dtype, device, 5);
    const { loraA, loraB } = c.adapter;
    const h = loraShrink(c.x, loraA, { ...c.options, dropout: 0.2 });
    await keep('half h', h);
    await keep('half y', loraExpand(c.x, c.w, h, loraB));
    const over = loraExpandBackward(c.dy, h, loraB);
    const under = loraShrinkBackward(c.dy, c.w, over.dh as Tensor, loraA, { x: c.x });
    for (const [name, gradient] of Object.entries({ ...over, ...under })) {
      await keep(`half ${name}`, gradient);
    }
    await keep('dW', weightGrad(c.dy, c.x));
    const random = Tensor.randn([70_000], { seed: 3, dtype, device });
    await keep('randn', random);
    const state = await quantize(random, { format: 'nf4', doubleQuant: true }).toBitsandbytes();
    for (const [key, { data }] of Object.entries(state)) {
      results.set(key, Float32Array.from(data as Float32Array));
    }
  });
  return results;
}

function same(what: string, actual: Results, expected: Results): void {
  for (const [name, values] of expected) exact(`${what} ${name}`, actual.get(name) ?? [], values);
}

const CASES = DEVICES.flatMap((device) => DTYPES.map((dtype) => ({ device, dtype })));

describe.each(CASES)('$device, $dtype', ({ device, dtype }) => {
  // The emulated card and the loops of `reference` know no threads of the pool.
  const all = FULL_SWEEP || device === 'cpu';
  it(`1, ${all ? '2, 3 and 8' : 'and 3'} threads, and run after run`, async () => {
    setThreads(1);
    const expected = await everyOp(device, dtype);
    for (const values of expected.values())
      mistrust('result', values.subarray(0, 100), {
        ...(values.length < 2000 ? { mostlyZeros: 'small tables' } : {}),
      });
    for (const threads of all ? [2, 3, 8] : [3]) {
      setThreads(threads);
      same(`${threads} threads:`, await everyOp(device, dtype), expected);
    }
    for (let run = 0; run < (all ? 3 : 1); run++)
      same(`run ${run}:`, await everyOp(device, dtype), expected);
  });

  it.each([
    { N: 150, K: 331, r: 8 },
    { N: 33, K: 1030, r: 3 },
    { N: 64, K: 64, r: 64 },
  ])('a row alone and in a batch, N $N K $K r $r', async ({ N, K, r }) => {
    await scope(async () => {
      for (const spec of [NF4, DENSE]) {
        const M = 67;
        const c = loraCase({ M, N, K, r }, { bias: true }, spec, dtype, device, 8);
        const all = loraForward(c.x, c.w, c.adapter, c.options);
        const y = await all.y.read();
        const { dx } = loraBackward(c.dy, all.saved);
        const grad = await (dx as Tensor).read();
        const plain = await matmul(c.x, c.w).read();
        const plainGrad = await matmulInputGrad(c.dy, c.w).read();
        const xAll = await c.x.read();
        const dyAll = await c.dy.read();
        // One row, a few, and an odd number of them, from several places.
        for (const [first, count] of [
          [0, 1],
          [13, 1],
          [66, 1],
          [5, 2],
          [30, 7],
          [1, 33],
        ] as const) {
          const rows = (values: Float32Array, width: number): Float32Array =>
            values.slice(first * width, (first + count) * width);
          const x = Tensor.from(rows(xAll, K), [count, K], { dtype, device });
          const dy = Tensor.from(rows(dyAll, N), [count, N], { dtype, device });
          const part = loraForward(x, c.w, c.adapter, c.options);
          const name = `${spec.name} rows ${first}+${count}`;
          exact(`${name} y`, await part.y.read(), rows(y, N));
          const back = loraBackward(dy, part.saved, { needs: ['dx'] });
          exact(`${name} dx`, await (back.dx as Tensor).read(), rows(grad, K));
          const { loraA, loraB } = c.adapter;
          const h = loraShrink(x, loraA);
          const bias = c.options.bias as Tensor;
          const half = loraExpand(x, c.w, h, loraB, { scaling: c.adapter.scaling, bias });
          exact(`${name} half y`, await half.read(), rows(y, N));
          const { dh } = loraExpandBackward(dy, h, loraB, {
            scaling: c.adapter.scaling,
            needs: ['dh'],
          });
          const under = loraShrinkBackward(dy, c.w, dh as Tensor, loraA);
          exact(`${name} half dx`, await (under.dx as Tensor).read(), rows(grad, K));
          exact(`${name} matmul`, await matmul(x, c.w).read(), rows(plain, N));
          exact(`${name} dx`, await matmulInputGrad(dy, c.w).read(), rows(plainGrad, K));
        }
      }
    });
  });

  it('leading dimensions change no bits', async () => {
    await scope(async () => {
      const flat = operand(12, 40, { seed: 1, dtype, device });
      const deep = operand(12, 40, { seed: 1, dtype, device, shape: [3, 4, 40] });
      const w = operand(9, 40, { seed: 2, dtype, device });
      const y = await matmul(flat.tensor, w.tensor).read();
      exact('y', await matmul(deep.tensor, w.tensor).read(), y);
    });
  });
});
