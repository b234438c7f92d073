import { deft } from './deft.js';
import { glora } from './glora.js';
import { hira } from './hira.js';
import { loha } from './loha.js';
import { peanut } from './peanut.js';

/** The methods whose update is a function of the weight, or dense and made tile by tile. */
export const denseMethods = [deft, glora, hira, loha, peanut] as const;
