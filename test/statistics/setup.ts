/** Tiny trainers for the tests of statistics. */
import { afterEach } from 'vitest';
import {
  randomValues,
  setValues,
  type TinyTrainer,
  tinyTrainer,
  valuesOf,
} from '../finetune/setup.js';

const made: TinyTrainer[] = [];
afterEach(() => {
  for (const each of made.splice(0)) each.dispose();
});

/** A trainer over NF4 whose adapters hold random values, so that no gradient is zero. Disposed of after the test. */
export function startedTrainer(options: Parameters<typeof tinyTrainer>[2]): TinyTrainer {
  const own = tinyTrainer({}, { format: 'nf4' }, options);
  made.push(own);
  const { trainer } = own;
  const { length } = valuesOf(trainer);
  setValues(
    trainer,
    randomValues(length, 11).map((value) => value / 4),
  );
  return own;
}
