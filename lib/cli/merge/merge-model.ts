/** An adapter merged into its model: a model folder or a GGUF file that needs no adapter. */

import fs from 'node:fs';
import path from 'node:path';
import { commitFolder, removeLeftovers, siblingName } from '../../checkpoint/files/atomic-write.js';
import { fileError } from '../../checkpoint/files/file-access.js';
import { jsonBounds } from '../../checkpoint/files/json-bounds.js';
import { readJsonObject } from '../../checkpoint/files/json-file.js';
import type { GgufType } from '../../checkpoint/gguf/block-types.js';
import { ggufBlockTypes } from '../../checkpoint/gguf/blocks/parts.js';
import {
  floatBytes,
  type GgufFloatType,
  isFloatType,
} from '../../checkpoint/gguf/quantize/floats.js';
import { type RawTensor, rawToFloat32, rawView } from '../../checkpoint/raw-tensor.js';
import { ShardWriter } from '../../checkpoint/shards.js';
import { tensorShapes } from '../../model/decoder-tensors.js';
import { isGgufPath } from '../../model/gguf/open-model.js';
import { openHfModel } from '../../model/hf-model.js';
import { MergedModel } from '../../model/merged/merged-model.js';
import { copyModelFiles } from '../command/model-folder.js';
import { requireNewFile, requireNewFolder } from '../command/require-new-output.js';
import { convertToGguf } from '../convert/folder-to-gguf.js';
import { convertToFolder } from '../convert/gguf-to-folder.js';
import { type LayerError, WeightErrors } from '../convert/weight-error.js';
import { quantizeFolder } from '../quantize/quantize-folder.js';
import { makeQuantizer } from '../quantize/quantize-layers.js';
import { commandFormats, defaultSettings } from '../quantize/settings.js';

const kOp = 'merge';

/** What a merged model may be stored as, the default first: a folder, and a GGUF file. */
export const mergedFormats = {
  folder: ['bf16', 'f16', 'f32', ...commandFormats] as readonly string[],
  gguf: [
    'bf16',
    'f16',
    'f32',
    ...ggufBlockTypes.map((type) => type.toLowerCase()),
  ] as readonly string[],
};

/** A merge into a model. */
export interface ModelMerge {
  /** Folder, or GGUF file. */
  readonly model: string;
  /** PEFT folder of any method that is affine in its input. */
  readonly adapter: string;
  /** New folder, or new .gguf file. */
  readonly out: string;
  /** One of {@link mergedFormats}. */
  readonly format: string;
  /** May OUT be an older file or folder, which is replaced? Default false. */
  readonly replace?: boolean;
}

/** What was merged. */
export interface ModelMergeFacts {
  readonly architecture: string;
  /** Layers that the adapter changed. */
  readonly layers: number;
  /** Weights whose values were rounded, and by how much: ‖w' − w‖ / ‖w‖. */
  readonly errors: readonly LayerError[];
  /** Over all of them. */
  readonly error: number | undefined;
  readonly warnings: readonly string[];
}

type OnProgress = (phase: string, done: number, total: number) => void;

/**
 * Merges an adapter into the weights of its model, in f32, and stores the sum.
 * @throws LowrankError `ERR_UNSUPPORTED` for a method that is not affine, or what OUT cannot hold · as the readers and writers.
 * OUT appears whole, or not at all
 */
export async function mergeIntoModel(
  merge: ModelMerge,
  onProgress: OnProgress,
  signal: AbortSignal = new AbortController().signal,
): Promise<ModelMergeFacts> {
  const full = path.resolve(merge.out);
  const gguf = isGgufPath(merge.out);
  if (merge.replace !== true) {
    if (gguf) requireNewFile(kOp, merge.model, merge.out);
    else requireNewFolder(kOp, merge.out);
  }
  const temporary = siblingName(full);
  try {
    fs.mkdirSync(path.dirname(full), { recursive: true });
    removeLeftovers(full);
    fs.mkdirSync(temporary);
    const folder = isGgufPath(merge.model) ? path.join(temporary, 'base') : merge.model;
    if (folder !== merge.model) {
      convertToFolder(merge.model, folder, { requantize: 'F32' }, onProgress);
    }
    const model = new MergedModel(openHfModel(folder), merge.adapter);
    const facts = { architecture: model.decoder.architecture, layers: model.layers };
    if (gguf) {
      const requantize = merge.format.toUpperCase() as GgufType;
      const options = { requantize, name: path.basename(merge.out, path.extname(merge.out)) };
      const { errors = [], error, warnings } = convertToGguf(model, merge.out, options, onProgress);
      return { ...facts, errors, error, warnings };
    }
    const written = path.join(temporary, 'merged');
    const dtype = merge.format.toUpperCase();
    if (isFloatType(dtype)) {
      const found = writeFolder(model, written, dtype, onProgress);
      replaceFolder(written, full);
      return { ...facts, ...found, warnings: model.warnings };
    }
    writeFolder(model, written, 'F32', onProgress);
    const settings = defaultSettings(merge.format);
    const progress = (done: number, total: number) => onProgress('quantising', done, total);
    const quantizer = makeQuantizer(settings, { progress, signal });
    const quantised = path.join(temporary, 'quantised');
    await quantizeFolder(written, quantised, settings, quantizer);
    replaceFolder(quantised, full);
    const errors = quantizer.errors.map(({ name, error }) => ({
      ...{ layer: name, type: merge.format, error },
    }));
    return { ...facts, errors, error: quantizer.error, warnings: model.warnings };
  } catch (error) {
    throw fileError(kOp, merge.out, error);
  } finally {
    fs.rmSync(temporary, { recursive: true, force: true });
  }
}

/** Gives a folder its name; an older one of the name goes. */
function replaceFolder(folder: string, target: string): void {
  const old = `${folder}.old`;
  const exists = fs.existsSync(target);
  if (exists) fs.renameSync(target, old);
  try {
    commitFolder(kOp, folder, target);
  } catch (error) {
    if (exists) fs.renameSync(old, target);
    throw error;
  }
}

const kDTypes = { F32: 'float32', F16: 'float16', BF16: 'bfloat16' } as const;

/** Files that say how the weights of IN are quantised. */
const kQuantised = ['quantize_config.json', 'quant_config.json', 'hf_quant_config.json'];

/** Writes a dense model folder. */
function writeFolder(
  model: MergedModel,
  folder: string,
  dtype: GgufFloatType,
  onProgress: OnProgress,
): { readonly errors: readonly LayerError[]; readonly error: number | undefined } {
  fs.mkdirSync(folder);
  const shards = new ShardWriter(folder);
  const errors = new WeightErrors();
  const shapes = [...tensorShapes(model.places)];
  for (const [i, [name, shape]] of shapes.entries()) {
    shards.add(name, denseTensor(model, name, shape, dtype, errors));
    onProgress('writing', i + 1, shapes.length);
  }
  shards.finish();
  const { quantization_config: _, ...config } = readJsonObject(
    kOp,
    path.join(model.folder, 'config.json'),
    jsonBounds.config,
  );
  // transformers 5 calls it dtype.
  const named = 'dtype' in config ? 'dtype' : 'torch_dtype';
  const json = { ...config, [named]: kDTypes[dtype] };
  fs.writeFileSync(path.join(folder, 'config.json'), `${JSON.stringify(json, null, 2)}\n`);
  copyModelFiles(model.folder, folder, kQuantised);
  return { errors: errors.layers, error: errors.total };
}

function denseTensor(
  model: MergedModel,
  name: string,
  shape: readonly number[],
  dtype: GgufFloatType,
  errors: WeightErrors,
): RawTensor {
  if (model.info(name)?.dtype === dtype) return model.read(name);
  const values = model.readFloat32(name);
  if (dtype === 'F32') return { dtype, shape, data: values };
  const data = rawView(dtype, floatBytes(kOp, `tensor ${name}`, dtype, values));
  const raw: RawTensor = { dtype, shape, data };
  errors.add(name, dtype.toLowerCase(), values, rawToFloat32(raw));
  return raw;
}
