// Many rows of each adapter on a small Hopper card: launches overlap, and large products are wgmma's, with
// the adapter's parts beside them.
import { describe, expect, it } from 'vitest';
import { scope } from '../../lib/index.js';
import { groupedCase } from './grouped-case.js';
import { checkSingleCalls } from './grouped-checks.js';
import {
  available,
  checkSegments,
  DEVICE,
  launched,
  SHAPES,
  useSmallCard,
} from './grouped-segments.js';
import { WEIGHTS } from './operands.js';

useSmallCard(90);
const spec = (wanted: string) =>
  WEIGHTS.find(({ name }) => name === wanted) as (typeof WEIGHTS)[number];

describe.runIf(available())('segments on sm_90', () => {
  it('bf16 x, nf4', async () => {
    for (const shape of SHAPES) await checkSegments(shape, spec('nf4'), 'bf16');
  });

  it('bf16 x, dense bf16 of a megabyte, against single calls', async () => {
    const shape = { M: 770, N: 768, K: 704, ranks: [16], nullEvery: 2, sameDType: true };
    await scope(() => checkSingleCalls(groupedCase(shape, spec('dense bf16'), 'bf16', DEVICE, 3)));
    expect(launched().filter((kernel) => kernel.startsWith('gemm_wgmma'))).not.toEqual([]);
  });
});
