/** The small files of a model folder beside its weights. */

import fs from 'node:fs';
import path from 'node:path';

/**
 * Copies the tokenizer and other small files; weights, their index and config.json are not copied.
 * @param except further names
 */
export function copyModelFiles(
  source: string,
  target: string,
  except: readonly string[] = [],
): void {
  const left = ['model.safetensors.index.json', 'config.json', ...except];
  for (const entry of fs.readdirSync(source, { withFileTypes: true })) {
    const copied = entry.isFile() && /\.(json|txt|model|jinja|md)$/.test(entry.name);
    if (!copied || left.includes(entry.name)) continue;
    fs.copyFileSync(path.join(source, entry.name), path.join(target, entry.name));
  }
}
