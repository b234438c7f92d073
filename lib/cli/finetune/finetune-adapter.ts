/** The method of `lowrank finetune --adapter` and its settings. */

import { loadMethod } from '../../adapters/definition/load-method.js';
import { adapterMethods } from '../../adapters/methods/adapter-methods.js';
import type { LowrankError } from '../../core/errors.js';
import type { AnyOptimizer } from '../../optim/definition/definition.js';
import type { AnyStart } from '../../starts/definition/definition.js';
import { loadStart } from '../../starts/definition/load-start.js';
import { startNamed } from '../../starts/start-methods.js';
import { type AdapterStart, methodNamed, type TrainedMethod } from '../../train/adapter-set.js';
import type { Arguments } from '../command/arguments.js';
import { readSetting, settingName, splitSettings } from '../command/setting.js';
import {
  type ChosenOptimizer,
  readOptimizer,
  readOptimizerSettings,
} from './finetune-optimizer.js';
import { type ChosenRules, readRules, withSettings } from './finetune-rules.js';

const kOp = 'finetune';

/** A method with its settings from the command line. */
export interface ChosenMethod {
  readonly method: TrainedMethod;
  readonly settings: Readonly<Record<string, unknown>>;
  /** The file it comes from, if any. */
  readonly file?: string;
  /** Where its adapters begin, if not at its own start. */
  readonly start?: AdapterStart;
  /** The file that the start comes from, if any. */
  readonly startFile?: string;
}

/**
 * The methods of `--adapter`: one, or several separated by commas; and the optimiser and the rules, as `--set` has settings
 * of all of them.
 * @param several whether the run is one of several, whose options this method may lack
 * @throws UsageError · LowrankError `ERR_FILE`, `ERR_FILE_NOT_FOUND`, `ERR_VALUE`
 */
export async function readAdapters(
  parsed: Arguments,
  several = false,
): Promise<{
  readonly adapters: [ChosenMethod, ...ChosenMethod[]];
  readonly optimizer: ChosenOptimizer;
  readonly rules: ChosenRules;
}> {
  const init = await readStart(parsed);
  const [chosenOptimizer, chosenRules] = [await readOptimizer(parsed), await readRules(parsed)];
  // Without --adapter, the one that the start or a rule is for.
  const fitting = [init?.start, ...chosenRules.rules].flatMap((each) => each?.adapters ?? []);
  const standard = fitting[0] ?? 'lora';
  const adapterNames = (parsed.text('adapter') ?? standard).split(',').map((name) => name.trim());
  const methods: { name: string; own: boolean; method: TrainedMethod }[] = [];
  for (const name of adapterNames) {
    const own = /[./\\]/.test(name);
    const method = own ? await loadMethod(kOp, name) : methodNamed(kOp, name);
    if (own) requireOwnName(parsed, method);
    if ((method.definition.inputs ?? []).length > 0) throw refuseInputs(parsed, method);
    methods.push({ name, own, method });
  }
  const known = [
    ...methods.map(({ method }) => method.definition),
    init?.start ?? { defaults: {} },
  ];
  const names = (...all: { readonly defaults: unknown }[]) =>
    new Set(all.flatMap(({ defaults }) => Object.keys(defaults as object)));
  const { optimizer } = chosenOptimizer;
  const texts = splitSettings(parsed, [
    { prefix: 'adapter', names: names(...known) },
    { prefix: 'optimizer', names: names(optimizer) },
    ...chosenRules.rules.map((rule) => ({ prefix: rule.rule, names: names(rule) })),
  ]);
  const of = (owner: string) => texts.get(owner) ?? [];
  const others = of('adapter');
  const rules = {
    rules: chosenRules.rules.map((rule) => withSettings(parsed, rule, of(rule.rule))),
    files: chosenRules.files,
  };
  const start = init === undefined ? undefined : startSettings(parsed, init.start, others);
  const chosen = methods.map(({ name, own, method }): ChosenMethod => {
    const alone = adapterNames.length === 1 && !several;
    return {
      method,
      settings: settingsOf(parsed, method, alone, others, { optimizer, rules }, init?.start),
      ...(own ? { file: name } : {}),
      ...(start === undefined ? {} : { start }),
      ...(init?.file === undefined ? {} : { startFile: init.file }),
    };
  });
  const named = chosen.map(({ method }) => method.method);
  const twice = chosen.find(({ method }, i) => named.indexOf(method.method) < i);
  if (twice !== undefined)
    throw parsed.refuse('adapter', 'methods with distinct names', twice.method.method);
  const settings = readOptimizerSettings(parsed, optimizer, of('optimizer'));
  return {
    adapters: chosen as [ChosenMethod, ...ChosenMethod[]],
    optimizer: { ...chosenOptimizer, settings },
    rules,
  };
}

/** The start of `--init`, and the file that it comes from, if any. */
async function readStart(
  parsed: Arguments,
): Promise<{ readonly start: AnyStart; readonly file?: string } | undefined> {
  const name = parsed.text('init');
  if (name === undefined) {
    const given = parsed.text('init-batches');
    if (given === undefined) return undefined;
    throw parsed.refuse('init-batches', 'left out without --init', given);
  }
  const own = /[./\\]/.test(name);
  if (own) return { start: await loadStart(kOp, name), file: name };
  return { start: startNamed(kOp, 'init', name) };
}

/** The start with those of the texts of `--set` that are its settings. */
function startSettings(parsed: Arguments, start: AnyStart, texts: readonly string[]): AdapterStart {
  const defaults = start.defaults as Readonly<Record<string, unknown>>;
  const settings: Record<string, unknown> = {};
  for (const text of texts) {
    if (!Object.hasOwn(defaults, settingName(text) ?? '')) continue;
    const [setting, value] = readSetting(parsed, text, start.start, defaults);
    settings[setting] = value;
  }
  return { start, settings };
}

/** Folders and reports identify a method by its name only. */
function requireOwnName(parsed: Arguments, own: TrainedMethod): void {
  const known = adapterMethods.find(({ method }) => method === own.method);
  if (known === undefined || known.definition === own.definition) return;
  const expected = "a file whose method has a name that none of the library's has";
  throw parsed.refuse('adapter', expected, own.method);
}

/** A layer of a model is called with x only; other inputs come from a user's own training loop. */
function refuseInputs(parsed: Arguments, refused: TrainedMethod): LowrankError {
  const all = adapterMethods.includes(refused) ? adapterMethods : [refused, ...adapterMethods];
  const known = all.flatMap(({ method, definition: { inputs = [] } }) =>
    inputs.length === 0 ? [] : `${method} needs ${inputs.join(' and ')}`,
  );
  const expected =
    `a method that needs no input beside x (${known.join(', ')}: ` +
    'train these in a loop of your own that gives adapter.forward its inputs)';
  return parsed.refuse('adapter', expected, refused.method);
}

/**
 * The settings of a method from the command line.
 * @param alone options that the method lacks are rejected; with several methods they may belong to
 * another
 * @param texts of `--set`
 */
function settingsOf(
  parsed: Arguments,
  { method, definition }: TrainedMethod,
  alone: boolean,
  texts: readonly string[],
  {
    optimizer,
    rules: { rules },
  }: { readonly optimizer: AnyOptimizer; readonly rules: ChosenRules },
  init: AnyStart | undefined,
): Readonly<Record<string, unknown>> {
  const defaults = definition.defaults as Readonly<Record<string, unknown>>;
  const settings: Record<string, unknown> = {};
  const put = (option: string, setting: string, value: () => unknown) => {
    if (setting in defaults) settings[setting] = value();
    else if (alone && (parsed.text(option) !== undefined || parsed.flag(option))) {
      const known = Object.keys(defaults).join(', ') || 'none';
      const expected = `left out (${method} has no ${setting}; its settings: ${known})`;
      throw parsed.refuse(option, expected, parsed.text(option) ?? `--${option}`);
    }
  };
  const r = parsed.integer('rank', 8, 1, 4096);
  const positive = (value: number) => value > 0;
  put('rank', 'r', () => r);
  put('lora-alpha', 'loraAlpha', () =>
    parsed.number('lora-alpha', 2 * r, 'a positive number', positive),
  );
  put('rslora', 'rslora', () => parsed.flag('rslora'));
  put('dropout', 'dropout', () => parsed.number('dropout', 0, 'in [0, 1)', (p) => p >= 0 && p < 1));
  for (const text of texts) {
    const name = settingName(text);
    if (name !== undefined && Object.hasOwn(init?.defaults ?? {}, name)) continue;
    if (!alone && name !== undefined && !(name in defaults)) continue;
    if (name === undefined || !Object.hasOwn(defaults, name)) {
      const list = (all: object) => Object.keys(all).join(', ') || 'none';
      const ofRules = rules.map(
        ({ rule }) => ` or of the rule ${rule.rule} (${list(rule.defaults)})`,
      );
      const expected =
        `NAME=VALUE with a setting of ${method} (${list(defaults)}) ` +
        `or of the optimizer ${optimizer.optimizer} (${list(optimizer.defaults)})${ofRules.join('')}`;
      throw parsed.refuse('set', expected, text);
    }
    const [setting, value] = readSetting(parsed, text, method, defaults);
    settings[setting] = value;
  }
  return settings;
}
