/**
 * Packages of peers. They are not dependencies of this package, so they are looked up where the
 * user works, then here.
 */

import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

export interface InstalledPackage {
  readonly version: string;
  /** The folder of the package. */
  readonly folder: string;
  /** Loads its CommonJS build: the same as `import`, but synchronous. */
  load(): unknown;
}

/** @returns `undefined` if it is not installed */
export function resolvePackage(name: string): InstalledPackage | undefined {
  const here = [path.join(process.cwd(), 'package.json'), import.meta.url];
  for (const origin of here) {
    const require = createRequire(origin);
    const roots = require.resolve.paths(name) ?? [];
    for (const root of roots) {
      const folder = path.join(root, name);
      const manifest = path.join(folder, 'package.json');
      if (!existsSync(manifest)) continue;
      const { version } = JSON.parse(readFileSync(manifest, 'utf8')) as { version: string };
      return { version, folder, load: () => require(folder) as unknown };
    }
  }
  return undefined;
}
