import type { AnyMethod } from '../definition/method.js';
import * as all from './all.js';

/** Every method that comes with the library: the exports of `all.ts`. */
export const adapterMethods: readonly AnyMethod[] = Object.values(all);
