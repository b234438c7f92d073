/** Where a source file of the emulator's line table is. */

import fs from 'node:fs';
import path from 'node:path';

/**
 * The path of a source file that a line table names. Names in the package are relative to its folder, `root`, or to
 * `build`, and some readers of line tables put `build` before either.
 */
export function sourceFile(root: string, name: string): string {
  const named = path.resolve(root, name);
  if (path.isAbsolute(name) || fs.existsSync(named)) return named;
  const inPackage = path.resolve(root, path.normalize(name).replace(/^(?:\.\.\/|build\/)+/, ''));
  return fs.existsSync(inPackage) ? inPackage : named;
}
