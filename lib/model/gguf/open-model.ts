/** A model from either kind of files. */

import fs from 'node:fs';
import path from 'node:path';
import { checkPath } from '../../checkpoint/arguments.js';
import { openHfModel } from '../hf-model.js';
import type { ModelFiles } from '../model-files.js';
import { openGgufModel } from './gguf-model.js';

/** Is a path that of a GGUF file? A folder may have the ending too. */
export function isGgufPath(given: string): boolean {
  if (path.extname(given).toLowerCase() !== '.gguf') return false;
  try {
    return !fs.statSync(given).isDirectory();
  } catch {
    return true; // Its reader says what is wrong with it.
  }
}

/**
 * Opens a model: a file with the ending `.gguf`, or else a Hugging Face folder.
 * @throws as `openGgufModel` and `openHfModel`
 * @example
 * const model = openModel('model.gguf');
 * using weights = DecoderWeights.load(model);
 */
export function openModel(given: string): ModelFiles {
  checkPath('openModel', 'path', given);
  return isGgufPath(given) ? openGgufModel(given) : openHfModel(given);
}
