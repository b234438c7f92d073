/** Checks of `defineAdapter` for mistakes that would show later, elsewhere, or not at all. */
import { fail, wrongType } from '../../core/errors.js';
import type { SharedBy } from './sharing.js';

const kOp = 'defineAdapter';

/** The required fields of a definition, with their types. */
const kNeeded = {
  method: 'a string',
  defaults: 'an object',
  shapes: 'a function',
  init: 'a function',
  forward: 'a function',
} as const;

/** Options of `create` besides the settings. A setting with one of these names would never arrive. */
export const kPlace: readonly string[] = [
  'inFeatures',
  'outFeatures',
  'seed',
  'device',
  'dtype',
  'weight',
  'module',
];

/** The layers between which a tensor can be shared. */
const kShared: readonly unknown[] = ['model', 'size', 'kind'] satisfies SharedBy[];

/** The method's name is also the name of a folder and of a table row, and is used on the command line. */
const kMethodName = /^[A-Za-z0-9][A-Za-z0-9_-]*$/;

/** @throws ERR_TYPE, ERR_VALUE */
export function checkDefinition(definition: unknown): void {
  if (definition === null || typeof definition !== 'object') {
    throw wrongType(kOp, 'definition', 'an object', definition);
  }
  const given = definition as Readonly<Record<string, unknown>>;
  for (const [field, expected] of Object.entries(kNeeded)) {
    const value = given[field];
    if (typeof value !== expected.split(' ')[1] || value === null) {
      throw wrongType(kOp, `definition.${field}`, expected, value);
    }
  }
  const { method, defaults, trained, frozen = [], inputs = [] } = given;
  if (!kMethodName.test(method as string)) {
    const expected = 'letters, digits, - and _, a letter or digit first (it names folders)';
    fail('ERR_VALUE', kOp, 'definition.method', expected, JSON.stringify(method));
  }
  for (const name of Object.keys(defaults as object)) {
    if (!kPlace.includes(name)) continue;
    const expected = `without settings named ${kPlace.join(', ')} (create takes those itself)`;
    fail('ERR_VALUE', kOp, 'definition.defaults', expected, `"${name}"`);
  }
  checkNames({ trained, frozen, inputs });
  checkShared(given.shared, [...(trained as string[]), ...(frozen as string[])]);
}

/** Each key names a tensor, and its value says between which layers the tensor is shared. */
function checkShared(shared: unknown, names: readonly string[]): void {
  if (shared === undefined) return;
  if (shared === null || typeof shared !== 'object') {
    throw wrongType(kOp, 'definition.shared', 'an object', shared);
  }
  for (const [name, by] of Object.entries(shared)) {
    if (!names.includes(name)) {
      const expected = `of the tensors in trained and frozen (${names.join(', ') || 'none'})`;
      fail('ERR_VALUE', kOp, 'definition.shared', expected, `"${name}"`);
    }
    if (!kShared.includes(by)) {
      const expected = `one of ${kShared.join(', ')}`;
      fail('ERR_VALUE', kOp, `definition.shared.${name}`, expected, `"${String(by)}"`);
    }
  }
}

/** Gradients are returned under these names, so each must be unique. */
function checkNames(lists: Readonly<Record<string, unknown>>): void {
  const taken = new Map([
    ['dx', 'the gradient of x'],
    ['dBias', 'the gradient of the bias'],
  ]);
  for (const [list, names] of Object.entries(lists)) {
    const field = `definition.${list}`;
    if (!Array.isArray(names)) throw wrongType(kOp, field, 'an array of names', names);
    for (const [i, name] of (names as unknown[]).entries()) {
      if (typeof name !== 'string') throw wrongType(kOp, `${field}[${i}]`, 'a string', name);
      const by = taken.get(name);
      if (by !== undefined) {
        const expected = 'a unique name';
        fail('ERR_VALUE', kOp, `${field}[${i}]`, expected, `"${name}", ${by}`);
      }
      taken.set(name, `which is in ${list}`);
    }
  }
}
