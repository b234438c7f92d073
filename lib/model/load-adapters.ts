import type { Adapter } from '../adapters/definition/adapter.js';
import { expertsFromPeft } from '../adapters/peft/experts.js';
import { readAdapterFolder } from '../adapters/peft/folder.js';
import { adapterFromPeft } from '../adapters/peft/peft.js';
import type { PeftFolder } from '../adapters/peft/peft-tensors.js';
import type { Device } from '../core/device.js';
import { fail } from '../core/errors.js';
import { printable } from '../core/printable.js';
import type { Decoder } from './decoder.js';
import { expertsOf, linearsOf } from './decoder-weights.js';
import { ExpertsLora, expertsName, readsOutputs } from './expert-adapters.js';
import type { ExpertsPlace } from './expert-tensors.js';

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
  const { adapters, experts } = loadDecoderAdapters(decoder, folder);
  if (experts.size === 0) return adapters;
  for (const each of [...adapters.values(), ...experts.values()]) each.dispose();
  const expected = `${printable(folder)} with adapters of the model's linear layers only`;
  return fail('ERR_VALUE', 'loadAdapters', 'folder', expected, 'LoRA of experts too');
}

/** The adapters of a PEFT folder, those of linear layers and of layers of experts. */
export interface DecoderAdapters {
  /** By module. */
  readonly adapters: Map<string, Adapter>;
  /** By the names of layers of experts: `model.layers.0.mlp.experts.down_proj`. */
  readonly experts: Map<string, ExpertsLora>;
}

/**
 * {@link loadAdapters} of a folder that may also have LoRA of experts, which PEFT targets by `target_parameters`.
 * @throws as {@link loadAdapters}, and {@link expertsFromPeft}
 * @example
 * const both = loadDecoderAdapters(decoder, './lowrank-adapter');
 * for await (const id of generate(decoder, ids, both)) show(id);
 */
export function loadDecoderAdapters(decoder: Decoder, folder: string): DecoderAdapters {
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
  const parameters = read.config.target_parameters;
  const targeted = Array.isArray(parameters) ? parameters.map(String) : [];
  const isTarget = (place: ExpertsPlace) =>
    targeted.some((name) => expertsName(place) === name || expertsName(place).endsWith(`.${name}`));
  const routed = layers.flatMap(expertsOf).filter(({ place }) => isTarget(place));
  const known = new Set([
    ...adapted.flatMap(({ place }) => of(place.module)),
    ...routed.flatMap(({ place }) => of(place.module)),
  ]);
  const other = names.find((name) => name.startsWith(kPrefix) && !known.has(name));
  if (other !== undefined || adapted.length + routed.length === 0) {
    const expected = `${printable(folder)} with adapters of the model's linear layers only`;
    fail('ERR_VALUE', op, 'folder', expected, other === undefined ? 'none' : printable(other));
  }
  const whole = { ...read, layers: new Map(sizes) };
  const made = new Map<string, Adapter>();
  const experts = new Map<string, ExpertsLora>();
  try {
    for (const { place, w } of adapted) {
      const { module, N, K } = place;
      const layer = { inFeatures: K, outFeatures: N, weight: w, device };
      made.set(module, adapterFromPeft(whole, module, layer));
    }
    for (const { place } of routed) {
      experts.set(expertsName(place), expertsOfFolder(read, place, device));
    }
    return { adapters: made, experts };
  } catch (error) {
    for (const adapter of [...made.values(), ...experts.values()]) adapter.dispose();
    throw error;
  }
}

/** The experts of a folder, stacked. */
function expertsOfFolder(read: PeftFolder, place: ExpertsPlace, device: Device): ExpertsLora {
  const { module, parameter, N, K, E } = place;
  const parts = expertsFromPeft(read, module, {
    inFeatures: K,
    outFeatures: N,
    parameter,
    device,
    // Of square experts the shapes do not tell.
    ...(N === K ? { transposed: readsOutputs(place) } : {}),
  });
  try {
    if (parts.length === E) return ExpertsLora.of(place, parts, device);
    const expected = `LoRA of ${E} experts`;
    return fail('ERR_SHAPE', 'loadAdapters', expertsName(place), expected, String(parts.length));
  } finally {
    for (const adapter of parts) adapter.dispose();
  }
}
