import { importDefault } from '../../adapters/definition/load-method.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { isRule } from './define.js';
import type { AnyRule } from './definition.js';

/**
 * Loads a rule from a module whose default export is a result of `defineRule`.
 * @param op the operation that errors should name
 * @throws ERR_FILE_NOT_FOUND · ERR_PATH · ERR_FILE if it does not load, or exports something else
 */
export async function loadRule(op: string, file: string): Promise<AnyRule> {
  const exported = await importDefault(op, file);
  if (isRule(exported)) return exported;
  const text = `${op}: the default export of ${printable(file)} must be what defineRule returns, got ${typeof exported}`;
  throw new LowrankError('ERR_FILE', text, { op });
}
