/** The adapters of a decoder's linear layers, and the tensors that they train. */

import type { Adapter } from '../adapters/definition/adapter.js';
import { type SharingLayer, sharedOf, shareKey } from '../adapters/definition/sharing.js';
import { adapterMethods } from '../adapters/methods/adapter-methods.js';
import { type AlphaConfig, scalingOf } from '../adapters/parts/scaling.js';
import type { Device } from '../core/device.js';
import { fail } from '../core/errors.js';
import { hash32 } from '../core/random.js';
import { track } from '../core/scope.js';
import type { Tensor } from '../core/tensor.js';
import type { Decoder } from '../model/decoder.js';
import {
  type DecoderPlaces,
  type LinearPlace,
  layerLinears,
  linearTargets,
} from '../model/decoder-tensors.js';
import { expertsOf, type LinearWeights, linearsOf } from '../model/decoder-weights.js';
import { ExpertsLora, expertsName, expertsTarget } from '../model/expert-adapters.js';
import type { ParameterRole, TrainedParameter } from '../optim/definition/definition.js';
import type { AnyStart } from '../starts/definition/definition.js';

/** A method for adapting layers: one of the library, or a user's. */
export type TrainedMethod = (typeof adapterMethods)[number];

/**
 * Which layers of the blocks are adapted: all linear layers, or those of these names, like `q_proj`. Layers of experts are
 * `experts.gate_up_proj` and `experts.down_proj`, for `lora` without dropout; as in PEFT, `all-linear` leaves them out.
 */
export type Targets = 'all-linear' | readonly string[];

/** A start of adapters with its settings: see {@link defineStart}. */
export interface AdapterStart {
  readonly start: AnyStart;
  /** Settings of the start that differ from its defaults. */
  readonly settings: Readonly<Record<string, unknown>>;
}

/** The adapters of a run. */
export interface AdapterConfig {
  readonly method: TrainedMethod;
  /** Settings of the method that differ from its defaults: `r`, `loraAlpha`, `dropout`, ... */
  readonly settings: Readonly<Record<string, unknown>>;
  readonly targets: Targets;
  /** Where they begin; default the method's own start. */
  readonly start?: AdapterStart;
}

/** An adapted layer. */
export interface AdaptedLayer {
  readonly place: LinearPlace;
  readonly adapter: Adapter;
}

/** The factors of a low-rank update and its bias; another trained tensor is none of them. */
const kRoles: Readonly<Record<string, ParameterRole>> = {
  loraA: 'down',
  loraB: 'up',
  loraBias: 'bias',
};

/**
 * New adapters of a decoder's linear layers, with the initial values of their method.
 * @example
 * const set = new AdapterSet(decoder, { method: adapters.lora, settings: { r: 16 }, targets: 'all-linear' }, 1);
 * using trainer = new Trainer(set.parameters);
 */
export class AdapterSet implements Disposable {
  readonly layers: readonly AdaptedLayer[];
  /** By module, as {@link Decoder.forward} takes them. */
  readonly byModule: ReadonlyMap<string, Adapter>;
  /** LoRA of layers of experts, by their names, as {@link Decoder.forward} takes them. */
  readonly experts: ReadonlyMap<string, ExpertsLora>;
  /** What a {@link Trainer} trains. A tensor that layers share is one parameter. */
  readonly parameters: readonly TrainedParameter[];
  /** The names of the adapted layers, in the order of the forward pass. */
  readonly targets: readonly string[];

  /** The factors of started layers before training, where their base was replaced: the written adapter needs them. */
  readonly startFactors: ReadonlyMap<string, Readonly<Record<string, Tensor>>>;
  /** Tensors of the method that are not trained after its start. */
  readonly frozen: readonly string[];

  /**
   * @param started adapters by module that a start has made, of all targets; they become the set's
   * @throws LowrankError as `createAll` of the method · `ERR_VALUE` of targets that the model lacks
   */
  constructor(
    decoder: Decoder,
    readonly config: AdapterConfig,
    seed: number,
    started?: ReadonlyMap<string, Adapter>,
  ) {
    const { weights } = decoder;
    const all = weights.layers.flatMap(linearsOf);
    const experts = weights.layers.flatMap(expertsOf).map(({ place }) => place);
    const names = [...new Set(all.map(({ place }) => place.target))];
    this.targets = targetsOf('targets', names, config, [...new Set(experts.map(expertsTarget))]);
    const chosen = all.filter(({ place }) => this.targets.includes(place.target));
    const { start } = config.start ?? {};
    this.frozen = start?.frozen ?? [];
    const adapters =
      started === undefined
        ? config.method.createAll(
            chosen.map(({ place, w }: LinearWeights, index) => ({
              ...sizeOf(place),
              weight: w,
              device: weights.device,
              seed: hash32(seed, 'lora_a', index),
              ...config.settings,
            })),
          )
        : chosen.map(({ place: { module } }) => startedAdapter(started, module));
    this.startFactors =
      start?.replacesBase === true
        ? new Map(chosen.map(({ place }, i) => [place.module, copiesOf(adapters[i] as Adapter)]))
        : new Map();
    this.layers = chosen.map(({ place }, i) => ({ place, adapter: adapters[i] as Adapter }));
    this.byModule = new Map(this.layers.map(({ place, adapter }) => [place.module, adapter]));
    const routed = experts.filter((place) => this.targets.includes(expertsTarget(place)));
    const own = routed.length === 0 ? undefined : expertsConfig('finetune', config);
    this.experts = new Map(
      routed.map((place, index) => {
        const made = { seed: hash32(seed, 'experts', index), device: weights.device };
        return [expertsName(place), ExpertsLora.init(place, own as AlphaConfig, made)];
      }),
    );
    this.parameters = [
      ...parametersOf(config.method, this.layers, this.frozen),
      ...[...this.experts].flatMap(([name, lora]) =>
        Object.entries(lora.parameters).map(([part, tensor]) => ({
          name: `${name}.${part}`,
          role: kRoles[part] ?? ('other' as const),
          tensor,
        })),
      ),
    ];
    track(this);
  }

  /** Number of trained values. */
  get parameterCount(): number {
    return this.parameters.reduce((sum, { tensor }) => sum + tensor.size, 0);
  }

  /** Draws tables that follow from the values, as every reader of the folder will: see {@link Adapter.refresh}. */
  refresh(): void {
    if (this.config.method.definition.indexesFollowValues !== true) return;
    for (const { adapter } of this.layers) adapter.refresh();
  }

  /** Frees the adapters. Twice is a no-op. */
  dispose(): void {
    for (const { adapter } of this.layers) adapter.dispose();
    for (const factors of this.startFactors.values()) {
      for (const tensor of Object.values(factors)) tensor.dispose();
    }
    for (const lora of this.experts.values()) lora.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * The settings of LoRA of experts.
 * @throws LowrankError `ERR_UNSUPPORTED` for another method, or settings that PEFT has not for experts
 */
function expertsConfig(op: string, { method, settings }: AdapterConfig): AlphaConfig {
  const given = { ...method.definition.defaults, ...settings } as unknown as AlphaConfig & {
    readonly loraBias?: boolean;
  };
  if (method.method !== 'lora') {
    fail('ERR_UNSUPPORTED', op, 'targets', 'without experts (they take lora alone)', method.method);
  }
  if (given.dropout !== 0 || given.loraBias === true) {
    const got = `dropout ${given.dropout}, loraBias ${given.loraBias}`;
    fail('ERR_UNSUPPORTED', op, 'settings', 'without dropout and loraBias, for experts', got);
  }
  return given;
}

function startedAdapter(started: ReadonlyMap<string, Adapter>, module: string): Adapter {
  const adapter = started.get(module);
  if (adapter !== undefined) return adapter;
  return fail('ERR_VALUE', 'AdapterSet', 'started', 'of all target layers', `without ${module}`);
}

const copiesOf = ({ parameters }: Adapter): Readonly<Record<string, Tensor>> =>
  Object.fromEntries(Object.entries(parameters).map(([name, tensor]) => [name, tensor.to({})]));

const sizeOf = ({ K, N, module }: LinearPlace) => ({ inFeatures: K, outFeatures: N, module });

/** The parameters of layers. What layers share occurs once, with the views of the others. */
function parametersOf(
  method: TrainedMethod,
  layers: readonly AdaptedLayer[],
  frozen: readonly string[],
): readonly TrainedParameter[] {
  const found = new Map<string, { parameter: TrainedParameter; views: Tensor[] }>();
  const keyOf = sharing(method);
  for (const { place, adapter } of layers) {
    for (const [name, tensor] of Object.entries(adapter.parameters)) {
      if (frozen.includes(name)) continue;
      const own = `${place.module}.${name}`;
      const key = keyOf(name, sizeOf(place)) ?? own;
      const known = found.get(key);
      if (known !== undefined) known.views.push(tensor);
      else {
        const views: Tensor[] = [];
        const role = kRoles[name] ?? 'other';
        const layer = layerOf(place.module, adapter);
        found.set(key, { parameter: { name: own, role, tensor, views, ...layer }, views });
      }
    }
  }
  return [...found.values()].map(({ parameter }) => parameter);
}

/** What optimisers of pairs know of a layer: its name, and the scaling of its low-rank update. */
function layerOf(module: string, { config }: Adapter): Pick<TrainedParameter, 'layer' | 'scaling'> {
  const own = config as Partial<AlphaConfig>;
  const known = own.r !== undefined && own.loraAlpha !== undefined;
  return { layer: module, ...(known ? { scaling: scalingOf(own as AlphaConfig) } : {}) };
}

/** The key of a tensor that layers share, or undefined. */
function sharing({ definition }: TrainedMethod) {
  const shared = sharedOf<string>(definition as Parameters<typeof sharedOf<string>>[0]);
  return (name: string, layer: SharingLayer): string | undefined => {
    const by = shared.get(name);
    return by === undefined ? undefined : shareKey(name, by, layer);
  };
}

/**
 * Rejects a method, settings and targets that do not fit the layers of a model, before its weights are read.
 * @returns the number of values that a run will train
 * @throws LowrankError `ERR_UNSUPPORTED`; as {@link AdapterSet}
 */
export function requireFitting(
  config: AdapterConfig,
  places: DecoderPlaces,
  device: Device,
): number {
  const { method, settings } = config;
  const experts = places.layers.flatMap(({ experts: own }) =>
    own === undefined ? [] : [own.gateUp, own.down],
  );
  const expertTargets = [...new Set(experts.map(expertsTarget))];
  const wanted = targetsOf('targets', linearTargets(places), config, expertTargets);
  const frozen = config.start?.start.frozen ?? [];
  const layers = places.layers
    .flatMap(layerLinears)
    .filter(({ target }) => wanted.includes(target))
    .map(sizeOf);
  const makers = method.makers(layers.map((layer) => ({ ...layer, device, ...settings })));
  const { trained } = method.definition as { readonly trained: readonly string[] };
  const keyOf = sharing(method);
  const known = new Map<string, string>();
  let count = 0;
  for (const place of experts) {
    if (!wanted.includes(expertsTarget(place))) continue;
    const { r } = expertsConfig('finetune', config);
    count += place.E * r * (place.N + place.K);
  }
  for (const [i, { shapes }] of makers.entries()) {
    for (const name of trained) {
      if (frozen.includes(name)) continue;
      const key = keyOf(name, layers[i] as SharingLayer);
      const shape = (shapes as Readonly<Record<string, readonly number[]>>)[name];
      if (shape === undefined) continue;
      const first = key === undefined ? undefined : known.get(key);
      if (first === undefined) count += shape.reduce((a, b) => a * b, 1);
      if (key !== undefined) known.set(key, first ?? `[${shape}]`);
      if (first === undefined || first === `[${shape}]`) continue;
      const expected = `of the same shape in all layers, because ${method.method} trains one for all of them (choose --targets of one size)`;
      fail('ERR_UNSUPPORTED', 'finetune', name, expected, `${first} and [${shape}]`);
    }
  }
  return count;
}

/**
 * @param experts names of layers of experts, which `all-linear` does not include
 * @throws LowrankError `ERR_VALUE` if the model has no layers of these names
 */
export function targetsOf(
  name: string,
  linear: readonly string[],
  { targets }: AdapterConfig,
  experts: readonly string[],
): readonly string[] {
  if (targets === 'all-linear') return linear;
  const known = [...linear, ...experts];
  const other = targets.find((target) => !known.includes(target));
  if (other !== undefined || targets.length === 0) {
    const expected = `all-linear or a list of ${known.join(', ')}`;
    fail('ERR_VALUE', 'finetune', name, expected, JSON.stringify(targets.join(',')));
  }
  return known.filter((target) => targets.includes(target));
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

/** Reads a list of target modules: `all-linear`, or names separated by commas. */
export function parseTargets(text: string): Targets {
  return text === 'all-linear' ? text : text.split(',').map((name) => name.trim());
}
