/** Every rule of training that comes with the library. */

export { adalora } from './methods/adalora.js';
export { relora } from './methods/relora.js';
