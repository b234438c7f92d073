/** The public names. This file has no logic. */

/** Every published method that comes with the library, by name: docs/adapters.md. */
export * as adapters from './adapters/methods/all.js';
export { baseProduct } from './autograd/base-product.js';
export {
  type DenseUpdateOptions,
  denseUpdate,
  type WeightGradTilesOptions,
  weightGradTiles,
} from './autograd/dense-update.js';
export {
  type BackwardFunction,
  type BackwardPass,
  GradientTape,
  type Kept,
  Value,
} from './autograd/gradient-tape.js';
export type { Expert } from './autograd/mixture.js';
export type { AttentionValues } from './autograd/model/attention.js';
export type { ExpertsStep } from './autograd/model/experts.js';
export type { LossStep } from './autograd/model/loss.js';
export { ModelTape } from './autograd/model/model-tape.js';
export type { RmsNormStep } from './autograd/model/rms-norm.js';
export { layerNorm, type NormParts, rmsNorm } from './autograd/norm.js';
/** Quantisers that are trained: docs/quantization/trained-quantizers.md. */
export * from './autograd/quantizers.js';
export { SparsePattern, sparseUpdate } from './autograd/sparse-update.js';
export { Tape, type TapeDropout, type TapeOptions } from './autograd/tape.js';
export * from './collective/public.js';
export { CapturedStep, type CaptureOptions, captureStep } from './core/capture.js';
export {
  type Device,
  type DeviceInfo,
  defaultDevice,
  deviceInfo,
  devices,
  flush,
  flushSync,
  getThreads,
  launchCount,
  type MemoryUsage,
  memoryUsage,
  reserveWorkspace,
  resetPeakMemory,
  setThreads,
  synchronize,
  useStream,
  withStream,
  workspaceBytes,
} from './core/device.js';
export { DeviceSeed } from './core/device-seed.js';
export type { DType } from './core/dtype.js';
export { type ErrorCode, LowrankError, LowrankTypeError } from './core/errors.js';
export { FORMATS, type FormatInfo, type QuantFormat } from './core/formats.js';
export { full } from './core/full.js';
export { setMemoryBudget } from './core/memory-budget.js';
export type { RefusedSetting } from './core/refused-setting.js';
export { scope } from './core/scope.js';
export { Tensor, type TensorData, type TensorOptions } from './core/tensor.js';
export * from './entries/adapter-parts.js';
export * from './entries/checkpoint.js';
export { cholesky } from './linalg/tensors/cholesky.js';
export { qr } from './linalg/tensors/qr.js';
export { type SolveTriangularOptions, solveTriangular } from './linalg/tensors/solve-triangular.js';
export { type Svd, type SvdOptions, svd } from './linalg/tensors/svd.js';
export { symmetricEigen } from './linalg/tensors/symmetric-eigen.js';
/** Every way to merge adapters that comes with the library, by name: docs/merging.md. */
export * as merges from './merging/all.js';
export { type CombineAdaptersOptions, combineAdapters } from './merging/combine.js';
export {
  type AnyMerge,
  defineMerge,
  type LoraUpdate,
  type MergeCall,
  type MergeDefinition,
  type NextRandom,
} from './merging/definition/definition.js';
export { mergeMethods } from './merging/merge-methods.js';
export type { BaseFormat } from './model/base-format.js';
export type {
  AttentionConfig,
  DecoderConfig,
  DecoderLayerConfig,
  MlpConfig,
  NormConfig,
  RotaryConfig,
  RotaryScaling,
} from './model/config/decoder-config.js';
export {
  Decoder,
  type DecoderCall,
  type DecoderPass,
  type DecoderTokens,
} from './model/decoder.js';
export type {
  DecoderPlaces,
  LayerPlaces,
  LinearPlace,
  TensorPlace,
} from './model/decoder-tensors.js';
export { documentBegins } from './model/decoder-tokens.js';
export {
  type BaseMemory,
  DecoderWeights,
  type LayerWeights,
  type LinearWeights,
  type LoadOptions,
} from './model/decoder-weights.js';
export { ExpertsLora } from './model/expert-adapters.js';
export { type GenerateOptions, generate } from './model/generate.js';
export { GgufModel, openGgufModel } from './model/gguf/gguf-model.js';
export { openModel } from './model/gguf/open-model.js';
export { HfModel, openHfModel } from './model/hf-model.js';
export { KvCache, type KvCacheOptions } from './model/kv-cache.js';
export { LinearSource } from './model/linear-source.js';
export type { LlamaConfig } from './model/llama-config.js';
export { type DecoderAdapters, loadAdapters, loadDecoderAdapters } from './model/load-adapters.js';
export type { ModelFiles, OnTensor } from './model/model-files.js';
export type { SampleOptions } from './model/sample.js';
export type { BaseWeight } from './ops/base-weight.js';
export { blockMatmul, blockMatmulInputGrad, blockWeightGrad } from './ops/block-matmul.js';
export {
  type CheckGradientsOptions,
  checkGradients,
  type GradientReport,
} from './ops/check-gradients.js';
export type { ComputePrecision } from './ops/compute.js';
export {
  type CoreGradients,
  type CoreParts,
  CoreSaved,
  coreScale,
  coreScaleBackward,
} from './ops/core-scale.js';
export { denseRows, putRows, rowStep } from './ops/dense-rows.js';
export {
  MAP_KINDS,
  type MapKind,
  type MultiplyAddParts,
  mapTensor,
  multiplyAdd,
  sumProduct,
} from './ops/elementwise.js';
export {
  type CombineBackwardOptions,
  type CombineOptions,
  combineRows,
  combineRowsBackward,
} from './ops/experts/combine-rows.js';
export { ExpertRoute, type RouteOptions, routeRows } from './ops/experts/expert-route.js';
export {
  type ExpertsBackwardOptions,
  type ExpertsGradient,
  type ExpertsLoraFactors,
  type ExpertsOptions,
  type ExpertsResult,
  type ExpertsShape,
  expertsMatmul,
  expertsMatmulBackward,
} from './ops/experts/experts-matmul.js';
export {
  type GateSoftmax,
  type SelectExpertsOptions,
  type SelectedExperts,
  selectExperts,
  selectExpertsBackward,
} from './ops/experts/select-experts.js';
export {
  FeatureMap,
  type FeatureMapOptions,
  type FeatureMapSpec,
  type MapFeaturesOptions,
  mapFeatures,
} from './ops/feature-map.js';
export {
  type GatedActivationOptions,
  type GateKind,
  gatedActivation,
  gatedActivationBackward,
} from './ops/gated-activation.js';
export type {
  GroupedAdapterGradient,
  GroupedAdapterGradients,
  GroupedBackwardOptions,
  GroupedGradient,
  GroupedGradients,
  GroupedTargets,
} from './ops/grouped/grouped-backward.js';
export { type GroupedForwardOptions, GroupedLora } from './ops/grouped/grouped-lora.js';
export type { GroupedRow } from './ops/grouped/grouped-rows.js';
export { type GroupedEntry, GroupedSaved } from './ops/grouped/grouped-saved.js';
export { groupedWeight } from './ops/grouped-weight.js';
export { type ConvolutionSpec, Im2col, type ImageSizes } from './ops/im2col.js';
export {
  type ExpandWithNormsOptions,
  type FactoredNormParts,
  factoredNorm,
  loraExpandWithNorms,
  weightNorms,
} from './ops/lora/factored-norm.js';
export { LoraAdapter, type LoraInit, type LoraParts } from './ops/lora/lora-adapter.js';
export { LoraLinear } from './ops/lora/lora-layer.js';
export {
  type LoraBackwardOptions,
  type LoraForwardOptions,
  type LoraGradient,
  type LoraGradients,
  loraBackward,
  loraForward,
} from './ops/lora/lora-linear.js';
export {
  type LoraBackwardManyOptions,
  LoraManySaved,
  type LoraProjection,
  loraBackwardMany,
  loraForwardMany,
} from './ops/lora/lora-many.js';
export {
  type LoraDropoutOptions,
  type LoraExpandBackwardOptions,
  type LoraExpandGradient,
  type LoraExpandGradients,
  type LoraExpandOptions,
  type LoraShrinkBackwardOptions,
  type LoraShrinkGradient,
  type LoraShrinkGradients,
  type LoraShrinkOptions,
  loraExpand,
  loraExpandBackward,
  loraShrink,
  loraShrinkBackward,
} from './ops/lora/lora-parts.js';
export { LoraSaved } from './ops/lora/lora-saved.js';
export { LoraSwigluSaved, loraBackwardSwiglu, loraForwardSwiglu } from './ops/lora/lora-swiglu.js';
export {
  type MergeLoss,
  type MergeOptions,
  type MergeParts,
  type MergeResult,
  mergeLora,
  unmergeLora,
} from './ops/lora/merge.js';
export { matmul, matmulInputGrad } from './ops/matmul.js';
export {
  type AttentionBackwardOptions,
  type AttentionCache,
  type AttentionGradients,
  type AttentionInput,
  type AttentionOptions,
  type AttentionResult,
  type AttentionShape,
  attention,
  attentionBackward,
} from './ops/model/attention.js';
export { type EmbeddingOptions, embedding } from './ops/model/embedding.js';
export { Indices, type IndicesOptions } from './ops/model/indices.js';
export {
  type LinearCrossEntropyOptions,
  linearCrossEntropy,
} from './ops/model/linear-cross-entropy.js';
export {
  type RmsNormBackwardOptions,
  type RmsNormOptions,
  type RmsNormResult,
  rmsNormBackward,
  rmsNormForward,
} from './ops/model/rms-norm.js';
export { oneHot } from './ops/one-hot.js';
export { type AdamWStepOptions, adamwStep, globalNorm } from './ops/optimizer-step.js';
export { dequantize, type QuantizeOptions, quantize } from './ops/quantize.js';
export { swiglu, swigluBackward } from './ops/swiglu.js';
export { type WeightGradOptions, weightGrad } from './ops/weight-grad.js';
/** Every optimiser that comes with the library, by name: docs/training/optimizers.md. */
export * as optimizers from './optim/all.js';
export { defineOptimizer } from './optim/definition/define.js';
export type {
  AnyOptimizer,
  CapturedRate,
  HostPair,
  HostUpdate,
  OptimizerDefinition,
  OptimizerExtension,
  OptimizerStep,
  OptimizerTraits,
  PairedParameters,
  ParameterGroup,
  ParameterRole,
  ParameterUpdate,
  StateShape,
  TrainedParameter,
} from './optim/definition/definition.js';
export { type AdamwSettings, adamw } from './optim/elementwise/adamw.js';
export { optimizerList } from './optim/optimizers.js';
export type { GroupAffineState } from './quant/group-affine.js';
export { QuantizedWeight, type WeightFormat } from './quant/quantized-weight.js';
export * from './rules/public.js';
/** Every start of adapters that comes with the library, by name: docs/training/starts.md. */
export * as starts from './starts/all.js';
export type { OnBatch } from './starts/calibration/calibrate.js';
export { InputSums } from './starts/calibration/inputs.js';
export type { CalibrationData } from './starts/definition/calibration-data.js';
export {
  type AnyStart,
  defineStart,
  type LayerInputs,
  type RefusedStart,
  type StartCall,
  type StartDefinition,
  type StartFactors,
  type StartLayer,
  type StartModel,
  type StartSource,
} from './starts/definition/definition.js';
export { type StartLayerOptions, startLayer } from './starts/start-layer.js';
export { startMethods } from './starts/start-methods.js';
export { type ChosenStart, Starter, type StarterOptions } from './starts/starter.js';
export * from './statistics/all.js';
export type {
  SurveyChapter,
  SurveyGroup,
  SurveyRow,
  SurveyRun,
} from './survey/definition/definition.js';
export { surveyCommand, surveyGroups, surveyMethod, surveyMethods } from './survey/survey.js';
export type { Batch, Sequences, TrainingData } from './text/sequences.js';
export { SequenceSet } from './text/text-data.js';
export * from './train/public.js';
export { writeTrainedAdapter } from './trained/write-trained.js';
