import * as all from './all.js';
import type { AdapterMethod } from './method.js';

/** A method whatever its settings and tensors. */
export type AnyMethod = AdapterMethod<object, string, string, unknown>;

/** Every method that comes with the library: what `all.ts` exports. */
export const adapterMethods: readonly AnyMethod[] = Object.values(
  all,
) as unknown as readonly AnyMethod[];
