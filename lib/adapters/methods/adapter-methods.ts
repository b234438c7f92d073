import type { AnyMethod } from '../definition/method.js';
import * as all from './all.js';

/** Every method that comes with the library: what `all.ts` exports. */
export const adapterMethods: readonly AnyMethod[] = Object.values(all);
