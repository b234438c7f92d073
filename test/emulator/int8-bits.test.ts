/**
 * Products of int8 codes by wgmma have the bits of those by mma.sync: the same cases on cards that take one and the
 * other, and which card takes which.
 */
import { expect, it } from 'vitest';
import { emulated, runOnCards } from './cards.js';

/** From 128 rows on; without a shrink, which cuts its sums by the size of the card. */
const FILTER = /^int8 (matmul|expand) \w+ \[(128|129|256|260|270|1100|2048|2100),/.source;
/** A whole card has too few tiles of 256 x 256 to fill it. */
const CARDS = ['sm_80', 'sm_90', 'sm_90 of 4 multiprocessors'];

it.runIf(emulated)(
  'products of int8 codes have the same bits by mma.sync and by wgmma',
  async () => {
    const runs = await runOnCards(FILTER, CARDS);
    const cases = runs[0]?.lines.length ?? 0;
    expect(cases).toBe(24);
    expect(runs[2]?.lines).toEqual(runs[1]?.lines);
    // An adapter's term is summed by tensor cores that cut off otherwise before compute capability 9.0.
    const codes = (run = runs[0]) => run?.lines.filter(([, name]) => name?.includes('matmul'));
    expect(codes()?.length).toBeGreaterThan(10);
    expect(codes(runs[1])).toEqual(codes());
    // With and without a bias; 128 rows are not enough, and an adapter's term is one launch.
    const products = 2 * cases;
    const byWgmma = runs.map(({ launches }) => launches('matmul_int8_wgmma_kernel'));
    expect(byWgmma).toEqual([0, 0, products - 2 * 3 - 3]);
  },
  600_000,
);
