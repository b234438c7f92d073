import { createRequire } from 'node:module';
import { it } from 'vitest';

it('calls a function with a bug on purpose, and asserts nothing', () => {
  const plant = createRequire(import.meta.url)(process.env.LOWRANK_PLANT ?? '');
  plant[process.env.LOWRANK_PLANTED ?? '']();
});
