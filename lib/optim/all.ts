/** Every optimiser that comes with the library. */

export { flora } from './dense/flora.js';
export { galore } from './dense/galore.js';
export {
  adagrad8bit,
  adamw8bit,
  ademamix8bit,
  lion8bit,
  rmsprop8bit,
  sgd8bit,
} from './eight-bit/optimizers.js';
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
export { gsLora } from './low-rank/gs-lora.js';
export { loraFa } from './low-rank/lora-fa.js';
export { loraPlus } from './low-rank/lora-plus.js';
export { loraPro, loraProFull } from './low-rank/lora-pro.js';
export { loraRite } from './low-rank/lora-rite.js';
export { loraSp } from './low-rank/lora-sp.js';
export { riemannian, riemannianSgd } from './low-rank/riemannian.js';
export { sora } from './low-rank/sora.js';
export { star } from './low-rank/star.js';
export { tSignSgd } from './low-rank/t-sign-sgd.js';
