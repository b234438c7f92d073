/** The quantised layers of a model folder: which they are, and their weights. */

import fs from 'node:fs';
import path from 'node:path';
import type { PlanarLayer } from '../checkpoint/codecs/codec.js';
import type { QuantizationConfig, TensorInfo } from '../checkpoint/codecs/layer-tensors.js';
import { readQuantizedLayer } from '../checkpoint/codecs/quantized-layers.js';
import {
  type LayoutName,
  layersOf,
  type QuantizedLayerTensors,
  type QuantizedLayout,
  tensorName,
} from '../checkpoint/codecs/registry.js';
import { jsonBounds } from '../checkpoint/files/json-bounds.js';
import { type JsonObject, readJsonObject } from '../checkpoint/files/json-file.js';
import type { RawTensor } from '../checkpoint/raw-tensor.js';

/** ModelOpt writes its section into a file of its own. */
const kModelOptFile = 'hf_quant_config.json';

/** `quantization_config` of a folder, if it has one. @throws ERR_FILE */
function configOf(op: string, folder: string, config: JsonObject): QuantizationConfig | undefined {
  const own = config.quantization_config;
  if (own !== null && typeof own === 'object' && !Array.isArray(own)) return own as JsonObject;
  const file = path.join(folder, kModelOptFile);
  return fs.existsSync(file) ? readJsonObject(op, file, jsonBounds.config) : undefined;
}

/** The quantised layers of a folder; none where its tensors are all dense. */
export class QuantizedFolder {
  readonly #layers: ReadonlyMap<string, QuantizedLayerTensors<TensorInfo>>;

  /**
   * @param infos of all tensors by name
   * @throws LowrankError `ERR_FORMAT` if tensors and config contradict each other · `ERR_UNSUPPORTED` for a layout that is not
   *   read
   */
  constructor(
    op: string,
    folder: string,
    config: JsonObject,
    infos: ReadonlyMap<string, TensorInfo>,
  ) {
    const quantization = configOf(op, folder, config);
    this.#layers =
      quantization === undefined ? new Map() : layersOf(op, infos, quantization).layers;
  }

  /** Names of the layers. */
  get modules(): ReadonlySet<string> {
    return new Set(this.#layers.keys());
  }

  /** How a layer is stored, or undefined where its weight is dense. */
  layoutOf(module: string): LayoutName | undefined {
    return this.#layers.get(module)?.layout;
  }

  /** The layouts of all layers, each once. */
  get layouts(): readonly LayoutName[] {
    return [...new Set([...this.#layers.values()].map(({ layout }) => layout))];
  }

  /** Names in the files of a layer's tensors. */
  namesOf(module: string): readonly string[] {
    const suffixes = Object.keys(this.#layers.get(module)?.tensors ?? {});
    return suffixes.map((suffix) => tensorName(module, suffix));
  }

  /** The tensors of a layer by what follows its name. */
  tensorsOf(module: string, read: (name: string) => RawTensor): Record<string, RawTensor> {
    const suffixes = Object.keys(this.#layers.get(module)?.tensors ?? {});
    return Object.fromEntries(suffixes.map((suffix) => [suffix, read(tensorName(module, suffix))]));
  }

  /** @throws LowrankError `ERR_FORMAT`, `ERR_SHAPE` or `ERR_DTYPE` for tensors that do not fit each other or the config */
  planesOf(module: string, read: (name: string) => RawTensor): PlanarLayer<QuantizedLayout> {
    const config = this.#layers.get(module)?.config ?? {};
    return readQuantizedLayer(this.tensorsOf(module, read), config, module);
  }
}
