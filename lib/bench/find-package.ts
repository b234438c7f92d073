/** Packages of peers: not dependencies of this one, so looked for where the user works, then here. */

import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

export interface InstalledPackage {
  readonly version: string;
  /** The folder that it is in. */
  readonly folder: string;
  /** Its CommonJS build: what `import` would give, and synchronous. */
  load(): unknown;
}

/** @returns `undefined` where it is not installed */
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
