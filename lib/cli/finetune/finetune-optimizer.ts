/** The optimiser of `lowrank finetune --optimizer` and its settings. */

import type { AnyOptimizer } from '../../optim/definition/definition.js';
import { loadOptimizer } from '../../optim/definition/load-optimizer.js';
import { optimizerSettings } from '../../optim/definition/settings.js';
import { optimizerList, optimizerNamed } from '../../optim/optimizers.js';
import type { Arguments } from '../command/arguments.js';
import { readSetting } from '../command/setting.js';

const kOp = 'finetune';

/** An optimiser with its settings from the command line. */
export interface ChosenOptimizer {
  readonly optimizer: AnyOptimizer;
  readonly settings: Readonly<Record<string, unknown>>;
  /** The file it comes from, if any. */
  readonly file?: string;
}

/**
 * The optimiser of `--optimizer`, and its file, if any.
 * @throws UsageError · LowrankError `ERR_FILE`, `ERR_FILE_NOT_FOUND`, `ERR_VALUE`
 */
export async function readOptimizer(parsed: Arguments): Promise<Omit<ChosenOptimizer, 'settings'>> {
  const name = parsed.text('optimizer') ?? 'adamw';
  const own = /[./\\]/.test(name);
  const optimizer = own ? await loadOptimizer(kOp, name) : optimizerNamed(kOp, name);
  if (own) requireOwnName(parsed, optimizer);
  return { optimizer, ...(own ? { file: name } : {}) };
}

/**
 * The settings of an optimiser.
 * @param texts of `--set`
 * @throws UsageError · LowrankError `ERR_VALUE`
 */
export function readOptimizerSettings(
  parsed: Arguments,
  optimizer: AnyOptimizer,
  texts: readonly string[],
): Readonly<Record<string, unknown>> {
  const defaults = optimizer.defaults as Readonly<Record<string, unknown>>;
  const settings = Object.fromEntries(
    texts.map((text) => readSetting(parsed, text, optimizer.optimizer, defaults)),
  );
  optimizerSettings(kOp, optimizer, settings);
  return settings;
}

/** Checkpoints and reports identify an optimiser by its name. */
function requireOwnName(parsed: Arguments, own: AnyOptimizer): void {
  const known = optimizerList.find(({ optimizer }) => optimizer === own.optimizer);
  if (known === undefined || known === own) return;
  const expected = "a file whose optimizer has a name that none of the library's has";
  throw parsed.refuse('optimizer', expected, own.optimizer);
}
