/** LoRA for an existing model of `tf.layers`, in place. */

import type { LayersModel } from '@tensorflow/tfjs';
import { fail, wrongType } from '../../core/errors.js';
import {
  type Adapter,
  adapterFromPeft,
  adaptersToPeft,
  type PeftFolder,
  readAdapterFolder,
  writeAdapterFolder,
} from '../../index.js';
import { findLayers, type LayerTargets, type SkippedLayer } from './find-layers.js';
import type { LayerVariable } from './internals.js';
import { type LoraConfig, readConfig } from './lora-config.js';
import { convertLayer, prepareLayer, restoreLayer } from './lora-dense.js';
import type { LayerParts, LoraLayer } from './lora-layer.js';

const kOp = 'applyLora';

/** Options of {@link applyLora}. */
export interface ApplyLoraOptions extends LoraConfig {
  /** Default: every dense layer. */
  readonly targets?: LayerTargets;
}

/** The memory of the adapted layers, in bytes. */
export interface LoraMemory {
  /** The frozen weights as they are stored. */
  readonly baseBytes: number;
  /** The same weights in f32. */
  readonly denseBytes: number;
  /** The trained tensors in f32. */
  readonly adapterBytes: number;
  readonly layers: number;
}

/**
 * The adapters of a model.
 * @example
 * const lora = applyLora(model, { r: 8, loraAlpha: 16, format: 'nf4' });
 * model.compile({ optimizer: 'adam', loss: 'meanSquaredError' });
 * await model.fit(x, y);
 * await lora.save('./adapter');
 */
export class LoraModel {
  readonly model: LayersModel;
  /** Layers without an adapter, and why. */
  readonly skipped: readonly SkippedLayer[];
  readonly #layers: ReadonlyMap<string, LoraLayer>;
  #gone: string | undefined;

  /** @internal Use {@link applyLora}. */
  constructor(
    model: LayersModel,
    layers: ReadonlyMap<string, LoraLayer>,
    skipped: readonly SkippedLayer[],
  ) {
    this.model = model;
    this.#layers = layers;
    this.skipped = Object.freeze([...skipped]);
  }

  #alive(op: string): LoraLayer[] {
    if (this.#gone !== undefined) {
      fail('ERR_DISPOSED', `LoraModel.${op}`, 'the adapters', 'there', this.#gone);
    }
    return [...this.#layers.values()];
  }

  /** Names of the adapted layers, as PEFT names modules. */
  get layers(): readonly string[] {
    return [...this.#layers.keys()];
  }

  /** The trained weights by name, `LAYER/lora_a`. @throws LowrankError `ERR_DISPOSED` */
  get parameters(): ReadonlyMap<string, LayerVariable> {
    const all = this.#alive('parameters').flatMap(({ variables }) => Object.values(variables));
    return new Map(all.map((variable) => [variable.originalName, variable]));
  }

  /** @throws LowrankError `ERR_DISPOSED` */
  memory(): LoraMemory {
    const layers = this.#alive('memory');
    const sum = (of: keyof LoraLayer['bytes']) =>
      layers.reduce((total, { bytes }) => total + bytes[of], 0);
    return {
      baseBytes: sum('base'),
      denseBytes: sum('dense'),
      adapterBytes: sum('adapter'),
      layers: layers.length,
    };
  }

  /**
   * Adds the adapters to the weights, for inference. A quantised weight is encoded again, which loses part of a small
   * update. The weights from before stay until {@link LoraModel.unmerge}.
   * @throws LowrankError `ERR_DISPOSED`, `ERR_UNSUPPORTED` (the method does not merge), `ERR_OOM`
   */
  merge(): void {
    const done: LoraLayer[] = [];
    try {
      for (const layer of this.#alive('merge')) {
        if (layer.merged) continue;
        layer.merge();
        done.push(layer);
      }
    } catch (error) {
      for (const layer of done) layer.unmerge();
      throw error;
    }
  }

  /** Restores the weights from before {@link LoraModel.merge}, bit for bit. @throws LowrankError `ERR_DISPOSED` */
  unmerge(): void {
    for (const layer of this.#alive('unmerge')) layer.unmerge();
  }

  /**
   * Gives the model its dense layers back. They have the weights from before, as their format stored them; merge first
   * and read the weights to keep the adapters' update. Compile the model again.
   * @throws LowrankError `ERR_DISPOSED`
   */
  remove(): void {
    for (const layer of this.#alive('remove')) restoreLayer(layer);
    this.#gone = 'removed ones';
  }

  /**
   * Writes a PEFT adapter folder. A layer's module has the layer's name.
   * @returns what PEFT computes differently, in words; empty for most methods
   * @throws LowrankError `ERR_DISPOSED`, `ERR_PATH`, `ERR_DISK_FULL`
   */
  async save(folder: string): Promise<readonly string[]> {
    this.#alive('save');
    const adapters = new Map<string, Adapter>();
    for (const [name, layer] of this.#layers) adapters.set(name, layer.current());
    return writeAdapterFolder(folder, await adaptersToPeft(adapters));
  }

  /**
   * Reads a PEFT adapter folder of the same method and rank into the layers. Scaling and dropout are those of the
   * folder.
   * @throws LowrankError `ERR_DISPOSED` · `ERR_FILE`, `ERR_FILE_NOT_FOUND`, `ERR_SHAPE`, `ERR_UNSUPPORTED`, `ERR_VALUE`
   *   (merged, another method or rank); the adapters are then as before
   */
  load(folder: string): void {
    const op = 'LoraModel.load';
    this.#alive('load');
    const peft = readAdapterFolder(folder);
    requireModules(op, peft, this.layers);
    const read: { layer: LoraLayer; adapter: Adapter }[] = [];
    try {
      for (const [name, layer] of this.#layers) {
        if (layer.merged) fail('ERR_VALUE', op, name, 'unmerged', 'a merged layer');
        read.push({ layer, adapter: readAdapter(op, peft, name, layer) });
      }
    } catch (error) {
      for (const { adapter } of read) adapter.dispose();
      throw error;
    }
    for (const { layer, adapter } of read) layer.replaceAdapter(adapter);
  }

  /** Frees the adapters and the weights of their layers. The model cannot be used any more. */
  dispose(): void {
    if (this.#gone !== undefined) return;
    for (const { layer } of this.#alive('dispose')) layer.disposeWeights();
    this.#gone = 'disposed ones';
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function readAdapter(op: string, peft: PeftFolder, name: string, layer: LoraLayer): Adapter {
  const [N, K] = layer.base.shape as [number, number];
  const { method, device, seed } = layer.config;
  const place = { inFeatures: K, outFeatures: N, device, seed, weight: layer.base };
  const adapter = adapterFromPeft(peft, name, place, [method]);
  for (const [parameter, { shape }] of Object.entries(layer.adapter.parameters)) {
    const own = adapter.parameters[parameter]?.shape;
    if (own?.join() === shape.join()) continue;
    adapter.dispose();
    const actual = own === undefined ? 'none' : `[${own.join(', ')}]`;
    fail('ERR_SHAPE', op, `${parameter} of ${name}`, `[${shape.join(', ')}]`, actual);
  }
  return adapter;
}

/** Every module of the folder must be a layer of the model. */
function requireModules(op: string, { tensors }: PeftFolder, layers: readonly string[]): void {
  for (const key of tensors.keys()) {
    const name = key.replace(/^base_model\.model\./, '');
    if (layers.some((layer) => name.startsWith(`${layer}.`))) continue;
    const expected = `a tensor of the adapted layers (${layers.join(', ')})`;
    fail('ERR_VALUE', op, 'the folder', expected, JSON.stringify(key));
  }
}

/**
 * Gives the dense layers of a model adapters, in place: afterwards they are of class `LoraDense`, their kernels are frozen
 * in this library's memory (quantised with a `format`), and only the adapters are trained. Compile the model again. Other
 * layers stay as they are; set their `trainable` to freeze them too.
 *
 * Dense layers inside `TimeDistributed` and inside models count. What has no adapter is in {@link LoraModel.skipped}.
 *
 * @param model of `tf.sequential`, `tf.model` or `tf.loadLayersModel`, built
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_VALUE` (no layer fits, or an impossible setting), `ERR_FORMAT`,
 *   `ERR_UNSUPPORTED` (the method), `ERR_NON_FINITE` (a kernel that is to be quantised), `ERR_OOM`; the model is then as
 *   before
 * @example
 * const lora = applyLora(model, { r: 8, loraAlpha: 16, targets: /attention/, format: 'nf4', seed: 1 });
 */
export function applyLora(model: LayersModel, options: ApplyLoraOptions): LoraModel {
  if (model === null || typeof model !== 'object' || !Array.isArray(model.layers)) {
    throw wrongType(kOp, 'model', 'a model of tf.layers', model);
  }
  const checked = readConfig(kOp, options);
  const { found, skipped } = findLayers(kOp, model, options.targets);
  const prepared: { parts: LayerParts; config: typeof checked }[] = [];
  try {
    for (const [i, { layer }] of found.entries()) {
      const config = { ...checked, seed: (checked.seed + i) % Number.MAX_SAFE_INTEGER };
      prepared.push({ parts: prepareLayer(kOp, layer, config), config });
    }
  } catch (error) {
    for (const { parts } of prepared) {
      parts.base.dispose();
      parts.adapter.dispose();
    }
    throw error;
  }
  const layers = new Map<string, LoraLayer>();
  for (const [i, { name, layer }] of found.entries()) {
    const { parts, config } = prepared[i] as (typeof prepared)[number];
    layers.set(name, convertLayer(layer, config, parts));
  }
  return new LoraModel(model, layers, skipped);
}
