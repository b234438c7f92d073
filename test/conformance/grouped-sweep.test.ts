// GroupedLora over 1, 2, 8 and 64 adapters of mixed ranks and 1 to 512 rows: on the host's devices the bits
// of the loop of single calls, on a GPU its result within the bound; the same bits in any order of the
// rows. `npm run test:grouped` takes all of it on all devices, the suite a part.
import { describe, it } from 'vitest';
import { scope } from '../../lib/index.js';
import { type GroupedShape, groupedCase } from './grouped-case.js';
import { checkBounds, checkOrders, checkSingleCalls } from './grouped-checks.js';
import { DEVICES, DTYPES, FULL_SWEEP as FULL, mixes, WEIGHTS } from './operands.js';

const ROWS = FULL ? [1, 2, 3, 5, 16, 33, 64, 130, 257, 512] : [1, 2, 5, 33, 130, 512];
const SWEEP: readonly GroupedShape[] = [1, 2, 8, 64].flatMap((count) =>
  ROWS.map((M) => ({
    M,
    N: 37,
    K: M === 5 ? 1024 : 70,
    ranks: Array.from({ length: count }, (_, e) => [4, 8, 16, 64, 31, 32][e % 6] as number),
    ...(M % 3 === 0 ? { nullEvery: 4 } : {}),
    bias: true,
    loraBias: count < 8,
  })),
);

/** One adapter a row, and mixtures. */
const ORDERS: readonly GroupedShape[] = [
  ...SWEEP,
  ...SWEEP.filter(({ M, ranks }) => M !== 5 && ranks.length > 2).map((shape) => ({
    ...shape,
    slots: 1 + (shape.M % 3),
    nullEvery: 5,
  })),
];

/** The most rows of a device: of single calls, and of orders. */
const limitsOf = (device: string): readonly [number, number] => {
  if (FULL) return device === 'cpu' ? [512, 512] : [130, 33];
  return device === 'cpu' ? [512, 33] : [2, 2];
};
const GROUPS = DEVICES.flatMap((device) =>
  DTYPES.filter((dtype) => FULL || dtype !== 'f16').flatMap((dtype) =>
    WEIGHTS.filter(({ name }) => name === `dense ${dtype}` || name.startsWith('nf4 with'))
      .filter((spec) => mixes(spec, dtype))
      .map((spec) => ({ device, dtype, spec })),
  ),
);
const timeout = FULL ? 3_600_000 : 60_000;

/** On a GPU the base product is one of few tokens with K cut, and the input gradient has N cut. */
const LARGE: GroupedShape = { M: 3, N: 2056, K: 1056, ranks: [3, 16], nullEvery: 3, bias: true };

describe.each(GROUPS.filter(({ device, dtype }) => device.startsWith('cuda') && dtype !== 'f32'))(
  '$device, $dtype x, a large $spec.name',
  ({ device, dtype, spec }) => {
    it('rows and gradients are within the bound', { timeout }, () =>
      scope(() => checkBounds(groupedCase(LARGE, spec, dtype, device, 1), dtype)),
    );
  },
);

describe.each(GROUPS)('$device, $dtype x, $spec.name', ({ device, dtype, spec }) => {
  const [single, orders] = limitsOf(device);
  const cuda = device.startsWith('cuda');

  it('rows and gradients are those of single calls', { timeout }, async () => {
    for (const [index, shape] of SWEEP.entries()) {
      if (shape.M > single) continue;
      await scope(async () => {
        const c = groupedCase(shape, spec, dtype, device, index + 1);
        await (cuda ? checkBounds(c, dtype) : checkSingleCalls(c));
      });
    }
  });

  it('in any order of the rows, in any company, on any number of threads', {
    timeout,
  }, async () => {
    for (const [index, shape] of ORDERS.entries()) {
      if (shape.M < 2 || shape.M > orders) continue;
      await scope(() =>
        checkOrders(groupedCase({ ...shape, rowScale: true }, spec, dtype, device, index + 1)),
      );
    }
  });
});
