/** Checks of a batch whose rows have different adapters. */
import { expect } from 'vitest';
import {
  type DType,
  type GroupedGradients,
  type GroupedRow,
  getThreads,
  loraBackward,
  loraForward,
  matmul,
  setThreads,
  Tensor,
} from '../../lib/index.js';
import {
  type Bounded,
  bound,
  exact,
  groupedBackward64,
  groupedForward64,
  promisedOf,
} from '../oracle.js';
import { draws, type GroupedCase, nameOf } from './grouped-case.js';

export const PARTS = ['dLoraA', 'dLoraB', 'dLoraBias'] as const;

/** One gradient of one adapter. */
export function partOf(g: GroupedGradients, name: string, part: (typeof PARTS)[number]): Tensor {
  return (g.adapters.get(name) as Record<string, Tensor>)[part] as Tensor;
}

/** Every output of a batch against the formulas. */
export async function checkBounds(c: GroupedCase, dtype: DType): Promise<void> {
  const { M, N } = { M: c.rows.length, N: c.w.shape[0] as number };
  const empty = M === 0 ? { mostlyZeros: 'no tokens' } : {};
  const r = Math.max(0, ...c.adapters.map(({ loraA }) => loraA.shape[0] as number));
  const shape = { M, N, K: c.w.shape[1] as number, r };
  const { y, saved } = c.group.forward(c.x, c.w, c.rows, c.options);
  const check = async (part: string, tensor: Tensor | undefined, type: DType, want: Bounded) => {
    expect(tensor?.dtype, part).toBe(type);
    const limit = promisedOf(c.x.device, part.split(' ')[0] as string, shape, dtype);
    bound(`${part} ${c.name}`, await (tensor as Tensor).read(), want, {
      dtype: type,
      c: limit,
      ...empty,
    });
  };
  expect(y.shape).toEqual([M, N]);
  await check('y', y, dtype, groupedForward64(c.inputs));
  const { rowScale } = c.options;
  const gates = rowScale === undefined ? [] : (['dRowScale'] as const);
  const needs = ['dx', 'dBias', 'adapters', ...gates] as const;
  const gradients = c.group.backward(c.dy, saved, { needs });
  expect(saved.disposed).toBe(true);
  const want = groupedBackward64(c.inputs, c.dy64);
  await check('dx', gradients.dx, dtype, want.dx);
  await check('dBias', gradients.dBias, dtype, want.dBias);
  expect(gradients.dRowScale?.shape).toEqual(rowScale?.shape);
  if (rowScale !== undefined) {
    await check('dRowScale', gradients.dRowScale, rowScale.dtype, want.dRowScale);
  }
  const used = c.adapters.flatMap((_, e) => (c.inputs.adapterOf.includes(e) ? [nameOf(e)] : []));
  expect([...gradients.adapters.keys()].sort()).toEqual(used.sort());
  for (const [e, adapter] of c.adapters.entries()) {
    const got = gradients.adapters.get(nameOf(e));
    if (got === undefined) continue;
    const like = { dLoraA: adapter.loraA, dLoraB: adapter.loraB, dLoraBias: adapter.loraBias };
    for (const part of PARTS) {
      const tensor = like[part];
      if (tensor === undefined) expect(got[part]).toBeUndefined();
      else {
        const N1 = part === 'dLoraBias' ? [N] : tensor.shape;
        expect(got[part]?.shape).toEqual(N1);
        await check(`${part} of ${e}`, got[part], tensor.dtype, (want.adapters[e] as never)[part]);
      }
    }
  }
}

/** Rows `index` of a matrix, as a tensor. */
export async function pick(all: Tensor, index: readonly number[]): Promise<Tensor> {
  const cols = all.shape.at(-1) as number;
  const bits = await all.read();
  const values = new Float32Array(index.length * cols);
  for (const [i, m] of index.entries()) {
    values.set(bits.subarray(m * cols, (m + 1) * cols), i * cols);
  }
  return Tensor.from(values, [index.length, cols], { dtype: all.dtype, device: all.device });
}

/** Elements `index` of a vector. */
async function pickOf(vector: Tensor, index: readonly number[]): Promise<Tensor> {
  const values = await vector.read();
  return Tensor.from(
    index.map((m) => values[m] as number),
    [index.length],
    { device: vector.device },
  );
}

/** Every row and gradient against single calls of loraForward and loraBackward, bit for bit. */
export async function checkSingleCalls(c: GroupedCase): Promise<void> {
  const { bias } = c.options;
  const { y, saved } = c.group.forward(c.x, c.w, c.rows, c.options);
  const got = c.group.backward(c.dy, saved);
  const base = bias === undefined ? {} : { bias };
  const dx = got.dx as Tensor;
  for (const [e, adapter] of [...c.adapters.entries(), [-1, undefined] as const]) {
    const index = c.inputs.adapterOf.flatMap((at, m) => (at === e ? [m] : []));
    if (index.length === 0) continue;
    const x = await pick(c.x, index);
    const dy = await pick(c.dy, index);
    const mine = await (await pick(y, index)).read();
    if (adapter === undefined) {
      exact(`y of null ${c.name}`, mine, await matmul(x, c.w, base).read());
      continue;
    }
    const single = loraForward(x, c.w, adapter, base);
    exact(`y of ${e} ${c.name}`, mine, await single.y.read());
    const want = loraBackward(dy, single.saved);
    exact(
      `dx of ${e} ${c.name}`,
      await (await pick(dx, index)).read(),
      await (want.dx as Tensor).read(),
    );
    for (const part of PARTS) {
      const tensor = want[part];
      if (tensor === undefined) continue;
      const other = got.adapters.get(nameOf(e))?.[part] as Tensor;
      exact(`${part} of ${e} ${c.name}`, await other.read(), await tensor.read());
    }
  }
}

/** Rows in any order, some of them, on any number of threads: the same bits. The case has gates. */
export async function checkOrders(c: GroupedCase): Promise<void> {
  const before = getThreads();
  const run = async (order: readonly number[]): Promise<[Float32Array, GroupedGradients]> => {
    const gates = c.options.rowScale as Tensor;
    const one = !Array.isArray(c.rows[0]);
    const rowScale = one ? await pickOf(gates, order) : await pick(gates, order);
    const rows = order.map((m) => c.rows[m] as GroupedRow);
    const x = await pick(c.x, order);
    const { y, saved } = c.group.forward(x, c.w, rows, { ...c.options, rowScale });
    return [await y.read(), c.group.backward(await pick(c.dy, order), saved)];
  };
  const straight = c.rows.map((_, m) => m);
  const [y, gradients] = await run(straight);
  // Any order of the adapters, an adapter's own rows in theirs; then only some of the rows.
  const place = draws(7);
  const keys = c.adapters.map(() => place(1000));
  const { adapterOf, slots = 1 } = c.inputs;
  const mixed = [...straight].sort((a, b) => {
    const [p, q] = [a, b].map((m) => keys[adapterOf[m * slots] as number] ?? 500);
    return (p as number) - (q as number) || a - b;
  });
  const some = straight.filter((m) => m % 3 !== 1);
  const N = c.w.shape[0] as number;
  for (const [what, order] of [
    ['mixed', mixed],
    ['some', some],
  ] as const) {
    setThreads(what === 'mixed' ? 1 : 3);
    const [other, theirs] = await run(order);
    setThreads(before);
    order.forEach((m, i) => {
      const [mine, want] = [other.subarray(i * N, (i + 1) * N), y.subarray(m * N, (m + 1) * N)];
      exact(`row ${m} ${what} ${c.name}`, mine, want);
    });
    const dx = await (theirs.dx as Tensor).read();
    const K = c.w.shape[1] as number;
    const dx0 = await (gradients.dx as Tensor).read();
    order.forEach((m, i) => {
      const want = dx0.subarray(m * K, (m + 1) * K);
      exact(`dx ${m} ${what} ${c.name}`, dx.subarray(i * K, (i + 1) * K), want);
    });
    const gates0 = await (gradients.dRowScale as Tensor).read();
    const gates = await (theirs.dRowScale as Tensor).read();
    order.forEach((m, i) => {
      const want = gates0.subarray(m * slots, (m + 1) * slots);
      const mine = gates.subarray(i * slots, (i + 1) * slots);
      exact(`gates ${m} ${what} ${c.name}`, mine, want);
    });
    // With several adapters a row, an adapter's own rows have another order.
    if (what === 'some' || slots > 1) continue;
    for (const [name, parts] of gradients.adapters) {
      for (const part of PARTS) {
        if (parts[part] === undefined) continue;
        const mine = await partOf(theirs, name, part).read();
        exact(`${part} of ${name} ${c.name}`, mine, await (parts[part] as Tensor).read());
      }
    }
  }
}
