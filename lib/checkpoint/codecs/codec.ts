import type { PlanarWeight } from '../planar/planar-weight.js';
import type { RawTensor } from '../raw-tensor.js';

/** Tensors of a layer by what follows the layer's name: `qweight`, `weight_scale`, `_blocks`. */
export type LayerTensors = Readonly<Record<string, RawTensor>>;

/** `quantization_config` of a folder, as its JSON says. */
export type QuantizationConfig = Readonly<Record<string, unknown>>;

/**
 * A layout in which checkpoints keep quantised weights. `read` and `write` are exact opposites:
 * `write(read(layer))` has the layer's bytes.
 *
 * @typeParam L what a layer's tensors say beside the weight (versions, dtypes, packing), which `write` needs
 */
export interface Codec<L> {
  /** As `quant_method`, or `format`, names it. */
  readonly name: string;
  /** The suffix whose presence makes a group of tensors a layer of this layout. */
  readonly key: string;
  /** All suffixes of a layer, those that may be absent too. */
  readonly suffixes: readonly string[];
  /**
   * @throws ERR_FORMAT where the tensors contradict each other or the config: the message names both; ERR_DTYPE, ERR_SHAPE
   */
  read(op: string, layer: LayerTensors, config: QuantizationConfig): PlanarLayer<L>;
  /** @throws ERR_FORMAT where the layout cannot hold the weight without a change of its values */
  write(op: string, weight: PlanarWeight, layout: L): LayerTensors;
}

/** A weight, and what its layout keeps beside it. */
export interface PlanarLayer<L> {
  readonly weight: PlanarWeight;
  readonly layout: L;
}
