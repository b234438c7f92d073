/** A user's own kernel or adapter from a file (docs/benchmarks.md). */

import path from 'node:path';
import { importDefault, isMethod } from '../../adapters/definition/load-method.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { adapterMethods } from '../../index.js';
import type { ComputeType, Peer } from '../peer.js';
import { adapterPeer } from './adapter.js';

const kComputes: readonly ComputeType[] = ['f32', 'bf16', 'int8'];
const kMembers = 'name, and prepare (a function of Node) or program (another process)';

/**
 * Loads a case: the name of an adapter method, or a module whose default export is a method
 * (`defineAdapter`) or a {@link Peer}, whose `find` is optional.
 * @throws ERR_FILE, ERR_FILE_NOT_FOUND
 */
export async function loadCase(file: string): Promise<Peer> {
  const named = adapterMethods.find(({ method }) => method === file);
  if (named !== undefined) return adapterPeer(named);
  const exported = await importDefault('bench', file);
  if (isMethod(exported)) return adapterPeer(exported);
  const given = (exported ?? {}) as Partial<Peer> & { readonly version?: unknown };
  const { name, prepare, program, find, refuses, computes, version } = given;
  const complete =
    typeof name === 'string' &&
    /^[\w .+-]{1,40}$/.test(name) &&
    [prepare, program].filter((member) => typeof member === 'function').length === 1;
  if (!complete) {
    const text = `bench: the default export of ${file} must have ${kMembers}`;
    throw new LowrankError('ERR_FILE', text, { op: 'bench' });
  }
  for (const [member, value] of Object.entries({ find, refuses })) {
    if (value === undefined || typeof value === 'function') continue;
    const text = `bench: ${member} of ${file} must be a function, got ${typeof value}`;
    throw new LowrankError('ERR_FILE', text, { op: 'bench' });
  }
  if (computes !== undefined && !kComputes.includes(computes)) {
    const got = printable(String(computes));
    const text = `bench: computes of ${file} must be one of ${kComputes.join(', ')}, got ${got}`;
    throw new LowrankError('ERR_FILE', text, { op: 'bench' });
  }
  return {
    ...given,
    name,
    find:
      typeof find === 'function'
        ? find
        : () => ({ version: String(version ?? path.basename(file)) }),
  };
}
