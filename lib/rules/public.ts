/** What the library exports of rules. */

/** Every rule of training that comes with the library, by name: docs/training/rules.md. */
export * as rules from './all.js';
export { defineRule } from './definition/define.js';
export type {
  AnyRule,
  ChosenRule,
  RuleClaim,
  RuleDefinition,
} from './definition/definition.js';
export type {
  RuleAnchor,
  RuleBlock,
  RuleLayer,
  RuleOptimizer,
  RuleParameter,
  RulePass,
  RuleRate,
  RuleRun,
  RuleSizes,
  RuleStep,
  RuleUpdate,
} from './definition/run.js';
export { ruleList } from './rules.js';
