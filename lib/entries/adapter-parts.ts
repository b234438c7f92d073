/** What `lowrank` has of adapters, beside the methods: their definition, their layers, PEFT's folders. */

export type { AdapterDefinition } from '../adapters/definition/adapter.js';
export { Adapter } from '../adapters/definition/adapter.js';
export {
  type AdapterBackwardOptions,
  type AdapterForwardOptions,
  type AdapterGradients,
  AdapterSaved,
} from '../adapters/definition/adapter-saved.js';
export { type CheckAdapterOptions, checkAdapter } from '../adapters/definition/check.js';
export type {
  AdapterCall,
  AdapterMaker,
  AdapterSize,
  LayerPenalty,
  LayerSize,
} from '../adapters/definition/maker.js';
export type { MergedLayer } from '../adapters/definition/merge.js';
export {
  AdapterMethod,
  type AdapterPlace,
  type AnyMethod,
  defineAdapter,
} from '../adapters/definition/method.js';
export type { ModulePlace, PeftForm, StoredLayer } from '../adapters/definition/peft-form.js';
export type { SharedBy } from '../adapters/definition/sharing.js';
export {
  NormAdapter,
  type NormAdapterParts,
  type NormGradient,
  type NormGradients,
  type NormKind,
} from '../adapters/layers/norm-adapter.js';
export {
  OftImages,
  type OftImagesGradients,
  type OftImagesSpec,
} from '../adapters/layers/oft-images.js';
export { TokenRows, type TokenRowsParts } from '../adapters/layers/token-rows.js';
export { adapterMethods } from '../adapters/methods/adapter-methods.js';
export { activeTokens, invocationOffsets } from '../adapters/methods/low-rank/invocation.js';
export { type MontecloraLoss, montecloraLoss } from '../adapters/methods/low-rank/monteclora.js';
export {
  type ArrowExperts,
  type ArrowIteration,
  type ArrowOptions,
  arrowExperts,
  arrowPrototypes,
} from '../adapters/methods/mixture/arrow.js';
export { type ArrowFolders, arrowFromPeft } from '../adapters/peft/arrow-from-peft.js';
export { type ExpertsPlace, expertsFromPeft } from '../adapters/peft/experts.js';
export { type ExpertsParameter, expertsToPeft } from '../adapters/peft/experts-to-peft.js';
export { readAdapterFolder, writeAdapterFolder } from '../adapters/peft/folder.js';
export { adapterFromPeft, adaptersToPeft, methodOfPeft } from '../adapters/peft/peft.js';
export type { PeftFolder } from '../adapters/peft/peft-tensors.js';
