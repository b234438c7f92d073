/**
 * The drop-in for TensorFlow.js (`lowrank/tfjs`).
 *
 * `loraLinear` is a differentiable LoRA layer over a frozen, possibly quantised weight. `applyLora` gives the dense
 * layers of a model adapters, and `loraDense` makes such a layer. `register` makes the matrix products of every TensorFlow.js program in this process run in these kernels.
 */

export {
  type Registered,
  type RegisterOptions,
  register,
  unregister,
} from './kernels/register.js';
export { registerMissing } from './kernels/register-missing.js';
export {
  type ApplyLoraOptions,
  applyLora,
  type LoraMemory,
  LoraModel,
} from './layers/apply-lora.js';
export type { LayerTargets, SkippedLayer } from './layers/find-layers.js';
export { type LoraConfig, useAdapterMethod } from './layers/lora-config.js';
export { type DenseConfig, LoraDense, loraDense } from './layers/lora-dense.js';
export { type AdapterLinearOptions, adapterLinear } from './ops/adapter-linear.js';
export { matMul } from './ops/batch-matmul.js';
export { fromTfjs, toTfjs } from './ops/convert.js';
export { type FrozenLinearOptions, frozenLinear } from './ops/frozen-linear.js';
export { type LoraLinearInput, type LoraLinearOptions, loraLinear } from './ops/lora-linear.js';
export { type Tensorflow, useTensorflow } from './ops/tensorflow.js';
