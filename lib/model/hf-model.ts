/**
 * A Hugging Face model folder of a supported architecture: `config.json` with `model.safetensors`, or
 * with shards listed in `model.safetensors.index.json`.
 *
 * Opening reads and checks every header. Tensors are read one by one, so that a model larger than
 * the memory can be quantised layer by layer.
 */

import fs from 'node:fs';
import path from 'node:path';
import { checkName, checkPath } from '../checkpoint/arguments.js';
import type { PlanarLayer } from '../checkpoint/codecs/codec.js';
import type { LayoutName, QuantizedLayout } from '../checkpoint/codecs/registry.js';
import { fileError } from '../checkpoint/files/file-access.js';
import { jsonBounds } from '../checkpoint/files/json-bounds.js';
import { Fields, readJsonObject } from '../checkpoint/files/json-file.js';
import {
  requireDistinctNames,
  requirePlainName,
  resolveInside,
} from '../checkpoint/files/paths.js';
import { hasPickleName, pickleRefused } from '../checkpoint/pickle-refusal.js';
import { planarToFloat32 } from '../checkpoint/planar/decode.js';
import { type RawTensor, rawToFloat32 } from '../checkpoint/raw-tensor.js';
import {
  openSafetensors,
  type RawTensorInfo,
  type SafetensorsFile,
} from '../checkpoint/safetensors.js';
import type { HeaderLimits } from '../checkpoint/safetensors-header.js';
import { checkLimits } from '../checkpoint/safetensors-header.js';
import { LowrankError, notConstructed } from '../core/errors.js';
import { printable, printableValue } from '../core/printable.js';
import type { DecoderConfig } from './config/decoder-config.js';
import { type DecoderPlaces, decoderPlaces, moduleOf, tensorShapes } from './decoder-tensors.js';
import { expertsShape } from './expert-tensors.js';
import { type LlamaConfig, llamaConfigOf } from './llama-config.js';
import type { ModelFiles, OnTensor } from './model-files.js';
import { QuantizedFolder } from './quantized-folder.js';
import { parseDecoderConfig } from './read-config.js';

const kOp = 'openHfModel';
const kSingleFile = 'model.safetensors';
const kIndexFile = 'model.safetensors.index.json';
const kMaxShards = 10_000;

/**
 * An opened model folder. It does not have to be closed.
 * @example
 * const model = openHfModel('./llama');
 * const norm = rawToFloat32(model.read('model.norm.weight'));
 */
export class HfModel implements ModelFiles {
  /** @internal use {@link openHfModel} */
  constructor(
    readonly folder: string,
    /** What the model computes, layer by layer. */
    readonly decoder: DecoderConfig,
    /** Which tensor of the files goes where in the decoder. */
    readonly places: DecoderPlaces,
    private readonly holders: ReadonlyMap<string, SafetensorsFile>,
    private readonly quantized: QuantizedFolder,
    /** Harmless oddities, in words. */
    readonly warnings: readonly string[],
  ) {
    if (!(holders instanceof Map)) throw notConstructed('HfModel', kOp);
  }

  /**
   * The configuration as the trainer on TensorFlow.js reads it.
   * @throws LowrankError `ERR_UNSUPPORTED` another architecture than Llama, biases, another activation or rope type
   */
  get config(): LlamaConfig {
    return llamaConfigOf(kOp, printable(path.join(this.folder, 'config.json')), this.decoder);
  }

  get path(): string {
    return this.folder;
  }

  /** Path of `tokenizer.json`, or `undefined` if the folder has none. */
  get tokenizerPath(): string | undefined {
    const file = path.join(this.folder, 'tokenizer.json');
    return fs.existsSync(file) ? file : undefined;
  }

  /** Bytes of all files that hold tensors. */
  get byteLength(): number {
    return [...new Set(this.holders.values())].reduce((sum, file) => sum + file.byteLength, 0);
  }

  /** Names of all tensors in the files, including those that the architecture does not use. */
  names(): string[] {
    return [...this.holders.keys()];
  }

  has(name: string): boolean {
    return this.holders.has(name);
  }

  /** Dtype, shape and size of a tensor, or `undefined`. */
  info(name: string): RawTensorInfo | undefined {
    return this.holders.get(name)?.info(name);
  }

  /**
   * Reads one tensor as stored in the file.
   * @throws LowrankError `ERR_FILE` if there is no such tensor · `ERR_FILE_CHANGED` · `ERR_OOM`
   */
  read(name: string): RawTensor {
    checkName(kOp, 'name', name);
    const holder = this.holders.get(name);
    if (holder === undefined) {
      const text = `${kOp}: ${printable(this.folder)} must hold tensor ${printable(name)}`;
      throw new LowrankError('ERR_FILE', `${text}, got no such name`, { op: kOp });
    }
    return holder.read(name);
  }

  /**
   * Reads one tensor as f32 values. The weight of a quantised layer is decoded.
   * @returns row-major values, in memory of its own
   */
  readFloat32(name: string): Float32Array<ArrayBuffer> {
    const module = moduleOf(name);
    return this.quantized.layoutOf(module) === undefined
      ? rawToFloat32(this.read(name))
      : (planarToFloat32(this.readQuantized(module).weight) as Float32Array<ArrayBuffer>);
  }

  /** How the files hold a layer, such as `gptq`; undefined where its weight is dense. */
  layoutOf(module: string): LayoutName | undefined {
    return this.quantized.layoutOf(module);
  }

  /** The layouts of all quantised layers, each once; none in a model of f32, bf16 or f16. */
  get layouts(): readonly LayoutName[] {
    return this.quantized.layouts;
  }

  /** Bytes that the tensors of a quantised layer take in the files. */
  quantizedBytes(module: string): number {
    const names = this.quantized.namesOf(module);
    return names.reduce((sum, name) => sum + (this.info(name)?.byteLength ?? 0), 0);
  }

  /**
   * Reads a quantised layer.
   * @param module the layer's name: `model.layers.0.mlp.up_proj`
   * @param onTensor called with each tensor that is read, as it stands in the file
   * @throws LowrankError `ERR_FILE` if it is not quantised · `ERR_FORMAT`, `ERR_SHAPE` or `ERR_DTYPE` if its tensors do not fit
   * each other or the config · `ERR_FILE_CHANGED` · `ERR_OOM`
   */
  readQuantized(module: string, onTensor?: OnTensor): PlanarLayer<QuantizedLayout> {
    checkName(kOp, 'module', module);
    if (this.quantized.layoutOf(module) === undefined) {
      const text = `${kOp}: ${printable(this.folder)} must hold quantised layer ${printable(module)}`;
      throw new LowrankError('ERR_FILE', `${text}, got a dense one or none`, { op: kOp });
    }
    const layer = this.quantized.planesOf(module, (name) => this.#told(name, onTensor));
    this.#requireShape(module, [layer.weight.rows, layer.weight.columns]);
    return layer;
  }

  /** The tensors of a quantised layer as stored, by what follows its name. */
  readQuantizedTensors(module: string, onTensor?: OnTensor): Record<string, RawTensor> {
    return this.quantized.tensorsOf(module, (name) => this.#told(name, onTensor));
  }

  #told(name: string, onTensor?: OnTensor): RawTensor {
    const raw = this.read(name);
    onTensor?.(name, raw);
    return raw;
  }

  #requireShape(module: string, shape: readonly number[]): void {
    const expected =
      tensorShapes(this.places).get(`${module}.weight`) ?? expertsShape(this.places.layers, module);
    if (expected === undefined || expected.every((dim, i) => dim === shape[i])) return;
    const what = `layer ${module} must be [${expected.join(', ')}], as config.json says`;
    const text = `${kOp}: ${printable(this.folder)}: ${what}, got [${shape.join(', ')}]`;
    throw new LowrankError('ERR_FILE', text, { op: kOp });
  }
}

/**
 * Opens a Hugging Face model folder: Llama, Mistral, Qwen2, Qwen3, Phi-3, Gemma 2 or Gemma 3 (text), Mixtral, gpt-oss or
 * Qwen3-MoE.
 *
 * @param folder a folder with `config.json` and `model.safetensors` (or its index and shards)
 * @returns the checked config, and access to the tensors one by one
 * @throws `ERR_TYPE` · LowrankError `ERR_FILE_NOT_FOUND` if the folder or a file is missing ·
 * `ERR_UNSUPPORTED` for another architecture · `ERR_FILE` if malformed, or if tensors are missing or of the
 * wrong shape · `ERR_PATH` · `ERR_PICKLE_REFUSED` if there are only pickled weights
 * @example
 * const model = openHfModel('./my-llama');
 * const w = model.readFloat32('model.layers.0.self_attn.q_proj.weight'); // [N, K]
 */
export function openHfModel(folder: string, limits: HeaderLimits = {}): HfModel {
  checkPath(kOp, 'folder', folder);
  checkLimits(kOp, limits);
  requireFolder(folder);
  const configPath = path.join(folder, 'config.json');
  if (!fs.existsSync(configPath)) {
    const text =
      `${kOp}: ${printable(folder)} must hold config.json, got a folder without one. ` +
      'Give the folder of a downloaded Hugging Face model.';
    throw new LowrankError('ERR_FILE_NOT_FOUND', text, { op: kOp });
  }
  const config = readJsonObject(kOp, configPath, jsonBounds.config);
  const decoder = parseDecoderConfig(kOp, printable(configPath), config);
  const warnings: string[] = [];
  const holders = openTensors(folder, limits, warnings);
  const places = decoderPlaces(decoder, (name) => holders.has(name));
  const infos = new Map(
    [...holders].map(([name, file]) => [name, file.info(name) as RawTensorInfo]),
  );
  const quantized = new QuantizedFolder(kOp, folder, config, infos);
  requireTensors(folder, places, holders, quantized.modules);
  return new HfModel(folder, decoder, places, holders, quantized, warnings);
}

function requireFolder(folder: string): void {
  let stat: fs.Stats | undefined;
  try {
    stat = fs.statSync(folder, { throwIfNoEntry: false });
  } catch (error) {
    throw fileError(kOp, folder, error);
  }
  if (stat?.isDirectory() === true) return;
  const got = stat === undefined ? 'nothing there' : 'a file';
  const text =
    `${kOp}: ${printable(folder)} must be a model folder, got ${got}. ` +
    'Give the folder that holds config.json and model.safetensors.';
  throw new LowrankError('ERR_FILE_NOT_FOUND', text, { op: kOp });
}

/** Tensor name -> the file that holds it. */
function openTensors(
  folder: string,
  limits: HeaderLimits,
  warnings: string[],
): Map<string, SafetensorsFile> {
  const exists = (name: string) => fs.existsSync(path.join(folder, name));
  // Like transformers: a single file takes precedence over an index.
  if (exists(kSingleFile)) {
    const file = openSafetensors(path.join(folder, kSingleFile), limits);
    return new Map(file.names().map((name) => [name, file]));
  }
  if (exists(kIndexFile)) return openShards(folder, limits, warnings);
  const pickle = fs.readdirSync(folder).find(hasPickleName);
  if (pickle !== undefined) {
    throw pickleRefused(kOp, path.join(folder, pickle), 'and the folder has no safetensors file');
  }
  const text =
    `${kOp}: ${printable(folder)} must hold ${kSingleFile} or ${kIndexFile}, got neither. ` +
    'Download the model again with its safetensors files.';
  throw new LowrankError('ERR_FILE_NOT_FOUND', text, { op: kOp });
}

function openShards(
  folder: string,
  limits: HeaderLimits,
  warnings: string[],
): Map<string, SafetensorsFile> {
  const indexPath = path.join(folder, kIndexFile);
  const index = new Fields(
    kOp,
    printable(indexPath),
    readJsonObject(kOp, indexPath, jsonBounds.index),
  );
  const weightMap = index.optionalObject('weight_map');
  if (weightMap === undefined) return index.refuse('weight_map', 'an object');
  const malformed = (what: string): never => {
    throw new LowrankError('ERR_FILE', `${kOp}: ${printable(indexPath)}: ${what}`, { op: kOp });
  };

  const listed = new Map<string, string>();
  for (const [name, shard] of Object.entries(weightMap)) {
    if (typeof shard !== 'string') {
      malformed(`weight_map must give file names, got ${printableValue(shard)}`);
    }
    listed.set(name, shard as string);
  }
  const shards = new Set(listed.values());
  if (shards.size === 0) malformed('weight_map must name at least one tensor, got none');
  if (shards.size > kMaxShards) {
    malformed(`weight_map must name at most ${kMaxShards} files, got ${shards.size}`);
  }
  // All names are checked before any of them reaches the file system.
  for (const shard of shards) {
    requirePlainName(kOp, shard);
    if (hasPickleName(shard)) throw pickleRefused(kOp, shard, 'by its file name, in the index');
  }
  requireDistinctNames(kOp, shards);

  const holders = new Map<string, SafetensorsFile>();
  let total_bytes = 0;
  for (const shard of shards) {
    const file = openSafetensors(resolveInside(kOp, folder, shard), { ...limits, noFollow: true });
    for (const name of file.names()) {
      const shardOfName = listed.get(name);
      if (shardOfName === undefined) {
        malformed(`weight_map must list tensor ${printable(name)} of ${printable(shard)}`);
      }
      if (shardOfName !== shard || holders.has(name)) {
        const other = printable(shardOfName ?? '');
        malformed(
          `tensor ${printable(name)} must be in ${other} alone, got it in ${printable(shard)} too`,
        );
      }
      holders.set(name, file);
      total_bytes += file.info(name)?.byteLength ?? 0;
    }
  }
  for (const [name, shard] of listed) {
    if (!holders.has(name)) {
      malformed(`${printable(shard)} must hold tensor ${printable(name)}, got no such name`);
    }
  }
  checkTotalSize(index, total_bytes, warnings);
  return holders;
}

/** Published indexes often have a wrong total_size. Nothing uses it, so it only gives a warning. */
function checkTotalSize(index: Fields, total_bytes: number, warnings: string[]): void {
  const metadata = index.optionalObject('metadata');
  if (metadata === undefined) return;
  const fields = index.nested('metadata', metadata);
  if (fields.absent('total_size')) return;
  const total = fields.number('total_size', 'a size in bytes', (value) => value >= 0);
  if (total !== total_bytes) {
    warnings.push(`index: total_size says ${total} bytes, the shards hold ${total_bytes}`);
  }
}

/**
 * Requires every tensor of the architecture with its shape, in a floating-point dtype. The shape of a quantised layer is
 * known once it is read.
 */
function requireTensors(
  folder: string,
  places: DecoderPlaces,
  holders: ReadonlyMap<string, SafetensorsFile>,
  quantized: ReadonlySet<string>,
): void {
  const malformed = (what: string) =>
    new LowrankError('ERR_FILE', `${kOp}: ${printable(folder)}: ${what}`, { op: kOp });
  for (const [name, shape] of tensorShapes(places)) {
    if (quantized.has(moduleOf(name))) continue;
    const info = holders.get(name)?.info(name);
    if (info === undefined) {
      throw malformed(`must hold tensor ${name} [${shape.join(', ')}], got no such tensor`);
    }
    if (info.shape.length !== shape.length || info.shape.some((dim, i) => dim !== shape[i])) {
      const expected = `[${shape.join(', ')}], as config.json says`;
      throw malformed(`tensor ${name} must be ${expected}, got [${info.shape.join(', ')}]`);
    }
    if (!['F32', 'BF16', 'F16', 'F64'].includes(info.dtype)) {
      throw malformed(`tensor ${name} must be F32, BF16, F16 or F64, got ${info.dtype}`);
    }
  }
}
