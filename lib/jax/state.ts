/** What flows between the parts of a chain. */

import type { Structure } from './tree.js';

/** A function of jax-js between segments: (state, params, batch) => state. */
export type PureFunction = (state: unknown, params: unknown, batch: unknown) => unknown;

/** One array of the state between two parts. */
export interface StateLeaf {
  readonly shape: readonly number[];
  readonly dtype: string;
  /** Does the loss depend on a parameter through it? */
  readonly needsGradient: boolean;
}

/** The arrays between two parts. */
export interface State {
  readonly structure: Structure;
  readonly paths: readonly string[];
  readonly leaves: readonly StateLeaf[];
}
