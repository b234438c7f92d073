/**
 * The drop-in for jax-js (`lowrank/jax`).
 *
 * `chain` joins pure functions of jax-js with layers whose forward and backward passes run in this library's kernels:
 * jax-js has no custom gradients, so the graph is cut at the layers.
 */

export { type AdapterLinearOptions, adapterLinear } from './adapter-linear.js';
export { type Chain, type ChainOptions, type ChainPart, chain } from './chain.js';
export { type JaxArray, type JaxTree, type LeafOf, useJax } from './jax.js';
export { type LoraLinearOptions, loraLinear } from './lora-linear.js';
export {
  branches,
  type LayerCall,
  type LayerGradients,
  type Segment,
  type SegmentLayer,
  type Shapes,
  segment,
} from './segment.js';
export type { WeightOptions } from './weights.js';
