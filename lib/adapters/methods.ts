import { adalora } from './adalora.js';
import { ia3, ia3Input } from './ia3.js';
import { kasa } from './kasa.js';
import { lora } from './lora.js';
import type { AdapterMethod } from './method.js';
import { vera } from './vera.js';

/** A method whatever its settings and tensors. */
export type AnyMethod = AdapterMethod<object, string, string, unknown>;

/** Every method that comes with the library. */
export const adapterMethods: readonly AnyMethod[] = [
  kasa,
  lora,
  adalora,
  ia3,
  ia3Input,
  vera,
] as unknown as readonly AnyMethod[];
