// The sums of accumulation.test.ts on an emulated card of sm_90, whose tensor cores keep a bit more.
import { describe, it } from 'vitest';
import { checkSums } from './accumulation.js';
import { available, DEVICE, useSmallCard } from './grouped-segments.js';
import { DTYPES } from './operands.js';

useSmallCard(90);

describe.runIf(available())('sums on sm_90', () => {
  it.each(DTYPES)('%s', (dtype) => checkSums(DEVICE, dtype), 300_000);
});
