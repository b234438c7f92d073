/** The optimiser of `lowrank finetune --optimizer` and its settings. */

import type { AnyOptimizer } from '../../optim/definition/definition.js';
import { loadOptimizer } from '../../optim/definition/load-optimizer.js';
import { optimizerSettings } from '../../optim/definition/settings.js';
import { optimizerList, optimizerNamed } from '../../optim/optimizers.js';
import type { Arguments } from '../command/arguments.js';
import { readSetting, settingName } from '../command/setting.js';

const kOp = 'finetune';

/** An optimiser with its settings from the command line. */
export interface ChosenOptimizer {
  readonly optimizer: AnyOptimizer;
  readonly settings: Readonly<Record<string, unknown>>;
  /** The file it comes from, if any. */
  readonly file?: string;
}

/**
 * The optimiser of `--optimizer`, with those of the texts of `--set` that are its settings.
 * @param methodSettings names of settings that the adapters have
 * @returns the optimiser, and the texts of `--set` that are left for the adapters
 * @throws UsageError · LowrankError `ERR_FILE`, `ERR_FILE_NOT_FOUND`, `ERR_VALUE`
 */
export async function readOptimizer(
  parsed: Arguments,
  methodSettings: ReadonlySet<string>,
): Promise<ChosenOptimizer & { readonly others: readonly string[] }> {
  const name = parsed.text('optimizer') ?? 'adamw';
  const own = /[./\\]/.test(name);
  const optimizer = own ? await loadOptimizer(kOp, name) : optimizerNamed(kOp, name);
  if (own) requireOwnName(parsed, optimizer);
  const defaults = optimizer.defaults as Readonly<Record<string, unknown>>;
  const settings: Record<string, unknown> = {};
  const others: string[] = [];
  for (const text of parsed.texts('set')) {
    const [prefix, rest] = splitPrefix(text);
    const setting = settingName(rest);
    const has = setting !== undefined && Object.hasOwn(defaults, setting);
    if (prefix === undefined && has && methodSettings.has(setting)) {
      const expected = `adapter.${setting}=VALUE or optimizer.${setting}=VALUE (both have this setting)`;
      throw parsed.refuse('set', expected, text);
    }
    if (prefix === 'optimizer' || (prefix === undefined && has)) {
      const [key, value] = readSetting(parsed, rest, optimizer.optimizer, defaults);
      settings[key] = value;
    } else others.push(rest);
  }
  optimizerSettings(kOp, optimizer, settings);
  return { optimizer, settings, others, ...(own ? { file: name } : {}) };
}

/** `optimizer.beta1=0.8` names whose setting it is. */
function splitPrefix(text: string): readonly [prefix: string | undefined, rest: string] {
  const found = /^(adapter|optimizer)\.(.*)$/s.exec(text);
  return found === null ? [undefined, text] : [found[1], found[2] as string];
}

/** Checkpoints and reports identify an optimiser by its name. */
function requireOwnName(parsed: Arguments, own: AnyOptimizer): void {
  const known = optimizerList.find(({ optimizer }) => optimizer === own.optimizer);
  if (known === undefined || known === own) return;
  const expected = "a file whose optimizer has a name that none of the library's has";
  throw parsed.refuse('optimizer', expected, own.optimizer);
}
