import { readFileSync } from 'node:fs';
import path from 'node:path';
import { packageFolder } from './package-folder.js';

/** Version of this package. */
export function version(): string {
  const text = readFileSync(path.join(packageFolder(), 'package.json'), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}
