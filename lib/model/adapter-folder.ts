/** A PEFT folder as adapters of a model's layers, one by one. */

import type { Adapter } from '../adapters/definition/adapter.js';
import { expertsFromPeft } from '../adapters/peft/experts.js';
import { readAdapterFolder } from '../adapters/peft/folder.js';
import { adapterFromPeft } from '../adapters/peft/peft.js';
import type { PeftFolder } from '../adapters/peft/peft-tensors.js';
import type { Device } from '../core/device.js';
import { fail } from '../core/errors.js';
import { printable } from '../core/printable.js';
import type { BaseWeight } from '../ops/base-weight.js';
import { ExpertsLora, expertsName, readsOutputs } from './expert-adapters.js';
import type { ExpertsPlace } from './expert-tensors.js';
import type { LinearPlace } from './places.js';

const kPrefix = 'base_model.model.';

/** The layers of a model that a folder may adapt. */
export interface AdaptablePlaces {
  /** The linear layers of the blocks, and the head. */
  readonly linears: readonly LinearPlace[];
  readonly experts: readonly ExpertsPlace[];
}

/** A folder that was read, and the layers of the model that it adapts. */
export class AdapterFolder {
  readonly linears: readonly LinearPlace[];
  readonly experts: readonly ExpertsPlace[];
  readonly #read: PeftFolder;

  /**
   * @throws ERR_VALUE if the folder has no adapter of the layers, or one of another layer; what {@link readAdapterFolder} throws
   */
  constructor(
    private readonly op: string,
    folder: string,
    places: AdaptablePlaces,
  ) {
    const read = readAdapterFolder(folder);
    const names = [...read.tensors.keys()];
    const of = (module: string) => names.filter((name) => name.startsWith(`${kPrefix}${module}.`));
    this.linears = places.linears.filter(({ module }) => of(module).length > 0);
    const parameters = read.config.target_parameters;
    const targeted = Array.isArray(parameters) ? parameters.map(String) : [];
    const isTarget = (place: ExpertsPlace) =>
      targeted.some(
        (name) => expertsName(place) === name || expertsName(place).endsWith(`.${name}`),
      );
    this.experts = places.experts.filter(isTarget);
    const known = new Set([...this.linears, ...this.experts].flatMap(({ module }) => of(module)));
    const other = names.find((name) => name.startsWith(kPrefix) && !known.has(name));
    if (other !== undefined || this.linears.length + this.experts.length === 0) {
      const expected = `${printable(folder)} with adapters of the model's linear layers only`;
      fail('ERR_VALUE', op, 'folder', expected, other === undefined ? 'none' : printable(other));
    }
    // Methods that layers share are numbered by the layers that are adapted.
    const sizes = this.linears.map(
      ({ module, N, K }) => [module, { inFeatures: K, outFeatures: N }] as const,
    );
    this.#read = { ...read, layers: new Map(sizes) };
  }

  /** The adapter of a linear layer. @throws what {@link adapterFromPeft} throws */
  linear({ module, N, K }: LinearPlace, weight: BaseWeight, device: Device): Adapter {
    return adapterFromPeft(this.#read, module, { inFeatures: K, outFeatures: N, weight, device });
  }

  /** LoRA of all experts of a layer, stacked. @throws what {@link expertsFromPeft} throws */
  expertsOf(place: ExpertsPlace, device: Device): ExpertsLora {
    const { module, parameter, N, K, E } = place;
    const parts = expertsFromPeft(this.#read, module, {
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
      return fail('ERR_SHAPE', this.op, expertsName(place), expected, String(parts.length));
    } finally {
      for (const adapter of parts) adapter.dispose();
    }
  }
}
