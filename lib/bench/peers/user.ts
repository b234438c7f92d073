/** A user's own kernel or adapter, from a file (docs/benchmarks.md). */

import { existsSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { LowrankError } from '../../core/errors.js';
import type { Peer } from '../peer.js';

const kMembers = 'name, and prepare (a function of Node) or program (another process)';

/**
 * Loads a case file: a module whose default export is a {@link Peer}, `find` left out if it likes.
 * @throws ERR_FILE, ERR_FILE_NOT_FOUND
 */
export async function loadCase(file: string): Promise<Peer> {
  const full = path.resolve(file);
  if (!existsSync(full)) {
    throw new LowrankError('ERR_FILE_NOT_FOUND', `bench: ${file} does not exist`, { op: 'bench' });
  }
  let given: Partial<Peer> & { readonly version?: unknown };
  try {
    const module = (await import(pathToFileURL(full).href)) as { default?: Partial<Peer> };
    given = module.default ?? {};
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    throw new LowrankError('ERR_FILE', `bench: ${file} does not load: ${text}`, { op: 'bench' });
  }
  const { name, prepare, program, find, version } = given;
  const complete =
    typeof name === 'string' &&
    /^[\w .+-]{1,40}$/.test(name) &&
    [prepare, program].filter((member) => typeof member === 'function').length === 1;
  if (!complete) {
    const text = `bench: the default export of ${file} must have ${kMembers}`;
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
