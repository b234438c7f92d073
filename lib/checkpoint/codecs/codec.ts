import type { PlanarWeight } from '../planar/planar-weight.js';
import type { LayerReader } from './layer-reader.js';
import type { LayerTensors, QuantizationConfig, TensorInfo } from './layer-tensors.js';

/** A quantised weight, and what its layout keeps beside it. */
export interface PlanarLayer<L = unknown> {
  readonly weight: PlanarWeight;
  readonly layout: L;
}

/**
 * A layout in which checkpoints keep quantised weights. `read` and `write` are exact opposites:
 * `write(read(layer))` has the layer's bytes.
 *
 * @typeParam L what a layer's tensors say beside the weight (versions, dtypes, packing), which `write` needs
 */
export interface Codec<L extends { readonly name: string }> {
  readonly name: L['name'];
  /** Suffixes of which a layer has at least one. They mark a group of tensors as a quantised layer. */
  readonly keys: readonly string[];
  /** Tensors of a layer, those that may be absent too. */
  readonly suffixes: readonly string[];
  /** Tensors beside the weight, for activations or the layer's own library, that are kept as they are. */
  readonly others: readonly string[];
  /** Do suffixes and dtypes belong to this layout? */
  matches(layer: LayerTensors<TensorInfo>): boolean;
  /** Does a config with a `quant_method` announce this layout? */
  announcedBy(config: QuantizationConfig): boolean;
  /**
   * @throws ERR_FORMAT where the tensors contradict each other or the config: the message names both; ERR_DTYPE, ERR_SHAPE
   */
  read(layer: LayerReader): PlanarLayer<L>;
  /** @throws ERR_FORMAT where the layout cannot hold the weight without a change of its values */
  write(op: string, weight: PlanarWeight, layout: L): LayerTensors;
}
