import type { AnyDefinition } from './adapter.js';
import * as all from './all.js';
import type { AdapterMethod } from './method.js';

/** A method whatever its settings and tensors: every {@link AdapterMethod} is one. */
export interface AnyMethod
  extends Omit<AdapterMethod<object, string, string, unknown>, 'definition'> {
  readonly definition: AnyDefinition;
}

/** Every method that comes with the library: what `all.ts` exports. */
export const adapterMethods: readonly AnyMethod[] = Object.values(all);
