import { importDefault } from '../adapters/definition/load-method.js';
import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { type AnyMerge, isMerge } from './definition/definition.js';

/**
 * Loads a way to merge from a module whose default export is a result of `defineMerge`.
 * @param op the operation that errors should name
 * @throws ERR_FILE_NOT_FOUND · ERR_PATH · ERR_FILE if it does not load, or exports something else
 */
export async function loadMerge(op: string, file: string): Promise<AnyMerge> {
  const exported = await importDefault(op, file);
  if (isMerge(exported)) return exported;
  const text = `${op}: the default export of ${printable(file)} must be what defineMerge returns, got ${typeof exported}`;
  throw new LowrankError('ERR_FILE', text, { op });
}
