import path from 'node:path';
import { checkObject, checkPath } from '../../checkpoint/arguments.js';
import { replaceFolder } from '../../checkpoint/files/atomic-write.js';
import { jsonBounds } from '../../checkpoint/files/json-bounds.js';
import { readJsonObject } from '../../checkpoint/files/json-file.js';
import { kConfigFile, kWeightsFile } from '../../checkpoint/peft/peft-config.js';
import { type PythonJson, pythonJson } from '../../checkpoint/python-json.js';
import { readSafetensors } from '../../checkpoint/safetensors.js';
import { encodeSafetensors } from '../../checkpoint/safetensors-write.js';
import type { Adapter } from '../definition/adapter.js';
import { checkAdapters } from '../definition/adapter-map.js';
import { checkFields } from './folder-fields.js';
import { adaptersToPeft } from './peft.js';
import { type PeftFolder, PeftTensors } from './peft-tensors.js';

/**
 * Reads an adapter folder of any method; {@link adapterFromPeft} makes the adapters of its modules.
 * @throws ERR_TYPE · ERR_FILE for a malformed file · ERR_FILE_NOT_FOUND
 * @example
 * const folder = readAdapterFolder('./adapter');
 * const adapter = adapterFromPeft(folder, 'model.layers.0.mlp.up_proj', { inFeatures, outFeatures });
 */
export function readAdapterFolder(folder: string): PeftFolder {
  const op = 'readAdapterFolder';
  checkPath(op, 'folder', folder);
  const config = readJsonObject(op, path.join(folder, kConfigFile), jsonBounds.config);
  const { tensors } = readSafetensors(path.join(folder, kWeightsFile));
  return { config, tensors };
}

const pythonOf = (value: unknown): PythonJson => {
  if (Array.isArray(value)) return value.map(pythonOf);
  if (typeof value === 'object' && value !== null) {
    return new Map(Object.entries(value).map(([key, member]) => [key, pythonOf(member)]));
  }
  return (value ?? null) as PythonJson;
};

/**
 * Writes the adapters of one method, by module, in PEFT's layout. The write is atomic.
 * @param adapters the adapters, or what {@link adaptersToPeft}, {@link expertsToPeft} or
 * {@link NormAdapter.toPeft} made from them
 * @param fields further fields of `adapter_config.json`, such as `base_model_name_or_path` and `task_type`, or
 * replacements for fields that follow from the adapters, such as `target_modules`
 * @returns what PEFT computes differently from the folder, or needs for it, in words; empty for most methods
 * @throws ERR_TYPE, ERR_VALUE as {@link adaptersToPeft}, and for fields that the tensors contradict · ERR_DISK_FULL ·
 * ERR_PATH
 * @example
 * const adapters = new Map([['model.layers.0.self_attn.q_proj', adapter]]);
 * await writeAdapterFolder('./out', await adaptersToPeft(adapters));
 */
export async function writeAdapterFolder(
  folder: string,
  adapters: ReadonlyMap<string, Adapter> | PeftFolder,
  fields: Readonly<Record<string, unknown>> = {},
): Promise<readonly string[]> {
  const op = 'writeAdapterFolder';
  checkPath(op, 'folder', folder);
  const expected = 'a Map of adapters by module, or a folder of config and tensors';
  checkObject(op, 'adapters', adapters, expected);
  checkObject(op, 'fields', fields);
  if ('tensors' in adapters) PeftTensors.of(op, adapters);
  else checkAdapters(op, adapters, expected);
  const made = 'tensors' in adapters ? adapters : await adaptersToPeft(adapters);
  checkFields(op, made, fields);
  const { config, tensors } = made;
  const all: Record<string, unknown> = { inference_mode: true, ...config };
  for (const targets of ['target_modules', 'target_parameters'] as const) {
    const names = all[targets];
    if (Array.isArray(names)) all[targets] = [...names].sort();
  }
  Object.assign(all, fields);
  const sorted = Object.entries(all).sort(([a], [b]) => (a < b ? -1 : 1));
  const json = new TextEncoder().encode(pythonJson(pythonOf(Object.fromEntries(sorted)), 2));
  const files = new Map<string, Uint8Array>([
    [kWeightsFile, encodeSafetensors(tensors, { format: 'pt' })],
    [kConfigFile, json],
  ]);
  replaceFolder(op, folder, files, { marker: kConfigFile });
  return made.warnings ?? [];
}
