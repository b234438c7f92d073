/**
 * Batches with many rows of each adapter on the emulated device: a product for each adapter's rows. A test
 * file says first which card it is, since a process has one.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, expect } from 'vitest';
import { type Device, devices, scope, type Tensor } from '../../lib/index.js';
import { exact } from '../oracle.js';
import { type GroupedCase, type GroupedShape, groupedCase } from './grouped-case.js';
import { checkBounds, checkSingleCalls, pick } from './grouped-checks.js';
import type { WeightSpec } from './operands.js';

const folder = mkdtempSync(path.join(tmpdir(), 'lowrank-segments-'));
const trace = path.join(folder, 'trace');

/** One multiprocessor, which few rows fill. */
export function useSmallCard(sm: 80 | 90): void {
  process.env.LOWRANK_EMULATOR_SM = String(sm);
  process.env.LOWRANK_EMULATOR_MULTIPROCESSORS = '1';
  process.env.LOWRANK_EMULATOR_TRACE = trace;
  afterAll(() => rmSync(folder, { recursive: true }));
}

/** The kernels that were launched, in their order. */
export function launched(): string[] {
  if (!existsSync(trace)) return [];
  const lines = readFileSync(trace, 'utf8').split('\n').filter(Boolean);
  return lines.map((line) => JSON.parse(line).kernel as string);
}

export const DEVICE = 'cuda-emulated' as Device;

/** Is the device there? Says why not. */
export function available(): boolean {
  const row = devices().find(({ device }) => device === DEVICE);
  if (row?.available !== true) console.warn(`no batch of segments is run: ${row?.reason}`);
  return row?.available === true;
}

/** Rows of several adapters and of none, in any order and together; and of all but one the same adapter. */
export const SHAPES: readonly GroupedShape[] = [
  { M: 280, N: 264, K: 128, ranks: [16, 33], nullEvery: 9, bias: true, loraBias: true },
  { M: 250, N: 260, K: 142, ranks: [8, 64], sameDType: true, sorted: true },
  { M: 120, N: 129, K: 255, ranks: [30], nullEvery: 200, loraBias: true },
];

/** Is `added` the sum of the two, but for the rounding of it and of dx to 16 bits? */
async function checkAdded(added: Tensor, start: Tensor, dx: Tensor, unit: number): Promise<void> {
  const [sum, before, more] = [await added.read(), await start.read(), await dx.read()];
  const off = sum.findIndex((v, i) => {
    const [a, b] = [before[i] as number, more[i] as number];
    return !(Math.abs(v - (a + b)) <= unit * (Math.abs(v) + Math.abs(b)) + 2 ** -20);
  });
  expect(off, `dx added [${off}]: got ${sum[off]}, of ${before[off]} and ${more[off]}`).toBe(-1);
}

/** Rows last to first: the same bits of each, and of what is added to what is there. */
async function checkReversed(c: GroupedCase): Promise<void> {
  const M = c.rows.length;
  const order = Array.from({ length: M }, (_, i) => M - 1 - i);
  const run = async (x: Tensor, dy: Tensor, rows: GroupedCase['rows'], start: Tensor) => {
    const { y, saved } = c.group.forward(x, c.w, rows, c.options);
    const { dx } = c.group.backward(dy, saved, { needs: ['dx'], keep: true });
    c.group.backward(dy, saved, { needs: ['dx'], accumulateInto: { dx: start } });
    return [y, dx as Tensor, start] as const;
  };
  const start = (t: Tensor) => pick(t, [...Array(M).keys()]);
  const there = await run(c.x, c.dy, c.rows, await start(c.x));
  const back = await run(
    await pick(c.x, order),
    await pick(c.dy, order),
    order.map((m) => c.rows[m] as GroupedCase['rows'][number]),
    await pick(c.x, order),
  );
  for (const [i, name] of ['y', 'dx', 'dx added'].entries()) {
    const want = await (await pick(there[i] as Tensor, order)).read();
    exact(`${name} ${c.name}`, await (back[i] as Tensor).read(), want);
  }
  await checkAdded(there[2], c.x, there[1], c.x.dtype === 'bf16' ? 2 ** -8 : 2 ** -11);
}

/** All outputs against the formulas, against single calls and in another order. */
export async function checkSegments(
  shape: GroupedShape,
  spec: WeightSpec,
  dtype: 'bf16' | 'f16',
): Promise<void> {
  await scope(async () => {
    const c = groupedCase(shape, spec, dtype, DEVICE, 3);
    await checkBounds(c, dtype);
    await checkSingleCalls(c);
    await checkReversed(c);
  });
  const kernels = launched();
  expect(kernels).toContain('copy_rows_kernel');
  expect(kernels.filter((kernel) => kernel.startsWith('grouped_'))).toEqual([]);
}
