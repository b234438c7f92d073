import * as all from './all.js';
import type { AnyMethod } from './method.js';

/** Every method that comes with the library: what `all.ts` exports. */
export const adapterMethods: readonly AnyMethod[] = Object.values(all);
