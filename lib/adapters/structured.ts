import { bdlora } from './bdlora.js';
import { boft } from './boft.js';
import { c3a } from './c3a.js';
import { gralora } from './gralora.js';
import { hra } from './hra.js';
import { irQlora } from './ir-qlora.js';
import { krona } from './krona.js';
import { lokr } from './lokr.js';
import { melora } from './melora.js';
import { miss } from './miss.js';
import { mora } from './mora.js';
import { oft } from './oft.js';
import { psoft } from './psoft.js';
import { qalora } from './qalora.js';
import { road } from './road.js';

/** The methods that are built of blocks, reflections and rotations. */
export const structuredMethods = [
  bdlora,
  boft,
  c3a,
  gralora,
  hra,
  irQlora,
  krona,
  lokr,
  melora,
  miss,
  mora,
  oft,
  psoft,
  qalora,
  road,
] as const;
