import { adamss } from './adamss.js';
import { deft } from './deft.js';
import { deftQr } from './deft-qr.js';
import { fourierft } from './fourierft.js';
import { frod } from './frod.js';
import { glora } from './glora.js';
import { hira } from './hira.js';
import { loha } from './loha.js';
import { osf } from './osf.js';
import { peanut } from './peanut.js';
import { pvera } from './pvera.js';
import { shira } from './shira.js';
import { supertuning } from './supertuning.js';
import { unilora } from './unilora.js';
import { vblora } from './vblora.js';
import { velora } from './velora.js';
import { waveft } from './waveft.js';

/** The methods whose update is dense, sparse, in another basis, or a function of the weight. */
export const denseMethods = [
  adamss,
  deft,
  deftQr,
  fourierft,
  frod,
  glora,
  hira,
  loha,
  osf,
  peanut,
  pvera,
  shira,
  supertuning,
  unilora,
  vblora,
  velora,
  waveft,
] as const;
