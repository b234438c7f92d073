/** What each method is tested with: the files of test/adapters/methods, one beside each file of methods. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import {
  type Adapter,
  type AdapterPlace,
  adapterMethods,
  type BaseWeight,
  type Tensor,
} from '../../lib/index.js';
import type { Formula } from '../oracle/adapter-layer.js';

export interface MethodSettings {
  readonly N: number;
  readonly K: number;
  readonly settings: Readonly<Record<string, unknown>>;
  readonly create: (place: AdapterPlace & Readonly<Record<string, unknown>>) => Adapter;
  /** Further inputs that a call needs: name to shape, for M rows. */
  readonly inputs?: Readonly<
    Record<string, (M: number, size: { N: number; K: number }) => readonly number[]>
  >;
  /** Of the differences; default 1/32. */
  readonly step?: number;
  /**
   * The forward pass with what the method holds constant in its gradients taken from `start`: what
   * differences are taken of.
   */
  readonly held?: (
    start: Adapter,
    w: BaseWeight,
  ) => (at: Readonly<Record<string, Tensor>>) => Tensor;
  /** Why a fresh adapter is not the base model, where it is not. */
  readonly startsElsewhere?: string;
}

export type Row = Partial<Omit<MethodSettings, 'create'>>;

/** What a file of tests exports, as `tests`. */
export interface MethodTests {
  /** The published formula of each method, written from the paper's matrices and not from the library's steps. */
  readonly formulas: Readonly<Record<string, Formula>>;
  /** Sizes that each method allows and settings small enough to differentiate; variants have a name behind a slash. */
  readonly cases: Readonly<Record<string, Row>>;
}

const folder = join(import.meta.dirname, 'methods');

/** The files of tests, `<family>/<file>.ts`. */
export const TEST_FILES: readonly string[] = readdirSync(folder, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .flatMap(({ name }) => readdirSync(join(folder, name)).map((file) => `${name}/${file}`))
  .sort();

const declared = await Promise.all(
  TEST_FILES.map(async (file) => {
    const { tests } = (await import(join(folder, file))) as { readonly tests: MethodTests };
    return tests;
  }),
);

/** The formula of every method, by its name. */
export const FORMULAS: Readonly<Record<string, Formula>> = Object.fromEntries(
  declared.flatMap(({ formulas }) => Object.entries(formulas)),
);

/** The settings of every case, by its name. */
export const CASES: Readonly<Record<string, Row>> = Object.fromEntries(
  declared.flatMap(({ cases }) => Object.entries(cases)),
);

/** What the suite runs: every method, and its variants behind a slash. */
export const METHOD_CASES: readonly string[] = adapterMethods.flatMap(({ method }) => [
  method,
  ...Object.keys(CASES).filter((name) => name.startsWith(`${method}/`)),
]);

/** @param name of {@link METHOD_CASES} */
export function settingsOf(name: string): MethodSettings {
  const method = name.split('/')[0];
  const found = adapterMethods.find((candidate) => candidate.method === method);
  const row = CASES[name];
  if (found === undefined || row === undefined) throw new Error(`no settings for ${name}`);
  return {
    N: 24,
    K: 32,
    settings: {},
    create: (place) => found.create(place as AdapterPlace) as unknown as Adapter,
    ...row,
  };
}
