import type { Adapter } from '../adapters/definition/adapter.js';
import { readAdapterFolder } from '../adapters/peft/folder.js';
import { adapterFromPeft } from '../adapters/peft/peft.js';
import { fail } from '../core/errors.js';
import { printable } from '../core/printable.js';
import type { Decoder } from './decoder.js';
import { linearsOf } from './decoder-weights.js';

const kPrefix = 'base_model.model.';

/**
 * The adapters of a PEFT folder for a decoder, by module, on its device: of any method that this library reads.
 * @throws ERR_VALUE if the folder has no adapter of the model's linear layers, or one of a layer that the model lacks; what
 *   {@link readAdapterFolder} and {@link adapterFromPeft} throw. Nothing stays allocated
 * @example
 * const adapters = loadAdapters(decoder, './lowrank-adapter');
 * for await (const id of generate(decoder, ids, { adapters })) show(id);
 */
export function loadAdapters(decoder: Decoder, folder: string): Map<string, Adapter> {
  const op = 'loadAdapters';
  const read = readAdapterFolder(folder);
  const { layers, head, device } = decoder.weights;
  const linears = [...layers.flatMap(linearsOf), head];
  const sizes = linears.map(
    ({ place: { module, N, K } }) => [module, { inFeatures: K, outFeatures: N }] as const,
  );
  const names = [...read.tensors.keys()];
  const of = (module: string) => names.filter((name) => name.startsWith(`${kPrefix}${module}.`));
  const adapted = linears.filter(({ place }) => of(place.module).length > 0);
  const known = new Set(adapted.flatMap(({ place }) => of(place.module)));
  const other = names.find((name) => name.startsWith(kPrefix) && !known.has(name));
  if (other !== undefined || adapted.length === 0) {
    const expected = `${printable(folder)} with adapters of the model's linear layers only`;
    fail('ERR_VALUE', op, 'folder', expected, other === undefined ? 'none' : printable(other));
  }
  const whole = { ...read, layers: new Map(sizes) };
  const made = new Map<string, Adapter>();
  try {
    for (const { place, w } of adapted) {
      const { module, N, K } = place;
      const layer = { inFeatures: K, outFeatures: N, weight: w, device };
      made.set(module, adapterFromPeft(whole, module, layer));
    }
    return made;
  } catch (error) {
    for (const adapter of made.values()) adapter.dispose();
    throw error;
  }
}
