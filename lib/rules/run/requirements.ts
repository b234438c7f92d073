/** Refuses rules that do not fit each other or the run, before it starts. */

import { fail, LowrankError, wrongType } from '../../core/errors.js';
import { settingsOver } from '../../core/settings.js';
import type { AnyOptimizer } from '../../optim/definition/definition.js';
import { isRule } from '../definition/define.js';
import type { AnyRule, ChosenRule, RuleClaim } from '../definition/definition.js';
import type { RuleSizes } from '../definition/run.js';

/** What rules are used with. */
export interface RuleSurroundings {
  /** Name of the adapters' method. */
  readonly method: string;
  /** Settings of the method. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Name of a start that replaces the base. */
  readonly replacingStart?: string | undefined;
  readonly optimizer: AnyOptimizer;
  /** Does the run adapt layers of experts? */
  readonly experts: boolean;
  /** A layer that the files hold quantised, and how. */
  readonly quantized?: readonly [module: string, layout: string] | undefined;
  /** What of the run has steps that no rule knows, as a setting: `privacy`, `dpoBeta`. */
  readonly alone?: string | undefined;
}

/** The setting of a run whose steps no rule knows, if it has one. */
export const aloneOf = (train: { readonly privacy?: object; readonly dpoBeta?: number }) =>
  (['privacy', 'dpoBeta'] as const).find((name) => train[name] !== undefined);

const kClaimed: Readonly<Record<RuleClaim, string>> = {
  base: 'the base',
  shapes: 'the ranks',
  step: 'what a step changes',
  rate: 'the learning rate',
  data: 'the sequences of a step',
};

/**
 * The settings of each rule over its defaults, complete.
 * @throws ERR_VALUE, ERR_TYPE for settings, and for a rule that is named twice · ERR_UNSUPPORTED for two that claim the same,
 * and for what does not go together
 */
export function requireRules(
  op: string,
  rules: readonly ChosenRule[],
  sizes: RuleSizes,
  around: RuleSurroundings,
): readonly Readonly<Record<string, unknown>>[] {
  const [first] = rules;
  if (first !== undefined && around.alone !== undefined) {
    fail('ERR_UNSUPPORTED', op, 'rules', `left out with ${around.alone}`, first.rule.rule);
  }
  const claimed = new Map<RuleClaim, string>();
  const names = new Set<string>();
  for (const [i, { rule }] of rules.entries()) {
    if (!isRule(rule)) throw wrongType(op, `rules[${i}].rule`, 'what defineRule returns', rule);
    if (names.has(rule.rule))
      fail('ERR_VALUE', op, 'rules', 'named once each', `${rule.rule} twice`);
    names.add(rule.rule);
    requireFitting(op, rule, around);
    for (const claim of rule.claims ?? []) {
      const other = claimed.get(claim);
      if (other !== undefined) {
        const text =
          `${op}: only one rule may take ${kClaimed[claim]}, got ${other} and ${rule.rule}. ` +
          'Leave one of them out';
        throw new LowrankError('ERR_UNSUPPORTED', text, { op });
      }
      claimed.set(claim, rule.rule);
    }
  }
  return rules.map(({ rule, settings }) => {
    const defaults = rule.defaults as Readonly<Record<string, unknown>>;
    const check = (own: object) => rule.check?.(own, sizes);
    return Object.freeze(
      settingsOver(op, `the rule ${rule.rule}`, { defaults, check }, settings ?? {}),
    );
  });
}

function requireFitting(op: string, rule: AnyRule, around: RuleSurroundings): void {
  const { method, config, replacingStart, optimizer, experts, quantized } = around;
  const { rule: name, adapters, claims = [], resetsOptimizer } = rule;
  if (adapters !== undefined && !adapters.includes(method)) {
    const expected = `one of ${adapters.join(', ')}, which the rule ${name} is for`;
    fail('ERR_UNSUPPORTED', op, 'the adapter', expected, method);
  }
  if (resetsOptimizer === true && optimizer.evaluated !== undefined) {
    const expected = `one that evaluates what it trains, because the rule ${name} starts it anew`;
    fail('ERR_UNSUPPORTED', op, 'the optimizer', expected, optimizer.optimizer);
  }
  if (!claims.includes('base')) return;
  const merging = `because the rule ${name} merges into the base`;
  if (replacingStart !== undefined) {
    fail(
      'ERR_UNSUPPORTED',
      op,
      'the start',
      `one that leaves the base, ${merging}`,
      replacingStart,
    );
  }
  if (config.loraBias === true) {
    fail('ERR_UNSUPPORTED', op, 'loraBias', `false, ${merging}`, 'true');
  }
  if (experts) {
    fail('ERR_UNSUPPORTED', op, 'targets', `linear layers, ${merging}`, 'layers of experts');
  }
  if (quantized !== undefined) {
    const [module, layout] = quantized;
    const expected = `dense in the files, ${merging}`;
    fail('ERR_UNSUPPORTED', op, 'the model', expected, `${module} as ${layout}`);
  }
}
