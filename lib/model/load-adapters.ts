import type { Adapter } from '../adapters/definition/adapter.js';
import { fail } from '../core/errors.js';
import { printable } from '../core/printable.js';
import type { BaseWeight } from '../ops/base-weight.js';
import { AdapterFolder } from './adapter-folder.js';
import type { Decoder } from './decoder.js';
import { expertsOf, linearsOf } from './decoder-weights.js';
import { type ExpertsLora, expertsName } from './expert-adapters.js';

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
  const { layers, head, device } = decoder.weights;
  const linears = [...layers.flatMap(linearsOf), head];
  const read = new AdapterFolder('loadAdapters', folder, {
    linears: linears.map(({ place }) => place),
    experts: layers.flatMap(expertsOf).map(({ place }) => place),
  });
  const weights = new Map(linears.map(({ place, w }) => [place.module, w]));
  const made = new Map<string, Adapter>();
  const experts = new Map<string, ExpertsLora>();
  try {
    for (const place of read.linears) {
      const { module } = place;
      made.set(module, read.linear(place, weights.get(module) as BaseWeight, device));
    }
    for (const place of read.experts)
      experts.set(expertsName(place), read.expertsOf(place, device));
    return { adapters: made, experts };
  } catch (error) {
    for (const adapter of [...made.values(), ...experts.values()]) adapter.dispose();
    throw error;
  }
}
