/** `lowrank/checkpoint`, all of it also in `lowrank`: safetensors, GGUF, PEFT's adapters, quantised layers. */

export {
  type BitsandbytesState,
  joinBitsandbytes,
  type SplitBitsandbytes,
  splitBitsandbytes,
} from '../checkpoint/bitsandbytes/bitsandbytes.js';
export type { AwqLayout } from '../checkpoint/codecs/awq.js';
export type { BitsandbytesLayout, LlmInt8Layout } from '../checkpoint/codecs/bitsandbytes.js';
export type { PlanarLayer } from '../checkpoint/codecs/codec.js';
export type {
  IntegersLayout,
  PackedIntegersLayout,
} from '../checkpoint/codecs/compressed-integers.js';
export type { Fp8Layout } from '../checkpoint/codecs/fp8.js';
export type { GptqLayout } from '../checkpoint/codecs/gptq.js';
export type { HqqLayout } from '../checkpoint/codecs/hqq.js';
export type {
  LayerTensors,
  QuantizationConfig,
  TensorInfo,
} from '../checkpoint/codecs/layer-tensors.js';
export type { GptOssLayout, PackedMxfp4Layout } from '../checkpoint/codecs/mxfp4.js';
export type { ModeloptNvfp4Layout, PackedNvfp4Layout } from '../checkpoint/codecs/nvfp4.js';
export {
  quantizedLayers,
  readQuantizedLayer,
  writeQuantizedLayer,
} from '../checkpoint/codecs/quantized-layers.js';
export type {
  LayoutName,
  QuantizedLayers,
  QuantizedLayerTensors,
  QuantizedLayout,
} from '../checkpoint/codecs/registry.js';
export type { GgufAdapterBase, GgufAdapterHeads } from '../checkpoint/gguf/adapter/base.js';
export { ggufToAdapter } from '../checkpoint/gguf/adapter/from-gguf.js';
export {
  type AdapterToGgufOptions,
  adapterToGguf,
  type GgufAdapterContent,
  type GgufAdapterType,
} from '../checkpoint/gguf/adapter/to-gguf.js';
export { GGUF_TYPES, type GgufType, type GgufTypeInfo } from '../checkpoint/gguf/block-types.js';
export type { GgufBlockType } from '../checkpoint/gguf/blocks/parts.js';
export { type GgufWeight, ggufToPlanar, planarToGguf } from '../checkpoint/gguf/blocks/planar.js';
export {
  GgufFile,
  type GgufTensor,
  type GgufTensorInfo,
  ggufToFloat32,
  type OpenGgufOptions,
  openGguf,
} from '../checkpoint/gguf/gguf.js';
export {
  ggufArchitectures,
  ggufToHf,
  type HeadCount,
  hfToGguf,
  type TensorPlace as GgufTensorPlace,
} from '../checkpoint/gguf/names.js';
export {
  type QuantizeToGgufOptions,
  quantizeToGguf,
} from '../checkpoint/gguf/quantize/quantize.js';
export { type PermuteRowsOptions, permuteGgufRows } from '../checkpoint/gguf/rows.js';
export type { GgufArray, GgufValue } from '../checkpoint/gguf/values.js';
export {
  encodeGguf,
  type GgufContent,
  type GgufTensorSource,
  writeGguf,
} from '../checkpoint/gguf/write.js';
export {
  type PeftAdapter,
  type PeftModule,
  type ReadPeftOptions,
  readPeftAdapter,
} from '../checkpoint/peft/peft.js';
export type { PeftLoraConfig } from '../checkpoint/peft/peft-config.js';
export { type PeftAdapterParts, writePeftAdapter } from '../checkpoint/peft/peft-write.js';
export { planarToFloat32 } from '../checkpoint/planar/decode.js';
export type {
  Grid as PlanarGrid,
  PlanarWeight,
  PlaneValues,
  ScalePlane,
  ZeroPlane,
} from '../checkpoint/planar/planar-weight.js';
export type { IntegerFormat, PlanarFormat } from '../checkpoint/quantize/formats.js';
export type { QuantizePlanarOptions, ScaleStrategy } from '../checkpoint/quantize/options.js';
export { quantizeLayer, quantizePlanar } from '../checkpoint/quantize/quantize.js';
export { requantizePlanar } from '../checkpoint/quantize/requantize.js';
export { NumpyRandom } from '../checkpoint/random/numpy-random.js';
export { TorchRandom } from '../checkpoint/random/torch-random.js';
export { type RawTensor, rawToFloat32 } from '../checkpoint/raw-tensor.js';
export {
  openSafetensors,
  readSafetensors,
  type SafetensorsContent,
  SafetensorsFile,
} from '../checkpoint/safetensors.js';
export type { HeaderLimits } from '../checkpoint/safetensors-header.js';
export {
  encodeSafetensors,
  type RawTensors,
  writeSafetensors,
} from '../checkpoint/safetensors-write.js';
