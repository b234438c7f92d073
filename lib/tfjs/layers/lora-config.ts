/** The settings of a dense layer with an adapter: how they are given, checked and saved. */

import { fail, wrongType } from '../../core/errors.js';
import {
  type AnyMethod,
  adapterMethods,
  type Device,
  defaultDevice,
  type QuantFormat,
  type QuantizedWeight,
  quantize,
  Tensor,
} from '../../index.js';

/** Settings of the adapter of a dense layer, and how its frozen kernel is stored. */
export interface LoraConfig {
  /** Rank. Default: that of the method, 8 for LoRA. */
  readonly r?: number;
  /** scaling = loraAlpha / r (rslora: / sqrt(r)). */
  readonly loraAlpha?: number;
  readonly rslora?: boolean;
  /** Probability of dropping an element of the adapter's input while training. */
  readonly dropout?: number;
  /** How the frozen kernel is stored, nf4, fp4 or int4; default: as f32. */
  readonly format?: QuantFormat;
  /** Elements of the kernel that share a scale, a power of two from 32 to 4096; default 64. */
  readonly blocksize?: number;
  /** The method: a name ([adapters.md](../../../docs/adapters.md)) or what `defineAdapter` returned. Default: `lora`. */
  readonly adapter?: string | AnyMethod;
  /** Further settings of the method. */
  readonly settings?: Readonly<Record<string, unknown>>;
  /** Seed of the initial values and the dropout masks, an integer from 0 to 2^53 - 1; default 0. */
  readonly seed?: number;
}

/** Checked settings. */
export interface LayerConfig {
  readonly method: AnyMethod;
  readonly settings: Readonly<Record<string, unknown>>;
  readonly store: {
    readonly format: QuantFormat | undefined;
    readonly blocksize?: number;
  };
  readonly seed: number;
  readonly device: Device;
}

/** Methods of the program by name, so that a saved model finds its own again. */
const ownMethods = new Map<string, AnyMethod>();

/**
 * Makes a method of the program known by its name, so that `tf.loadLayersModel` can load a model that has it.
 * @throws TypeError `ERR_TYPE`
 * @example
 * useAdapterMethod(myMethod);
 * const model = await tf.loadLayersModel(handler);
 */
export function useAdapterMethod(method: AnyMethod): void {
  if (typeof method?.create !== 'function' || typeof method.definition?.forward !== 'function') {
    throw wrongType('useAdapterMethod', 'method', 'what defineAdapter returns', method);
  }
  ownMethods.set(method.method, method);
}

function methodOf(op: string, adapter: unknown): AnyMethod {
  if (typeof adapter !== 'string') {
    const given = adapter as AnyMethod | null;
    if (typeof given?.create !== 'function' || typeof given.definition?.forward !== 'function') {
      throw wrongType(op, 'adapter', 'the name of a method or what defineAdapter returns', adapter);
    }
    useAdapterMethod(given);
    return given;
  }
  const found = ownMethods.get(adapter) ?? adapterMethods.find(({ method }) => method === adapter);
  if (found !== undefined) return found;
  const names = adapterMethods.map(({ method }) => method).join(', ');
  const expected = `one of ${names}, or a method that useAdapterMethod made known`;
  return fail('ERR_VALUE', op, 'adapter', expected, JSON.stringify(adapter));
}

/**
 * Checks settings that do not depend on the layer.
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_VALUE`, `ERR_FORMAT`, `ERR_UNSUPPORTED`
 */
export function readConfig(op: string, config: unknown): LayerConfig {
  if (config === null || typeof config !== 'object') {
    throw wrongType(op, 'config', 'an object', config);
  }
  const given = config as LoraConfig;
  const method = methodOf(op, given.adapter ?? 'lora');
  const { frozen = [], inputs = [], drawIndexes, drawTogether } = method.definition;
  if (
    frozen.length > 0 ||
    inputs.length > 0 ||
    drawIndexes !== undefined ||
    drawTogether !== undefined
  ) {
    const expected =
      'a method whose tensors are all trained (a layer saves nothing else; adapterLinear takes every method)';
    fail('ERR_UNSUPPORTED', op, 'adapter', expected, method.method);
  }
  const own = given.settings ?? {};
  if (typeof own !== 'object') throw wrongType(op, 'settings', 'an object', own);
  const settings: Record<string, unknown> = { ...own };
  for (const name of ['r', 'loraAlpha', 'rslora', 'dropout'] as const) {
    if (given[name] !== undefined && given[name] !== null) settings[name] = given[name];
  }
  const seed = given.seed ?? 0;
  if (!Number.isSafeInteger(seed) || seed < 0) {
    fail('ERR_VALUE', op, 'seed', 'an integer from 0 to 2^53 - 1', String(seed));
  }
  const store = {
    format: given.format ?? undefined,
    ...(given.blocksize == null ? {} : { blocksize: given.blocksize }),
  };
  const checked = { method, settings, store, seed, device: defaultDevice() };
  requireRestorable(op, store);
  // One block, so that a format or a blocksize that does not exist is rejected here.
  storeWeight(new Float32Array(1), [1, 1], checked).dispose();
  return checked;
}

/**
 * A model is saved with the kernel's values, and encoding them again must give the same codes. That holds where the
 * largest value of a block is a level of the format: not for the dynamic map of int8, whose levels begin at -0.993.
 */
function requireRestorable(op: string, { format }: LayerConfig['store']): void {
  if (format !== 'int8') return;
  const expected = 'nf4, fp4 or int4 (with int8 a saved model would not restore its bits)';
  fail('ERR_UNSUPPORTED', op, 'format', expected, format);
}

/** A kernel's values [N, K] as the layer keeps them. */
export function storeWeight(
  values: Float32Array,
  shape: readonly [N: number, K: number],
  { store: { format, ...options }, device }: LayerConfig,
): QuantizedWeight | Tensor {
  const dense = Tensor.from(values, shape, { device });
  if (format === undefined) return dense;
  try {
    return quantize(dense, { format, ...options });
  } finally {
    dense.dispose();
  }
}

/** What `getConfig` of the layer adds to that of a dense layer. */
export function savedConfig({
  method,
  settings,
  store,
  seed,
}: LayerConfig): Required<Pick<LoraConfig, 'adapter' | 'settings' | 'seed'>> & LoraConfig {
  const { format, ...options } = store;
  return {
    adapter: method.method,
    settings: { ...settings },
    ...(format === undefined ? {} : { format }),
    ...options,
    seed,
  };
}
