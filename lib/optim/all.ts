/** Every optimiser that comes with the library. */

export { adagrad } from './elementwise/adagrad.js';
export { adam } from './elementwise/adam.js';
export { adamw } from './elementwise/adamw.js';
export { ademamix } from './elementwise/ademamix.js';
export { lamb } from './elementwise/lamb.js';
export { lars } from './elementwise/lars.js';
export { lion } from './elementwise/lion.js';
export { rmsprop } from './elementwise/rmsprop.js';
export { scheduleFree } from './elementwise/schedule-free.js';
export { sgd } from './elementwise/sgd.js';
export { loraPlus } from './low-rank/lora-plus.js';
