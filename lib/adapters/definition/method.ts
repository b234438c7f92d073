import { checkShape } from '../../core/check-tensor.js';
import { type Device, resolveDevice } from '../../core/device.js';
import { checkDType, type DType } from '../../core/dtype.js';
import { fail, notConstructed, wrongType } from '../../core/errors.js';
import { printableText } from '../../core/printable.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import {
  checkDropout,
  checkFinite,
  checkInteger,
  ownFields,
  refuseField,
  showShape,
} from '../../core/validate.js';
import { type BaseWeight, checkWeight } from '../../ops/base-weight.js';
import { Adapter, type AdapterDefinition, type AnyDefinition } from './adapter.js';
import { checkDefinition, kPlace } from './check-definition.js';
import { AdapterMaker } from './maker.js';
import { SharedTensors, sharedOf } from './sharing.js';

/** Options of {@link AdapterMethod.create} besides the method's own settings. */
export interface AdapterPlace {
  /** K */
  inFeatures: number;
  /** N */
  outFeatures: number;
  /** Seed of the drawn values; default 0. */
  seed?: number;
  /** Default: that of `weight`, else {@link defaultDevice}. */
  device?: Device;
  /** Dtype of the parameters; default f32. */
  dtype?: DType;
  /** [N, K] the base weight, for methods that start from it. */
  weight?: BaseWeight;
  /** Name in the model, `model.layers.0.mlp.up_proj`. With some methods its last part decides which layers share. */
  module?: string;
}

/** Checks a number among a method's settings: dropout is a probability, `r` a rank, and all are finite. */
function checkSetting(op: string, name: string, value: number, fresh: boolean): void {
  if (name === 'dropout') {
    checkDropout(op, value);
  } else if (name === 'r') {
    // A trained adapter may have lost all its ranks (AdaLoRA).
    checkInteger(op, name, value, fresh ? 1 : 0, 2 ** 31 - 1);
  } else {
    checkFinite(op, name, value);
  }
}

/** Impossible settings give impossible shapes. The error is made here, where the settings are known. */
function checkSizes(op: string, sizes: Readonly<Record<string, unknown>>, config: object): void {
  for (const [name, shape] of Object.entries(sizes)) {
    if (shape === undefined) continue;
    if (!Array.isArray(shape)) throw wrongType(op, `the shape of ${name}`, 'an array', shape);
    if (shape.every((dim) => Number.isSafeInteger(dim) && dim >= 0)) continue;
    const given = Object.entries(config).map(([setting, value]) => `${setting} ${String(value)}`);
    const expected = `such that the shape of ${name} is made of non-negative integers`;
    const actual = `${showShape(shape)} of ${given.join(', ') || 'none'}`;
    fail('ERR_VALUE', op, 'settings', expected, actual);
  }
}

/**
 * A method for which adapters can be made: the result of {@link defineAdapter}.
 * @example
 * const adapter = adapters.dora.create({ inFeatures: 4096, outFeatures: 4096, r: 16, weight: w4 });
 */
export class AdapterMethod<C extends object, P extends string, B extends string, S> {
  readonly definition: AdapterDefinition<C, P, B, S>;

  /** @internal Use {@link defineAdapter}, which checks the definition. */
  constructor(definition: AdapterDefinition<C, P, B, S>) {
    if (typeof definition?.forward !== 'function') {
      throw notConstructed('AdapterMethod', 'defineAdapter');
    }
    this.definition = definition;
  }

  get method(): string {
    return this.definition.method;
  }

  #maker(op: string, options: AdapterPlace & Partial<C>, fresh = true): AdapterMaker<C, P | B> {
    const { method, defaults, check, shapes } = this.definition;
    if (options === null || typeof options !== 'object') {
      throw wrongType(op, 'options', 'an object', options);
    }
    const given = ownFields(op, options) as Partial<AdapterPlace & C>;
    const K = checkInteger(op, 'inFeatures', given.inFeatures, 1, 2 ** 31);
    const N = checkInteger(op, 'outFeatures', given.outFeatures, 1, 2 ** 31);
    const { weight } = given;
    if (weight !== undefined) {
      checkWeight(op, weight);
      checkShape(op, 'weight', weight as Tensor, [N, K]);
    }
    if (given.module !== undefined && typeof given.module !== 'string') {
      throw wrongType(op, 'module', 'a string', given.module);
    }
    const config = { ...defaults };
    for (const [name, value] of Object.entries(given)) {
      if (kPlace.includes(name) || value === undefined) continue;
      if (!Object.hasOwn(defaults, name)) {
        const known = Object.keys(defaults);
        const expected = `limited to the settings of ${method} (${known.join(', ') || 'none'})`;
        refuseField(op, name, [...known, ...kPlace], expected);
      }
      const standard = (defaults as Record<string, unknown>)[name];
      if (typeof value !== typeof standard || Number.isNaN(value)) {
        throw wrongType(op, name, `a ${typeof standard}`, value);
      }
      (config as Record<string, unknown>)[name] = value;
    }
    // Before the method's own check, which might otherwise blame an invalid rank on what it must
    // divide.
    for (const [name, value] of Object.entries(config)) {
      if (typeof value === 'number') checkSetting(op, name, value, fresh);
    }
    const refused = check?.({ N, K, config });
    if (refused !== undefined) {
      const what = "what the method's check returns";
      const reason: unknown = refused;
      if (!Array.isArray(reason)) throw wrongType(op, what, 'an array of strings', reason);
      // Settings may come from files, so their text must be made safe.
      const [name, expected, actual] = refused;
      fail('ERR_VALUE', op, name, expected, printableText(String(actual)));
    }
    const sizes: unknown = shapes({ N, K, config });
    if (sizes === null || typeof sizes !== 'object') {
      throw wrongType(op, "what the method's shapes returns", 'an object of shapes by name', sizes);
    }
    checkSizes(op, sizes as Readonly<Record<string, unknown>>, config);
    return new AdapterMaker<C, P | B>({
      N,
      K,
      config: Object.freeze(config),
      shapes: sizes as Readonly<Record<P | B, readonly number[]>>,
      device: resolveDevice(op, given.device ?? weight?.device),
      dtype: checkDType(op, 'dtype', given.dtype ?? 'f32'),
      w: weight,
      seed: checkInteger(op, 'seed', given.seed ?? 0, 0, 2 ** 53 - 1),
    });
  }

  /**
   * Makes a new adapter. Training starts at the base model, except with methods that are published with random
   * initial values; their documentation says so.
   * @throws ERR_TYPE, ERR_VALUE, ERR_SHAPE, ERR_DEVICE, ERR_OOM
   */
  create(options: AdapterPlace & Partial<C>): Adapter<C> {
    const make = this.#maker(`${this.method}.create`, options);
    return scope(() => {
      const tensors = this.definition.init(make) as Readonly<Record<P | B, Tensor>>;
      if (tensors === null || typeof tensors !== 'object') {
        const what = "what the method's init returns";
        throw wrongType(`${this.method}.create`, what, 'an object of tensors by name', tensors);
      }
      return new Adapter<C>(
        this.definition,
        make,
        tensors,
        this.definition.drawIndexes?.(make, tensors) ?? {},
      );
    });
  }

  /**
   * Makes new adapters for the layers of a model, in their order. Tensors that the method shares between layers are drawn
   * once: the adapters have tensors over the same memory, whose gradients a trainer adds up ({@link Trainer} does). Tensors
   * that all layers share (VeRA's projections, VB-LoRA's bank) are drawn for the largest layer, and a smaller layer has a
   * copy of the leading part. Others are shared by layers of the same size (LoTR's factors), or of the same size and kind (Tied-LoRA's),
   * which `module` tells: see {@link AdapterDefinition.shared}.
   * @throws as {@link AdapterMethod.create} · ERR_VALUE if the settings give layers that share a tensor
   * different shapes
   */
  createAll(layers: readonly (AdapterPlace & Partial<C>)[]): Adapter<C>[] {
    const op = `${this.method}.createAll`;
    if (!Array.isArray(layers)) throw wrongType(op, 'layers', 'an array of objects', layers);
    const { init, drawTogether } = this.definition;
    const shared = sharedOf<P | B>(this.definition);
    const [first] = layers;
    if ((shared.size === 0 && drawTogether === undefined) || first === undefined) {
      return layers.map((layer) => this.create(layer));
    }
    return scope(() => {
      const makes = layers.map((layer) => this.#maker(op, layer));
      const pool = new SharedTensors(op, shared);
      if (pool.needsWhole(makes)) {
        const { weight: _, ...place } = first;
        const all = this.#maker(op, {
          ...place,
          inFeatures: Math.max(...makes.map(({ K }) => K)),
          outFeatures: Math.max(...makes.map(({ N }) => N)),
        } as AdapterPlace & Partial<C>);
        pool.putWhole(init(all) as Readonly<Record<P | B, Tensor>>);
      }
      const together = drawTogether?.(makes);
      return makes.map((make, i) =>
        scope(() => {
          const { dtype, device, shapes } = make;
          const layer = layers[i] as AdapterPlace & Partial<C>;
          const theirs = pool.of(layer, make);
          const tensors = { ...init(make, theirs), ...theirs } as Record<P | B, Tensor>;
          pool.put(layer, tensors);
          const drawn = together?.[i];
          for (const [name, part] of Object.entries(drawn?.tensors ?? {})) {
            const shape = shapes[name as P | B];
            tensors[name as P | B] = Tensor.from(part as Float32Array, shape, { dtype, device });
          }
          return this.from(tensors, layer, drawn?.indexes);
        }),
      );
    });
  }

  /**
   * @internal The makers of {@link AdapterMethod.createAll}, after all checks of sizes and settings; nothing is
   * drawn yet. @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE
   */
  makers(layers: readonly (AdapterPlace & Partial<C>)[]): AdapterMaker<C, P | B>[] {
    return layers.map((layer) => this.#maker(`${this.method}.create`, layer));
  }

  /**
   * Makes an adapter from existing tensors, which then belong to the adapter.
   * @param indexes the method's integer tables, if it has any; default new ones
   * @throws ERR_TYPE, ERR_VALUE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED
   */
  from(
    tensors: Readonly<Partial<Record<P | B, Tensor>>>,
    options: AdapterPlace & Partial<C>,
    indexes?: Readonly<Record<string, Int32Array>>,
  ): Adapter<C> {
    const op = `${this.method}.from`;
    for (const [name, value] of Object.entries({ tensors, options })) {
      if (value === null || typeof value !== 'object')
        throw wrongType(op, name, 'an object', value);
    }
    const [first] = Object.values(tensors) as readonly Tensor[];
    const place = {
      ...options,
      ...(options.device === undefined && first !== undefined ? { device: first.device } : {}),
    };
    const make = this.#maker(op, place, false);
    return new Adapter<C>(
      this.definition,
      make,
      tensors as Readonly<Record<string, Tensor>>,
      indexes ??
        this.definition.drawIndexes?.(make, tensors as Readonly<Record<P | B, Tensor>>) ??
        {},
    );
  }

  /** The maker of {@link AdapterMethod.create}: for tensors that a checkpoint leaves out. */
  maker(options: AdapterPlace & Partial<C>): AdapterMaker<C, P | B> {
    return this.#maker(this.method, options, false);
  }
}

/**
 * Declares a method. See docs/write-an-adapter.md.
 * @throws ERR_TYPE for a field that is missing or of the wrong type · ERR_VALUE for an invalid name of the method, or
 * a name that two of its tensors and inputs share
 * @example
 * export const ia3 = defineAdapter({
 *   method: 'ia3',
 *   reference: 'Liu et al., 2022, arXiv:2205.05638',
 *   defaults: {},
 *   trained: ['scale'],
 *   shapes: ({ N }) => ({ scale: [N] }),
 *   init: (make) => ({ scale: make.full('scale', 1) }),
 *   forward: (t, { x, w, bias, p }) => t.multiply(t.linear(x, w, bias), p.scale),
 * });
 */
export function defineAdapter<
  C extends object,
  P extends string,
  B extends string = never,
  S = undefined,
>(definition: AdapterDefinition<C, P, B, S>): AdapterMethod<C, P, B, S> {
  checkDefinition(definition);
  return new AdapterMethod(definition);
}

/** A method with any settings and tensors: every {@link AdapterMethod} is one. */
export interface AnyMethod
  extends Omit<AdapterMethod<object, string, string, unknown>, 'definition'> {
  readonly definition: AnyDefinition;
}
