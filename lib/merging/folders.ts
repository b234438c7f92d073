/** PEFT folders of LoRA as adapters by module, and back. */

import type { Adapter } from '../adapters/definition/adapter.js';
import { kPrefix } from '../adapters/definition/peft-form.js';
import { adapterFromPeft, adaptersToPeft } from '../adapters/peft/peft.js';
import { type PeftFolder, PeftTensors } from '../adapters/peft/peft-tensors.js';
import { fail, shown } from '../core/errors.js';
import type { AdapterMap } from './adapter-updates.js';

const kOp = 'combineAdapters';

/** Fields that a merged folder has from the first one. Others must be equal in all folders that name them. */
const kFirst = ['task_type'];
const kEqual = ['base_model_name_or_path', 'revision', 'fan_in_fan_out'];

/** Keys of factors, after the prefix: PEFT's, and those of LoRA-FA here. */
const kFactor = /^(.+)\.(lora_?(?:embedding_)?([AB])(?:\.weight)?)$/;

interface Sizes {
  inFeatures?: number;
  outFeatures?: number;
}

/** Sizes of the adapted layers by module. @throws ERR_UNSUPPORTED for other tensors · ERR_FILE */
function layersOf(folder: PeftFolder, index: number) {
  const tensors = PeftTensors.of(kOp, folder);
  const sizes = new Map<string, Sizes>();
  for (const key of tensors.keys()) {
    const found = key.startsWith(kPrefix) ? kFactor.exec(key.slice(kPrefix.length)) : null;
    const [, module, name = '', factor] = found ?? [key];
    if (module === undefined) {
      const expected = 'only of loraA and loraB (merge modules that were trained whole apart)';
      fail('ERR_UNSUPPORTED', kOp, `adapters[${index}]`, expected, shown(key));
    }
    const { shape = [] } = tensors.own(module, name) ?? {};
    const own = sizes.get(module) ?? {};
    if (factor === 'A') own.inFeatures = shape.slice(1).reduce((size, dim) => size * dim, 1);
    else own.outFeatures = shape[0] ?? 0;
    sizes.set(module, own);
  }
  return [...sizes].map(([module, { inFeatures, outFeatures }]) => {
    if (inFeatures !== undefined && outFeatures !== undefined) {
      return [module, { inFeatures, outFeatures }] as const;
    }
    const name = inFeatures === undefined ? 'loraA' : 'loraB';
    return fail(
      'ERR_FILE',
      kOp,
      `${module} of adapters[${index}]`,
      'with both factors',
      `no ${name}`,
    );
  });
}

/** The adapters of a folder, on the CPU. @throws as {@link adapterFromPeft} · ERR_UNSUPPORTED */
export function adaptersOfFolder(folder: PeftFolder, index: number): Map<string, Adapter> {
  const layers = layersOf(folder, index);
  if (layers.length === 0) {
    fail('ERR_FILE', kOp, `adapters[${index}]`, 'a folder with adapted layers', 'none');
  }
  return new Map(
    layers.map(([module, size]) => [
      module,
      adapterFromPeft(folder, module, { ...size, device: 'cpu' }),
    ]),
  );
}

/** The fields that a merged folder has from the folders. @throws ERR_VALUE for folders of other bases */
export function fieldsOf(folders: readonly PeftFolder[]): Readonly<Record<string, unknown>> {
  const fields: Record<string, unknown> = {};
  for (const name of kEqual) {
    for (const [i, { config }] of folders.entries()) {
      const value = config[name] ?? undefined;
      if (value === undefined) continue;
      fields[name] ??= value;
      if (fields[name] === value) continue;
      const expected = `the same in all adapters, ${shown(fields[name])}`;
      fail('ERR_VALUE', kOp, `${name} of adapters[${i}]`, expected, shown(value));
    }
  }
  for (const name of kFirst) {
    const found = folders.find(({ config }) => (config[name] ?? undefined) !== undefined);
    if (found !== undefined) fields[name] = found.config[name];
  }
  return fields;
}

/** A folder of merged adapters. */
export async function folderOfAdapters(
  adapters: AdapterMap,
  fields: Readonly<Record<string, unknown>>,
): Promise<PeftFolder> {
  const { config, tensors, warnings } = await adaptersToPeft(adapters);
  return { config: { ...config, ...fields }, tensors, ...(warnings && { warnings }) };
}
