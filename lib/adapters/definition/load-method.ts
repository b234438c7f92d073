import { statSync } from 'node:fs';
import { readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { requireRegular } from '../../checkpoint/files/file-access.js';
import { LowrankError } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import type { AnyMethod } from './method.js';

/** Is this a result of `defineAdapter`, from this copy of the library or another? */
export function isMethod(value: unknown): value is AnyMethod {
  const method = value as Partial<AnyMethod> | null | undefined;
  return (
    typeof method === 'object' &&
    method !== null &&
    typeof method.create === 'function' &&
    typeof method.definition?.forward === 'function'
  );
}

/**
 * Loads a method from a module whose default export is a result of `defineAdapter`.
 * @param op the operation that errors should name
 * @throws ERR_FILE_NOT_FOUND · ERR_FILE if it does not load, or exports something else
 */
export async function loadMethod(op: string, file: string): Promise<AnyMethod> {
  const exported = await importDefault(op, file);
  if (isMethod(exported)) return exported;
  const text = `${op}: the default export of ${printable(file)} must be what defineAdapter returns, got ${typeof exported}`;
  throw new LowrankError('ERR_FILE', text, { op });
}

/**
 * The default export of a user's module. Node loads TypeScript itself if it strips types (from
 * 22.18 on), otherwise esbuild compiles it.
 * @throws ERR_FILE_NOT_FOUND · ERR_FILE · ERR_PATH for a FIFO, device or socket
 */
export async function importDefault(op: string, file: string): Promise<unknown> {
  const full = path.resolve(file);
  const found = statSync(full, { throwIfNoEntry: false });
  if (found === undefined) {
    const text = `${op}: ${printable(file)} must be a file, got nothing there`;
    throw new LowrankError('ERR_FILE_NOT_FOUND', text, { op });
  }
  if (found.isDirectory()) {
    const text = `${op}: ${printable(file)} must be a file, got a folder. Name the module file in it`;
    throw new LowrankError('ERR_FILE', text, { op });
  }
  requireRegular(op, file, found);
  try {
    return ((await importFile(full)) as { default?: unknown }).default;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    const text = `${op}: ${printable(file)} does not load: ${reason}`;
    throw new LowrankError('ERR_FILE', text, { op });
  }
}

async function importFile(full: string): Promise<unknown> {
  const typescript = /\.[cm]?ts$/.test(full);
  const strips = (process.features as { typescript?: string | false }).typescript;
  if (!typescript || strips) return import(pathToFileURL(full).href);
  const { transform } = await esbuild();
  const { code } = await transform(await readFile(full, 'utf8'), { loader: 'ts', format: 'esm' });
  // Written next to the original, so that its imports resolve the same way.
  const compiled = path.join(path.dirname(full), `.${path.basename(full)}.${process.pid}.mjs`);
  try {
    await writeFile(compiled, code);
    return await import(pathToFileURL(compiled).href);
  } catch (error) {
    throw ofOriginal(error, compiled, full);
  } finally {
    await rm(compiled, { force: true });
  }
}

/** Replaces the name of the temporary file in an error, which is gone by then, with the user's file. */
function ofOriginal(error: unknown, compiled: string, full: string): unknown {
  if (!(error instanceof Error) || !error.message.includes(path.basename(compiled))) return error;
  const text = error.message
    .replaceAll(pathToFileURL(compiled).href, pathToFileURL(full).href)
    .replaceAll(compiled, full);
  return new Error(text, { cause: error });
}

interface Esbuild {
  transform(code: string, options: object): Promise<{ code: string }>;
}

async function esbuild(): Promise<Esbuild> {
  const name = 'esbuild';
  try {
    return (await import(name)) as Esbuild;
  } catch {
    throw new Error(
      `Node ${process.versions.node} does not read TypeScript. Use Node 22.18 or later, npm install esbuild, or give a .mjs file`,
    );
  }
}
