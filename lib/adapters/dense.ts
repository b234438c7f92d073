import { deft } from './deft.js';
import { fourierft } from './fourierft.js';
import { glora } from './glora.js';
import { hira } from './hira.js';
import { loha } from './loha.js';
import { peanut } from './peanut.js';
import { shira } from './shira.js';
import { supertuning } from './supertuning.js';
import { unilora } from './unilora.js';
import { vblora } from './vblora.js';
import { waveft } from './waveft.js';

/** The methods whose update is dense, sparse, in another basis, or a function of the weight. */
export const denseMethods = [
  deft,
  fourierft,
  glora,
  hira,
  loha,
  peanut,
  shira,
  supertuning,
  unilora,
  vblora,
  waveft,
] as const;
