import { adalora } from './adalora.js';
import { aflora } from './aflora.js';
import { beft } from './beft.js';
import { delora } from './delora.js';
import { denseMethods } from './dense.js';
import { dora } from './dora.js';
import { dylora } from './dylora.js';
import { fastLora } from './fast-lora.js';
import { ia3, ia3Input } from './ia3.js';
import { kadaptation } from './kadaptation.js';
import { kasa } from './kasa.js';
import { lLora } from './l-lora.js';
import { layeredLora } from './layered-lora.js';
import { lora } from './lora.js';
import { loraDropout } from './lora-dropout.js';
import { loraFa } from './lora-fa.js';
import { loraXs } from './lora-xs.js';
import { lotr } from './lotr.js';
import type { AdapterMethod } from './method.js';
import { hydralora, lily, loramoe, xlora } from './mixture.js';
import { moslora } from './moslora.js';
import { multilora } from './multilora.js';
import { poly } from './poly.js';
import { privateLora } from './private-lora.js';
import { randlora } from './randlora.js';
import { salora } from './salora.js';
import { sora } from './sora.js';
import { structuredMethods } from './structured.js';
import { tiedLora } from './tied-lora.js';
import { tinylora } from './tinylora.js';
import { alora, resloraInput, resloraMiddle, sibo } from './token-input.js';
import { vera } from './vera.js';

/** A method whatever its settings and tensors. */
export type AnyMethod = AdapterMethod<object, string, string, unknown>;

/** Every method that comes with the library. */
export const adapterMethods: readonly AnyMethod[] = [
  adalora,
  aflora,
  beft,
  delora,
  dora,
  ia3,
  ia3Input,
  kasa,
  lora,
  loraFa,
  loraXs,
  lotr,
  moslora,
  privateLora,
  randlora,
  sora,
  tiedLora,
  tinylora,
  vera,
  ...structuredMethods,
  ...denseMethods,
  alora,
  dylora,
  hydralora,
  kadaptation,
  lily,
  loramoe,
  multilora,
  poly,
  xlora,
  fastLora,
  layeredLora,
  lLora,
  salora,
  loraDropout,
  resloraInput,
  resloraMiddle,
  sibo,
] as unknown as readonly AnyMethod[];
