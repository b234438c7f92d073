/** Every rule of training that comes with the library. */

export { relora } from './methods/relora.js';
