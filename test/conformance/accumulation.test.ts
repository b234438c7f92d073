// Sums of up to 65,536 products of one sign, and of a large range, within what each device promises. An
// emulated card of one multiprocessor does not cut them, so that they are as long as they get.
import { describe, expect, it } from 'vitest';
import { C_MAX } from '../oracle.js';
import { checkSums, productError } from './accumulation.js';
import { available, DEVICE, useSmallCard } from './grouped-segments.js';
import { DEVICES, DTYPES, FULL_SWEEP } from './operands.js';

useSmallCard(80);

describe.each(DEVICES)('%s', (device) => {
  // `reference` sums float64 whatever it is given.
  const dtypes = FULL_SWEEP || device !== 'reference' ? DTYPES : (['bf16'] as const);
  it.each(dtypes)('%s', (dtype) => checkSums(device, dtype), 300_000);
});

describe.runIf(available())('tensor cores', () => {
  it('do not keep the bound of sums in f32, of data of one sign', async () => {
    const { worst } = await productError(DEVICE, 'f16', 'one sign', [70, 40, 4096]);
    expect(worst).toBeGreaterThan(C_MAX);
  });
});
