import { importDefault } from '../../adapters/definition/load-method.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { type AnyStart, isStart } from './definition.js';

/**
 * Loads a start from a module whose default export is a result of `defineStart`.
 * @param op the operation that errors should name
 * @throws ERR_FILE_NOT_FOUND · ERR_PATH · ERR_FILE if it does not load, or exports something else
 */
export async function loadStart(op: string, file: string): Promise<AnyStart> {
  const exported = await importDefault(op, file);
  if (isStart(exported)) return exported;
  const text = `${op}: the default export of ${printable(file)} must be what defineStart returns, got ${typeof exported}`;
  throw new LowrankError('ERR_FILE', text, { op });
}
