/**
 * The drop-in for TensorFlow.js (`lowrank/tfjs`).
 *
 * `loraLinear` is a differentiable LoRA layer over a frozen, possibly quantised weight. `register`
 * makes the matrix products of every TensorFlow.js program in this process run in these kernels.
 */

export { type AdapterLinearOptions, adapterLinear } from './adapter-linear.js';
export { matMul } from './batch-matmul.js';
export { fromTfjs, toTfjs } from './convert.js';
export { type FrozenLinearOptions, frozenLinear } from './frozen-linear.js';
export { type LoraLinearInput, type LoraLinearOptions, loraLinear } from './lora-linear.js';
export { type RegisterOptions, register, unregister } from './register.js';
export { type Tensorflow, useTensorflow } from './tensorflow.js';
