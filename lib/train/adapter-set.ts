/**
 * All adapters of a run in one flat array, so that clipping, the optimiser and checkpoints are each
 * one loop over one piece of memory.
 */

import { fail } from '../core/errors.js';
import { type Adapter, adapterMethods, type Device } from '../index.js';
import { type BaseModel, type LinearName, linearNames } from './base-model.js';
import type { BaseLinear } from './kernels.js';
import { hash32 } from './random.js';

/** A method that layers can be adapted by: one of the library's, or a user's. */
export type TrainedMethod = (typeof adapterMethods)[number];

/** What the adapters of a run look like. */
export interface AdapterConfig {
  readonly method: TrainedMethod;
  /** Of the method, beside its defaults: `r`, `loraAlpha`, `dropout`, ... */
  readonly settings: Readonly<Record<string, unknown>>;
  readonly targets: readonly LinearName[];
}

/** A trained tensor of one adapter, and where it lies in the flat array. */
export interface AdapterParameter {
  readonly name: string;
  readonly shape: readonly number[];
  readonly values: Float32Array;
  readonly at_elems: number;
}

/** The adapter of one layer. */
export interface AdapterSlot {
  readonly layer: BaseLinear;
  readonly adapter: Adapter;
  readonly parameters: readonly AdapterParameter[];
}

/** The trained parameters, each a view of {@link values}. */
export class AdapterSet {
  readonly values: Float32Array;
  readonly slots: readonly AdapterSlot[];
  private readonly byLayer: ReadonlyMap<string, number>;

  /** Fresh adapters, as their method starts. */
  constructor(
    base: BaseModel,
    readonly config: AdapterConfig,
    seed: number,
  ) {
    const layers = base.layers.flatMap((layer) =>
      linearNames.filter((name) => config.targets.includes(name)).map((name) => layer.linear[name]),
    );
    const adapters = config.method.createAll(
      layers.map((layer, index) => ({
        inFeatures: layer.K,
        outFeatures: layer.N,
        weight: layer.w,
        device: layer.w.device as Device,
        seed: hash32(seed, 'lora_a', index),
        ...config.settings,
      })),
    );
    const made = layers.map((layer, i) => ({ layer, adapter: adapters[i] as Adapter }));
    const count = made.reduce((sum, { adapter }) => sum + adapter.parameterCount, 0);
    this.values = new Float32Array(count);
    let at_elems = 0;
    this.slots = made.map(({ layer, adapter }) => ({
      layer,
      adapter,
      parameters: Object.entries(adapter.parameters).map(([name, tensor]) => {
        const values = this.values.subarray(at_elems, at_elems + tensor.size);
        tensor.readInto(values);
        const parameter = { name, shape: tensor.shape, values, at_elems };
        at_elems += tensor.size;
        return parameter;
      }),
    }));
    this.byLayer = new Map(this.slots.map(({ layer }, index) => [layer.name, index]));
  }

  /** Index of the slot of a layer, or `undefined` where it is not adapted. */
  indexOf(layerName: string): number | undefined {
    return this.byLayer.get(layerName);
  }

  dispose(): void {
    for (const { adapter } of this.slots) adapter.dispose();
  }
}

/**
 * A method of the library by its name.
 * @throws LowrankError `ERR_VALUE`
 */
export function methodNamed(op: string, name: string): TrainedMethod {
  const found = adapterMethods.find(({ method }) => method === name);
  if (found !== undefined) return found;
  const known = adapterMethods.map(({ method }) => method).join(', ');
  return fail('ERR_VALUE', op, 'adapter', `one of ${known}, or a file`, JSON.stringify(name));
}

/**
 * Reads a list of target modules: `all-linear`, or names separated by commas.
 * @throws LowrankError `ERR_VALUE`
 */
export function parseTargets(op: string, text: string): readonly LinearName[] {
  if (text === 'all-linear') return linearNames;
  const names = text.split(',').map((name) => name.trim());
  const chosen = linearNames.filter((name) => names.includes(name));
  if (names.length === 0 || chosen.length !== new Set(names).size) {
    const expected = `all-linear or a list of ${linearNames.join(', ')}`;
    fail('ERR_VALUE', op, 'targets', expected, JSON.stringify(text));
  }
  return chosen;
}
