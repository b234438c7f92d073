/**
 * The parts of `@jax-js/jax` that this folder uses, as structural types, and the installed copy.
 *
 * jax-js is an optional peer. It has an ES module and a CommonJS build with classes of their own, so the
 * copy that made the caller's arrays is the one to use.
 */

import { createRequire } from 'node:module';
import { fail, LowrankError, refusal, wrongType } from '../core/errors.js';

/** An array of jax-js, as far as this library needs it. */
export interface JaxArray {
  readonly shape: readonly number[];
  readonly dtype: string;
  readonly device: string;
  readonly refCount: number;
  /** The array itself, with one more reference. */
  readonly ref: JaxArray;
  dispose(): void;
  /** Consumes a reference. */
  data(): Promise<unknown>;
  /** Consumes a reference. */
  dataSync(): unknown;
}

/** An array, or lists and plain objects of arrays, as in jax-js. */
export type JaxTree = JaxArray | readonly JaxTree[] | { readonly [key: string]: JaxTree };

/** The type of the arrays in a tree. */
export type LeafOf<T> = T extends JaxArray
  ? T
  : T extends readonly (infer Item)[]
    ? LeafOf<Item>
    : T extends object
      ? LeafOf<T[keyof T]>
      : never;

/** A function of jax-js over lists of arrays. */
export type JaxFunction = (...lists: readonly JaxArray[][]) => JaxArray[];

/** The namespace object of `@jax-js/jax`, as far as this library needs it. */
export interface Jax {
  readonly Array: unknown;
  readonly numpy: {
    array(values: Float32Array, options: { shape: number[]; device: string }): JaxArray;
    zeros(shape: number[], options?: { device?: string }): JaxArray;
    add(a: JaxArray, b: JaxArray): JaxArray;
    multiply(a: JaxArray, b: number): JaxArray;
  };
  jit(f: JaxFunction): JaxFunction & { dispose(): void };
  vjp(
    f: JaxFunction,
    primals: readonly JaxArray[][],
  ): [JaxArray[], ((cotangents: JaxArray[]) => JaxArray[][]) & { dispose(): void }];
  valueAndGrad(
    f: (...lists: readonly JaxArray[][]) => JaxArray,
    options: { argnums: number[] },
  ): (...lists: readonly JaxArray[][]) => [JaxArray, JaxArray[][]];
  makeJaxpr(
    f: JaxFunction,
  ): (...lists: readonly JaxArray[][]) => { readonly jaxpr: { dispose(): void } };
}

const kPackage = '@jax-js/jax';
/** The copy that {@link useJax} set comes first, then the copies that were found. */
const copies: Jax[] = [];
let chosen: Jax | undefined;

/**
 * Makes this module use the given jax-js, for programs whose copy `import` cannot find (bundles,
 * several versions at once).
 *
 * @param jax the namespace object of `@jax-js/jax`
 * @throws TypeError `ERR_TYPE`
 * @example
 * import * as jax from '@jax-js/jax';
 * import { useJax } from 'lowrank/jax';
 * useJax(jax);
 */
export function useJax(jax: object): void {
  const { vjp, jit } = (jax ?? {}) as Partial<Jax>;
  if (typeof vjp !== 'function' || typeof jit !== 'function') {
    throw wrongType('useJax', 'jax', `the namespace object of ${kPackage}`, jax);
  }
  chosen = jax as Jax;
}

/**
 * The jax-js whose arrays these are.
 * @throws LowrankError `ERR_UNSUPPORTED` if none is installed, `ERR_VALUE` for arrays of another copy
 */
export async function jaxOf(op: string, arrays: readonly JaxArray[]): Promise<Jax> {
  const [first] = arrays;
  const made = (jax: Jax) => first === undefined || isMadeBy(jax, first);
  const known = chosen === undefined ? copies.find(made) : chosen;
  if (known !== undefined && made(known)) return known;
  if (chosen === undefined) {
    for (const load of [importCopy, requireCopy]) {
      const jax = await load();
      if (jax === undefined) continue;
      if (!copies.includes(jax)) copies.push(jax);
      if (made(jax)) return jax;
    }
  }
  if (chosen === undefined && copies.length === 0) {
    const expected = 'installed (npm install @jax-js/jax)';
    const text = refusal(op, `the peer dependency ${kPackage}`, expected, 'no such package');
    throw new LowrankError('ERR_UNSUPPORTED', text, { op });
  }
  const expected = `made by the ${kPackage} that useJax sets or that is installed`;
  return fail('ERR_VALUE', op, 'params and batch', expected, 'arrays of another copy');
}

/** Is it an array of that copy of jax-js? */
function isMadeBy({ Array: ArrayClass }: Jax, array: JaxArray): boolean {
  return typeof ArrayClass === 'function' && array instanceof ArrayClass;
}

async function importCopy(): Promise<Jax | undefined> {
  try {
    return (await import('@jax-js/jax')) as unknown as Jax;
  } catch {
    return undefined;
  }
}

function requireCopy(): Jax | undefined {
  try {
    return createRequire(import.meta.url)(kPackage) as Jax;
  } catch {
    return undefined;
  }
}
