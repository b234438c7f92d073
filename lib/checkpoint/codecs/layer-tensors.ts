import type { RawDType, RawTensor } from '../raw-tensor.js';

/** What the header of a file says about a tensor. */
export interface TensorInfo {
  readonly dtype: RawDType;
  readonly shape: readonly number[];
}

/**
 * The tensors of a layer by what follows its name: `qweight`, `weight_scale`, `weight.absmax`, or `_blocks`, which has no
 * dot before it.
 */
export type LayerTensors<T = RawTensor> = Readonly<Record<string, T>>;

/** `quantization_config` of a folder's config.json, or the content of its hf_quant_config.json. */
export type QuantizationConfig = Readonly<Record<string, unknown>>;
