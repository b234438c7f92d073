/** The rules of `lowrank finetune --rule` and their settings. */

import type { AnyRule, ChosenRule } from '../../rules/definition/definition.js';
import { loadRule } from '../../rules/definition/load-rule.js';
import { ruleList, ruleNamed } from '../../rules/rules.js';
import type { Arguments } from '../command/arguments.js';
import { readSetting } from '../command/setting.js';

const kOp = 'finetune';

/** The rules of a run, in the order in which their hooks are called. */
export interface ChosenRules {
  readonly rules: readonly ChosenRule[];
  /** The files of rules that are not part of the library, by their names. */
  readonly files: Readonly<Record<string, string>>;
}

/**
 * The rules of `--rule`, separated by commas, and their files.
 * @throws UsageError · LowrankError `ERR_FILE`, `ERR_FILE_NOT_FOUND`, `ERR_VALUE`
 */
export async function readRules(parsed: Arguments): Promise<{
  readonly rules: readonly AnyRule[];
  readonly files: Readonly<Record<string, string>>;
}> {
  const given = parsed.text('rule');
  const rules: AnyRule[] = [];
  const files: Record<string, string> = {};
  for (const text of given === undefined ? [] : given.split(',')) {
    const name = text.trim();
    const own = /[./\\]/.test(name);
    const rule = own ? await loadRule(kOp, name) : ruleNamed(kOp, name);
    const known = ruleList.find((other) => other.rule === rule.rule);
    if (known !== undefined && known !== rule) {
      const expected = "a file whose rule has a name that none of the library's has";
      throw parsed.refuse('rule', expected, rule.rule);
    }
    if (own) files[rule.rule] = name;
    rules.push(rule);
  }
  return { rules, files };
}

/**
 * A rule with its settings.
 * @param texts of `--set`
 * @throws UsageError
 */
export function withSettings(
  parsed: Arguments,
  rule: AnyRule,
  texts: readonly string[],
): ChosenRule {
  const defaults = rule.defaults as Readonly<Record<string, unknown>>;
  const settings = texts.map((text) => readSetting(parsed, text, rule.rule, defaults));
  return { rule, settings: Object.fromEntries(settings) };
}
