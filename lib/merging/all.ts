/** Every way to merge that comes with the library, by name. */

export { fedavg } from './averages/fedavg.js';
export { ffa } from './averages/ffa.js';
export { flexlora } from './averages/flexlora.js';
export { hetlora } from './averages/hetlora.js';
export { stacking } from './averages/stacking.js';
export { cat } from './methods/cat.js';
export { compeft } from './methods/compeft.js';
export { dareLinear, dareLinearSvd, dareTies, dareTiesSvd } from './methods/dare.js';
export { ema } from './methods/ema.js';
export { knots } from './methods/knots.js';
export { linear } from './methods/linear.js';
export { magnitudePrune, magnitudePruneSvd } from './methods/magnitude-prune.js';
export { pem } from './methods/pem.js';
export { svd } from './methods/svd.js';
export { taskArithmetic } from './methods/task-arithmetic.js';
export { ties, tiesSvd } from './methods/ties.js';
