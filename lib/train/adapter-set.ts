/**
 * All adapters of a run in one flat array, so that clipping, the optimiser and checkpoints each
 * need one loop over one block of memory.
 */

import { type SharingLayer, sharedOf, shareKey } from '../adapters/definition/sharing.js';
import { fail } from '../core/errors.js';
import { type Adapter, adapterMethods, type Device } from '../index.js';
import { type LlamaConfig, llamaTensorShapes } from '../model/llama-config.js';
import { type BaseModel, type LinearName, linearNames } from './base-model.js';
import type { BaseLinear } from './kernels.js';
import { hash32 } from './random.js';

/** A method for adapting layers: one of the library, or a user's. */
export type TrainedMethod = (typeof adapterMethods)[number];

/** The adapters of a run. */
export interface AdapterConfig {
  readonly method: TrainedMethod;
  /** Settings of the method that differ from its defaults: `r`, `loraAlpha`, `dropout`, ... */
  readonly settings: Readonly<Record<string, unknown>>;
  readonly targets: readonly LinearName[];
}

/** A trained tensor of one adapter, and its position in the flat array. */
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

  /** New adapters with the initial values of their method. */
  constructor(
    base: BaseModel,
    readonly config: AdapterConfig,
    seed: number,
  ) {
    const layers = base.layers.flatMap((layer) =>
      linearNames.filter((name) => config.targets.includes(name)).map((name) => layer.linear[name]),
    );
    const sizes = layers.map(({ name, K, N }) => ({
      inFeatures: K,
      outFeatures: N,
      module: name,
    }));
    const adapters = config.method.createAll(
      layers.map((layer, index) => ({
        ...(sizes[index] as (typeof sizes)[number]),
        weight: layer.w,
        device: layer.w.device as Device,
        seed: hash32(seed, 'lora_a', index),
        ...config.settings,
      })),
    );
    const { places, count } = placesOf(
      config.method,
      adapters.map(({ parameters }, i) => ({ size: sizes[i] as SharingLayer, parameters })),
    );
    this.values = new Float32Array(count);
    this.slots = layers.map((layer, i) => {
      const adapter = adapters[i] as Adapter;
      const parameters = Object.entries(adapter.parameters).map(([name, tensor]) => {
        const at_elems = places[i]?.[name] as number;
        const values = this.values.subarray(at_elems, at_elems + tensor.size);
        tensor.readInto(values);
        return { name, shape: tensor.shape, values, at_elems };
      });
      return { layer, adapter, parameters };
    });
    this.byLayer = new Map(this.slots.map(({ layer }, index) => [layer.name, index]));
  }

  /** Index of the slot of a layer, or `undefined` if it is not adapted. */
  indexOf(layerName: string): number | undefined {
    return this.byLayer.get(layerName);
  }

  /** Copies the values that training has reached to the adapters' own tensors. */
  write(): void {
    for (const { adapter, parameters } of this.slots) {
      for (const { name, values } of parameters) adapter.parameters[name]?.write(values);
    }
  }

  /** Draws tables that follow from the values, as every reader of the folder will: see {@link Adapter.refresh}. */
  refresh(): void {
    if (this.config.method.definition.indexesFollowValues !== true) return;
    this.write();
    for (const { adapter } of this.slots) adapter.refresh();
  }

  dispose(): void {
    for (const { adapter } of this.slots) adapter.dispose();
  }
}

interface LayerParameters {
  readonly size: SharingLayer;
  readonly parameters: Readonly<
    Record<string, { readonly shape: readonly number[]; readonly size: number }>
  >;
}

/**
 * The positions of each layer's parameters in the flat array. Parameters that layers share occur once: their
 * gradients add up, and the optimiser sees them once.
 * @throws LowrankError `ERR_UNSUPPORTED`
 */
function placesOf(
  { method, definition }: TrainedMethod,
  layers: readonly LayerParameters[],
): { readonly places: readonly Readonly<Record<string, number>>[]; readonly count: number } {
  const shared = sharedOf<string>(definition as Parameters<typeof sharedOf<string>>[0]);
  const known = new Map<string, { readonly at: number; readonly shape: string }>();
  let count = 0;
  const places = layers.map(({ size, parameters }) => {
    const own = Object.entries(parameters).map(([name, tensor]): [string, number] => {
      const shape = `[${tensor.shape}]`;
      const by = shared.get(name);
      const key = by === undefined ? undefined : shareKey(name, by, size);
      const first = key === undefined ? undefined : known.get(key);
      if (first !== undefined) {
        if (first.shape === shape) return [name, first.at];
        const expected = `of the same shape in all layers, because ${method} trains one for all of them (choose --targets of one size)`;
        fail('ERR_UNSUPPORTED', 'finetune', name, expected, `${first.shape} and ${shape}`);
      }
      const at = count;
      count += tensor.size;
      if (key !== undefined) known.set(key, { at, shape });
      return [name, at];
    });
    return Object.fromEntries(own);
  });
  return { places, count };
}

/**
 * Rejects a method and settings that do not fit the layers of a model, before its weights are read.
 * @throws LowrankError as {@link AdapterSet}
 */
export function requireFitting(
  { method, settings, targets }: AdapterConfig,
  model: LlamaConfig,
  device: Device,
): void {
  // All blocks of a model have the same sizes.
  const block = /^(model\.layers\.0\..*\.(\w+))\.weight$/;
  const sizes = [...llamaTensorShapes(model)].flatMap(([name, [outFeatures, inFeatures]]) => {
    const [, module, kind] = block.exec(name) ?? [];
    const target = targets.some((each) => each === kind);
    return target && inFeatures !== undefined && outFeatures !== undefined
      ? [{ inFeatures, outFeatures, module: module as string }]
      : [];
  });
  const makers = method.makers(sizes.map((size) => ({ ...size, device, ...settings })));
  const { trained } = method.definition as { readonly trained: readonly string[] };
  const layers = makers.map(({ shapes }, i) => ({
    size: sizes[i] as SharingLayer,
    parameters: Object.fromEntries(
      Object.entries(shapes as Readonly<Record<string, readonly number[]>>)
        .filter(([name]) => trained.includes(name))
        .map(([name, shape]) => [name, { shape, size: shape.reduce((a, b) => a * b, 1) }]),
    ),
  }));
  placesOf(method, layers);
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
