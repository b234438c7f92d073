/** Every rule of training that comes with the library. */

export { adalora } from './methods/adalora.js';
export { aflora } from './methods/aflora.js';
export { alora } from './methods/alora.js';
export { autolora } from './methods/autolora.js';
export { bilora } from './methods/bilora.js';
export { cola } from './methods/cola.js';
export { doraDynamic } from './methods/dora-dynamic.js';
export { dropbp } from './methods/dropbp.js';
export { dylora } from './methods/dylora.js';
export { gsLora } from './methods/gs-lora.js';
export { iLora } from './methods/i-lora.js';
export { increlora } from './methods/increlora.js';
export { loraDrop } from './methods/lora-drop.js';
export { lte } from './methods/lte.js';
export { periodicLora } from './methods/periodic-lora.js';
export { relora } from './methods/relora.js';
