import { checkDType } from '../core/dtype.js';
import { fail, wrongType } from '../core/errors.js';
import { checkFinite, checkInteger, ownFields } from '../core/validate.js';

const kMost = 2 ** 31 - 1;

/**
 * Rejects settings of a run that are none.
 * @throws ERR_TYPE · ERR_VALUE · ERR_DTYPE
 */
export function checkTrainOptions(op: string, options: object): void {
  const own = ownFields<object>(op, options) as Readonly<Record<string, unknown>>;
  for (const name of ['steps', 'batch', 'accumulate'] as const) {
    checkInteger(op, name, own[name], 1, kMost);
  }
  checkInteger(op, 'warmup', own.warmup, 0, kMost);
  checkInteger(op, 'seed', own.seed, 0, Number.MAX_SAFE_INTEGER);
  for (const name of ['lr', 'clip', 'weightDecay'] as const) {
    const value = checkFinite(op, name, own[name]);
    const [low, text] = name === 'clip' ? [Number.MIN_VALUE, 'above 0'] : [0, 'at least 0'];
    if (value < low) fail('ERR_VALUE', op, name, text, String(value));
  }
  checkDType(op, 'dtype', own.dtype);
  if (typeof own.recompute !== 'boolean')
    throw wrongType(op, 'recompute', 'a boolean', own.recompute);
  if (own.rules !== undefined && !Array.isArray(own.rules)) {
    throw wrongType(op, 'rules', 'an array of { rule, settings }', own.rules);
  }
}
