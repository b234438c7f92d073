/** Trees of arrays, with the rules of jax-js: lists and plain objects branch, everything else is a leaf. */

import { fail, LowrankError, wrongType } from '../core/errors.js';
import { printable, printableText } from '../core/printable.js';
import type { JaxArray } from './jax.js';

/** How a tree branches, without its leaves. */
export type Structure =
  | 'leaf'
  | { readonly keys: readonly string[] | undefined; readonly items: readonly Structure[] };

/** A tree with its leaves in order. */
export interface FlatTree<Leaf = unknown> {
  readonly structure: Structure;
  readonly leaves: readonly Leaf[];
  /** Of each leaf: keys and indices, joined by dots; empty for a tree that is one leaf. */
  readonly paths: readonly string[];
}

/** What a leaf is called in a message. */
export function named(root: string, path: string): string {
  return path === '' ? root : `${root}.${printableText(path)}`;
}

const kMostDepth = 64;

/** @throws LowrankError `ERR_VALUE` for a tree deeper than 64 levels, which may be a circle */
export function flatten(op: string, root: string, tree: unknown): FlatTree {
  const leaves: unknown[] = [];
  const paths: string[] = [];
  const walk = (node: unknown, path: readonly string[]): Structure => {
    if (path.length > kMostDepth) {
      fail('ERR_VALUE', op, root, `a tree of at most ${kMostDepth} levels`, 'a deeper one');
    }
    if (Array.isArray(node)) {
      const items = node.map((item, at) => walk(item, [...path, String(at)]));
      return { keys: undefined, items };
    }
    if (typeof node === 'object' && node !== null && node.constructor === Object) {
      const keys = Object.keys(node);
      const items = keys.map((key) => walk((node as Record<string, unknown>)[key], [...path, key]));
      return { keys, items };
    }
    leaves.push(node);
    paths.push(path.join('.'));
    return 'leaf';
  };
  return { structure: walk(tree, []), leaves, paths };
}

/** The tree of this structure; `leafAt` gives the leaf of an index. */
export function unflatten(structure: Structure, leafAt: (index: number) => unknown): unknown {
  let next = 0;
  const build = (node: Structure): unknown => {
    if (node === 'leaf') return leafAt(next++);
    const { keys, items } = node;
    if (keys === undefined) return items.map(build);
    return Object.fromEntries(items.map((item, at) => [keys[at], build(item)]));
  };
  return build(structure);
}

/** Like {@link unflatten}, but a leaf is only asked for when a function reads it. A tree of one leaf is read at once. */
export function lazyTree(structure: Structure, leafAt: (index: number) => unknown): unknown {
  let next = 0;
  const define = (target: object, key: string | number, node: Structure): void => {
    if (node === 'leaf') {
      const index = next++;
      const get = () => leafAt(index);
      Object.defineProperty(target, key, { get, enumerable: true, configurable: true });
    } else {
      (target as Record<string | number, unknown>)[key] = build(node);
    }
  };
  const build = ({ keys, items }: Exclude<Structure, 'leaf'>): object => {
    const target: object = keys === undefined ? [] : {};
    for (const [at, item] of items.entries()) define(target, keys?.[at] ?? at, item);
    return target;
  };
  return structure === 'leaf' ? leafAt(0) : build(structure);
}

/** Is it an array of jax-js, or a tracer of one? */
export function isJaxArray(value: unknown): value is JaxArray {
  if (typeof value !== 'object' || value === null) return false;
  const { shape, dtype, dispose } = value as Partial<JaxArray>;
  // A tensor of this library has the other three.
  if (!('ref' in value)) return false;
  return Array.isArray(shape) && typeof dtype === 'string' && typeof dispose === 'function';
}

/**
 * Checks for a tree of live arrays.
 * @param uses how many references a call consumes of each array; counted on
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_DISPOSED`, `ERR_VALUE`
 */
export function checkArrays(
  op: string,
  root: string,
  tree: unknown,
  uses: Map<JaxArray, number> = new Map(),
): FlatTree<JaxArray> {
  const flat = flatten(op, root, tree);
  for (const [at, leaf] of flat.leaves.entries()) {
    const name = named(root, flat.paths[at] ?? '');
    if (!isJaxArray(leaf)) throw wrongType(op, name, 'an array of jax-js', leaf);
    if (typeof leaf.refCount !== 'number') {
      fail('ERR_UNSUPPORTED', op, name, 'an array with values', 'a tracer (inside jit or grad)');
    }
    const used = (uses.get(leaf) ?? 0) + 1;
    uses.set(leaf, used);
    if (leaf.refCount < used) {
      const expected = 'a live array (pass x.ref to keep x)';
      const actual = `one with ${leaf.refCount} references, used ${used} times`;
      fail('ERR_DISPOSED', op, name, expected, actual);
    }
  }
  return flat as FlatTree<JaxArray>;
}

/** The index of the leaf at a path. @throws LowrankError `ERR_VALUE`, which lists the paths */
export function leafAtPath(op: string, operand: string, path: string, flat: FlatTree): number {
  const at = flat.paths.indexOf(path);
  if (at >= 0) return at;
  const some = flat.paths.slice(0, 12).map((name) => printable(name));
  const more = flat.paths.length > some.length ? ', ...' : '';
  const text = `${op}: ${operand} must be the path of an array in params (${some.join(', ')}${more}), got ${printable(path)}`;
  throw new LowrankError('ERR_VALUE', text, { op });
}
