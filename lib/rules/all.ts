/** Every rule of training that comes with the library. */

export { adalora } from './methods/adalora.js';
export { cola } from './methods/cola.js';
export { periodicLora } from './methods/periodic-lora.js';
export { relora } from './methods/relora.js';
