import { fail, wrongType } from '../../core/errors.js';
import { ownFields } from '../../core/validate.js';
import type { AnyRule, RuleClaim, RuleDefinition } from './definition.js';

/** It is also used on the command line and in checkpoints. */
const kName = /^[A-Za-z0-9][A-Za-z0-9_-]*$/;

const kHooks = [
  ...[
    'check',
    'state',
    'prepare',
    'rate',
    'data',
    'before',
    'trains',
    'anchor',
    'skip',
    'mask',
    'gradients',
  ],
  ...['after', 'finish'],
] as const;
const kFlags = ['keepsGradients', 'resetsOptimizer', 'writesStates'] as const;
const kClaims: readonly RuleClaim[] = ['base', 'shapes', 'step', 'rate', 'data'];

/** What a hook does needs a claim. */
const kClaimOfHook: Readonly<Record<string, RuleClaim>> = {
  rate: 'rate',
  data: 'data',
  trains: 'step',
  skip: 'step',
};

/**
 * Checks and freezes a rule of one's own. See docs/training/rules.md.
 * @throws ERR_TYPE · ERR_VALUE
 * @example
 * const halve = defineRule({
 *   rule: 'halve', reference: 'none', defaults: { every: 100 }, claims: ['rate'],
 *   rate: ({ step, schedule, settings: { every } }) => schedule(step) * 0.5 ** Math.floor(step / every),
 * });
 */
export function defineRule<S extends object>(definition: RuleDefinition<S>): RuleDefinition<S> {
  const op = 'defineRule';
  const own = ownFields<object>(op, definition) as Record<string, unknown>;
  for (const name of ['rule', 'reference']) {
    if (typeof own[name] !== 'string') throw wrongType(op, name, 'a string', own[name]);
    if (own[name] === '') fail('ERR_VALUE', op, name, 'a text', 'an empty one');
  }
  if (!kName.test(own.rule as string)) {
    const expected = 'letters, digits, - and _, a letter or digit first';
    fail('ERR_VALUE', op, 'rule', expected, JSON.stringify(own.rule));
  }
  if (typeof own.defaults !== 'object' || own.defaults === null) {
    throw wrongType(op, 'defaults', 'an object of settings', own.defaults);
  }
  for (const name of kHooks) {
    if (own[name] === undefined || typeof own[name] === 'function') continue;
    throw wrongType(op, name, 'a function', own[name]);
  }
  for (const name of kFlags) {
    if (own[name] === undefined || typeof own[name] === 'boolean') continue;
    throw wrongType(op, name, 'a boolean', own[name]);
  }
  for (const name of ['claims', 'adapters']) {
    const value = own[name];
    if (value === undefined) continue;
    if (Array.isArray(value) && value.every((each) => typeof each === 'string')) continue;
    throw wrongType(op, name, 'an array of strings', value);
  }
  const claims = (own.claims ?? []) as readonly RuleClaim[];
  const other = claims.find((claim) => !kClaims.includes(claim));
  if (other !== undefined) {
    fail('ERR_VALUE', op, 'claims', `of ${kClaims.join(', ')}`, JSON.stringify(other));
  }
  for (const [hook, claim] of Object.entries(kClaimOfHook)) {
    if (own[hook] === undefined || claims.includes(claim)) continue;
    fail(
      'ERR_VALUE',
      op,
      'claims',
      `with "${claim}", because of ${hook}`,
      claims.join(', ') || 'none',
    );
  }
  return Object.freeze({
    ...definition,
    claims: Object.freeze([...claims]),
    defaults: Object.freeze({ ...definition.defaults }),
  });
}

/** Is this a result of `defineRule`, from this copy of the library or another? */
export function isRule(value: unknown): value is AnyRule {
  const rule = value as Partial<AnyRule> | null | undefined;
  return (
    typeof rule === 'object' &&
    rule !== null &&
    Object.isFrozen(rule) &&
    typeof rule.rule === 'string' &&
    typeof rule.defaults === 'object' &&
    Array.isArray(rule.claims)
  );
}
