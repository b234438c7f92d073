import { fail, wrongType } from '../../core/errors.js';
import { ownFields } from '../../core/validate.js';
import type { AnyOptimizer } from './definition.js';

/**
 * The settings of an optimiser over its defaults: of the same names and types.
 * @throws ERR_TYPE · ERR_VALUE
 */
export function optimizerSettings(op: string, optimizer: AnyOptimizer, given: unknown): object {
  const { optimizer: name, check } = optimizer;
  const defaults = optimizer.defaults as Readonly<Record<string, unknown>>;
  const own = ownFields<object>(op, given ?? {}) as Record<string, unknown>;
  for (const [key, value] of Object.entries(own)) {
    const standard = defaults[key];
    if (standard === undefined) {
      const known = Object.keys(defaults).join(', ') || 'none';
      fail('ERR_VALUE', op, 'settings', `those of ${name} (${known})`, `"${key}"`);
    }
    if (typeof value !== typeof standard) throw wrongType(op, key, `a ${typeof standard}`, value);
    if (typeof value === 'number' && !Number.isFinite(value)) {
      fail('ERR_VALUE', op, key, 'finite', String(value));
    }
  }
  const settings = Object.freeze({ ...defaults, ...own });
  const refused = check?.(settings);
  if (refused !== undefined) fail('ERR_VALUE', op, ...refused);
  return settings;
}
