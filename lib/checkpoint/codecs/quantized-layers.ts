/** Quantised layers of Hugging Face checkpoints: found, read and written. */
import { fail, shown } from '../../core/errors.js';
import { checkMap, checkName, checkObject } from '../arguments.js';
import { checkPlanarWeight } from '../planar/check.js';
import { checkRawTensor, isRawDType, type RawTensor } from '../raw-tensor.js';
import type { PlanarLayer } from './codec.js';
import { FolderConfig } from './config.js';
import { LayerReader } from './layer-reader.js';
import type { LayerTensors, QuantizationConfig, TensorInfo } from './layer-tensors.js';
import { refuseUnreadable } from './refused.js';
import {
  codecFor,
  codecOf,
  layerConfig,
  layersOf,
  layoutNames,
  type QuantizedLayers,
  type QuantizedLayout,
} from './registry.js';

function checkInfo(op: string, operand: string, info: TensorInfo): void {
  checkObject(op, operand, info, 'a tensor or what a header says of one');
  if (typeof info.dtype !== 'string' || !isRawDType(info.dtype)) {
    fail('ERR_DTYPE', op, `${operand}.dtype`, 'a dtype of safetensors', shown(info.dtype));
  }
  if (!Array.isArray(info.shape)) {
    fail('ERR_SHAPE', op, `${operand}.shape`, 'a list of sizes', shown(info.shape));
  }
}

/**
 * Splits the tensors of a checkpoint into quantised layers and the rest.
 *
 * A layer is quantised where it has quantised tensors; they also decide its layout. The config confirms both: a layer that it
 * leaves as it is (`modules_to_not_convert`, `ignore`, `dynamic` and the like) and yet has such tensors is an error, and so
 * is a layer of another layout than the config names. Only dtypes and shapes are looked at.
 *
 * @param tensors by name: tensors, or what `SafetensorsFile.info` says of them
 * @param config `quantization_config` of config.json, or the content of hf_quant_config.json; without one, tensors alone decide
 * @returns the layers by name, each with its layout, tensors and config, and all other tensors
 * @throws `ERR_TYPE` · LowrankError `ERR_FORMAT` if tensors and config contradict each other · `ERR_UNSUPPORTED` for a layout
 *   that is not read · `ERR_DTYPE`, `ERR_SHAPE`
 * @example
 * const { tensors } = readSafetensors('model/model.safetensors');
 * const { quantization_config } = JSON.parse(readFileSync('model/config.json', 'utf8'));
 * const { layers, rest } = quantizedLayers(tensors, quantization_config);
 * for (const [name, { layout }] of layers) console.log(name, layout); // model.layers.0.mlp.up_proj gptq
 */
export function quantizedLayers<T extends TensorInfo>(
  tensors: ReadonlyMap<string, T>,
  config: QuantizationConfig = {},
): QuantizedLayers<T> {
  const op = 'quantizedLayers';
  checkMap(op, 'tensors', tensors, 'a Map of tensors by name, as readSafetensors(path).tensors is');
  checkObject(op, 'config', config);
  for (const [name, info] of tensors) {
    checkName(op, 'a tensor name', name);
    checkInfo(op, 'a tensor', info);
  }
  return layersOf(op, tensors, config);
}

/**
 * Reads one quantised layer into the form that kernels see, bit for bit as its own library decodes it:
 * {@link planarToFloat32} gives the values.
 *
 * The tensors decide the layout. The config confirms it and adds what tensors cannot say, such as the version of GPTQ.
 * Every field that contradicts another is an error that names both. The arrays of the result are copies.
 *
 * @param tensors of the layer by what follows its name, as {@link quantizedLayers} groups them
 * @param config `quantization_config` of the folder, or the layer's own from {@link quantizedLayers}
 * @param name of the layer: finds its group or override in the config, and stands in messages
 * @returns the weight [N, K], and what its layout has beside it. The experts of gpt-oss are one weight [E · N, K]
 * @throws `ERR_TYPE` · LowrankError `ERR_FORMAT`, `ERR_SHAPE` or `ERR_DTYPE` for tensors that do not fit each other or the
 *   config · `ERR_UNSUPPORTED` for a layout that is not read
 * @example
 * for (const [name, { tensors, config }] of layers) {
 *   const { weight } = readQuantizedLayer(tensors, config, name);
 *   console.log(name, weight.rows, weight.columns, weight.bits);
 * }
 */
export function readQuantizedLayer(
  tensors: LayerTensors,
  config: QuantizationConfig = {},
  name = '',
): PlanarLayer<QuantizedLayout> {
  const op = 'readQuantizedLayer';
  checkObject(op, 'tensors', tensors, 'an object of tensors by suffix');
  checkObject(op, 'config', config);
  checkName(op, 'name', name);
  for (const tensor of Object.values(tensors)) checkInfo(op, 'a tensor', tensor);
  const folder = new FolderConfig(op, config);
  refuseUnreadable(op, folder.config);
  const own = layerConfig(op, folder, name, Object.keys(tensors));
  const codec = codecFor(op, name, tensors, own);
  const reader = new LayerReader(op, name, tensors, own);
  const layer = codec.read(reader);
  reader.finish(codec.name);
  return layer;
}

/**
 * The tensors of a layer in the layout of a checkpoint, the inverse of {@link readQuantizedLayer}: the bytes that were read.
 *
 * With another layout it converts without loss, for instance GPTQ to `{ name: 'pack-quantized', zeros: true }`. A layout
 * that cannot hold the weight without a change of its values is an error.
 *
 * @param layer a weight, and the layout to write it in
 * @returns tensors by what follows the layer's name, in new memory
 * @throws `ERR_TYPE` · LowrankError `ERR_FORMAT` if the layout is unknown or cannot hold the weight · `ERR_SHAPE` or
 *   `ERR_VALUE` if the parts of the weight do not fit each other
 * @example
 * const { weight } = readQuantizedLayer(tensors, config, name);
 * const packed = writeQuantizedLayer({ weight, layout: { name: 'pack-quantized', zeros: true } });
 * console.log(Object.keys(packed)); // weight_packed, weight_scale, weight_shape, ...
 */
export function writeQuantizedLayer(layer: PlanarLayer<QuantizedLayout>): LayerTensors {
  const op = 'writeQuantizedLayer';
  checkObject(op, 'layer', layer, 'a weight and its layout');
  checkPlanarWeight(op, layer.weight);
  checkObject(op, 'layer.layout', layer.layout);
  const { name } = layer.layout;
  if (!layoutNames.includes(name)) {
    fail('ERR_FORMAT', op, 'layout.name', `one of ${layoutNames.join(', ')}`, shown(name));
  }
  const tensors = codecOf(name).write(op, layer.weight, layer.layout);
  for (const [key, tensor] of Object.entries<RawTensor>(tensors)) checkRawTensor(op, key, tensor);
  return tensors;
}
