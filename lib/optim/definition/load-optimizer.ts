import { importDefault } from '../../adapters/definition/load-method.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { isOptimizer } from './define.js';
import type { AnyOptimizer } from './definition.js';

/**
 * Loads an optimiser from a module whose default export is a result of `defineOptimizer`.
 * @param op the operation that errors should name
 * @throws ERR_FILE_NOT_FOUND · ERR_PATH · ERR_FILE if it does not load, or exports something else
 */
export async function loadOptimizer(op: string, file: string): Promise<AnyOptimizer> {
  const exported = await importDefault(op, file);
  if (isOptimizer(exported)) return exported;
  const text = `${op}: the default export of ${printable(file)} must be what defineOptimizer returns, got ${typeof exported}`;
  throw new LowrankError('ERR_FILE', text, { op });
}
