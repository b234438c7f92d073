/** Every optimiser that comes with the library. */

export { adamw } from './elementwise/adamw.js';
export { loraPlus } from './low-rank/lora-plus.js';
