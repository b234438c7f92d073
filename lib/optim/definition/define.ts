import { fail, wrongType } from '../../core/errors.js';
import { ownFields } from '../../core/validate.js';
import type { AnyOptimizer, OptimizerDefinition, OptimizerExtension } from './definition.js';

/** It is also used on the command line and in checkpoints. */
const kName = /^[A-Za-z0-9][A-Za-z0-9_-]*$/;

const kSteps = ['step', 'update', 'updatePairs'] as const;
/** What is called with arrays of the host in each step. */
const kHostSteps = ['update', 'updatePairs', 'gradient', 'precondition', 'after'] as const;
const kFunctions = ['state', 'group', 'check', 'step', 'evaluated', ...kHostSteps] as const;
const kFlags = ['capturable', 'clips'] as const;

/**
 * Checks and freezes an optimiser of one's own. See docs/training/optimizers.md.
 * @throws ERR_TYPE · ERR_VALUE
 * @example
 * const sgd = defineOptimizer({
 *   optimizer: 'plain-sgd', reference: 'Robbins and Monro, 1951', defaults: {}, state: () => ({}),
 *   update: ({ p, g, lr }) => { for (let i = 0; i < p.length; i++) p[i] -= lr * g[i]; },
 * });
 * @example
 * const slowUp = defineOptimizer({
 *   optimizer: 'slow-up', reference: 'none', base: adamw, defaults: { share: 0.5 },
 *   group: ({ role }, { share }) => ({ rate: role === 'up' ? share : 1 }),
 * });
 */
export function defineOptimizer<S extends object, B extends object>(
  definition: OptimizerExtension<S, B>,
): OptimizerDefinition<S & B>;
export function defineOptimizer<S extends object, N extends string = string>(
  definition: OptimizerDefinition<S, N>,
): OptimizerDefinition<S, N>;
export function defineOptimizer(definition: object): AnyOptimizer {
  const op = 'defineOptimizer';
  const own = ownFields<object>(op, definition) as Record<string, unknown>;
  for (const name of ['optimizer', 'reference']) {
    const text = own[name];
    if (typeof text !== 'string') throw wrongType(op, name, 'a string', text);
    if (text === '') fail('ERR_VALUE', op, name, 'a text', 'an empty one');
  }
  if (!kName.test(own.optimizer as string)) {
    const expected = 'letters, digits, - and _, a letter or digit first';
    fail('ERR_VALUE', op, 'optimizer', expected, JSON.stringify(own.optimizer));
  }
  if (typeof own.defaults !== 'object' || own.defaults === null) {
    throw wrongType(op, 'defaults', 'an object of settings', own.defaults);
  }
  for (const name of kFunctions) {
    if (own[name] !== undefined && typeof own[name] !== 'function') {
      throw wrongType(op, name, 'a function', own[name]);
    }
  }
  for (const name of kFlags) {
    if (own[name] !== undefined && typeof own[name] !== 'boolean') {
      throw wrongType(op, name, 'a boolean', own[name]);
    }
  }
  if (own.base !== undefined && !isOptimizer(own.base)) {
    throw wrongType(op, 'base', 'what defineOptimizer returns', own.base);
  }
  if (own.schedule !== undefined && own.schedule !== 'constant') {
    fail('ERR_VALUE', op, 'schedule', 'constant, or left out', String(own.schedule));
  }
  if (own.rate !== undefined && !(typeof own.rate === 'number' && own.rate > 0)) {
    fail('ERR_VALUE', op, 'rate', 'a number above 0', String(own.rate));
  }
  return whole(op, own);
}

/** With what it takes from its base. */
function whole(op: string, own: Record<string, unknown>): AnyOptimizer {
  const { base, ...rest } = own as { base?: AnyOptimizer };
  const made = { ...base, ...rest } as Record<string, unknown>;
  if (typeof made.state !== 'function') throw wrongType(op, 'state', 'a function', made.state);
  if (!kSteps.some((name) => made[name] !== undefined)) {
    throw wrongType(op, 'step', 'a function (or update, or updatePairs)', made.step);
  }
  if (made.step !== undefined && (made.update ?? made.updatePairs) !== undefined) {
    fail('ERR_VALUE', op, 'step', 'left out beside update and updatePairs', 'a function');
  }
  if (made.updatePairs !== undefined && made.update === undefined) {
    fail('ERR_VALUE', op, 'update', 'a function, for what is in no pair', 'none');
  }
  const host = kHostSteps.some((name) => made[name] !== undefined);
  if (host && own.capturable === true) {
    fail('ERR_VALUE', op, 'capturable', 'false with functions over arrays of the host', 'true');
  }
  return Object.freeze({
    ...made,
    capturable: made.capturable === true && !host,
    defaults: Object.freeze({ ...base?.defaults, ...(own.defaults as object) }),
  }) as unknown as AnyOptimizer;
}

/** Is this a result of `defineOptimizer`, from this copy of the library or another? */
export function isOptimizer(value: unknown): value is AnyOptimizer {
  const optimizer = value as Partial<AnyOptimizer> | null | undefined;
  return (
    typeof optimizer === 'object' &&
    optimizer !== null &&
    Object.isFrozen(optimizer) &&
    typeof optimizer.optimizer === 'string' &&
    typeof optimizer.state === 'function' &&
    typeof optimizer.defaults === 'object'
  );
}
