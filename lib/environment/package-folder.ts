import { existsSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

/** The folder of this package. Sources and built files lie at different depths below it. */
export function packageFolder(): string {
  let folder = path.dirname(fileURLToPath(import.meta.url));
  while (!existsSync(path.join(folder, 'package.json')) && path.dirname(folder) !== folder) {
    folder = path.dirname(folder);
  }
  return folder;
}

/** The base model that comes with the package. */
export function bundledModel(): string {
  return path.join(packageFolder(), 'examples', 'base-model', 'model');
}

/** The text that comes with the package. */
export function bundledText(): string {
  return path.join(packageFolder(), 'examples', 'data', 'finetune.txt');
}

/** Path of liblowrank.so.1 as `lowrank build --c-api` leaves it, or null if it is not built. */
export function cLibrary(): string | null {
  const file = path.join(packageFolder(), 'build', 'Release', 'liblowrank.so.1');
  return existsSync(file) ? file : null;
}
