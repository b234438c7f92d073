/** Adapters of LoRA as updates of layers, and back. */

import type { Adapter } from '../adapters/definition/adapter.js';
import { checkMethodAdapter } from '../adapters/definition/adapter-map.js';
import type { AnyMethod } from '../adapters/definition/method.js';
import { lora } from '../adapters/methods/low-rank/lora.js';
import { loraFa } from '../adapters/methods/low-rank/lora-fa.js';
import { scalingOf } from '../adapters/parts/scaling.js';
import { anyOf, fail } from '../core/errors.js';
import { Tensor } from '../core/tensor.js';
import type { LoraUpdate } from './definition/definition.js';
import type { Updates } from './merge-updates.js';

const kOp = 'combineAdapters';

/** Adapters by module. */
export type AdapterMap = ReadonlyMap<string, Adapter>;

type LoraConfig = (typeof lora)['definition']['defaults'];

/** The settings of LoRA; those that another method lacks have their defaults. */
const configOf = (adapter: Adapter): LoraConfig => ({
  ...lora.definition.defaults,
  ...(adapter.config as Partial<LoraConfig>),
});

/** A factor, trained or frozen. */
const factorOf = ({ parameters, buffers }: Adapter, name: 'loraA' | 'loraB'): Tensor =>
  ({ ...buffers, ...parameters })[name] as Tensor;

/** Methods whose updates are those of LoRA. */
const kMethods: readonly AnyMethod[] = [lora, loraFa];

/** Settings of LoRA that have no sum. */
const kRefused = { loraBias: false, groups: 1 } as const;

/** @throws ERR_UNSUPPORTED · ERR_TYPE · ERR_DISPOSED */
function checkLora(module: string, adapter: Adapter): void {
  const operand = `adapter of ${module}`;
  checkMethodAdapter(kOp, operand, adapter);
  if (!kMethods.some(({ method }) => method === adapter.method)) {
    const names = anyOf(kMethods.map(({ method }) => method));
    const expected = `of the method ${names} (the sum of other updates has no factors of theirs)`;
    fail('ERR_UNSUPPORTED', kOp, operand, expected, adapter.method);
  }
  for (const [name, standard] of Object.entries(kRefused)) {
    const value = configOf(adapter)[name as keyof typeof kRefused];
    if (value === standard) continue;
    fail('ERR_UNSUPPORTED', kOp, `${name} of ${module}`, String(standard), String(value));
  }
}

/**
 * Layers are of one kind if their kernels are, and either all or none are embeddings. All have adapters of one method.
 * @throws ERR_VALUE
 */
function checkKind(module: string, first: Adapter, other: Adapter): void {
  const kindOf = (adapter: Adapter) => {
    const { embedding, kernel } = configOf(adapter);
    if (embedding) return 'an embedding';
    return kernel.length === 0 ? 'a linear layer' : `a convolution of ${kernel.join(' x ')}`;
  };
  for (const [what, expected, actual] of [
    ['layer', kindOf(first), kindOf(other)],
    ['method', first.method, other.method],
  ] as const) {
    if (expected === actual) continue;
    fail('ERR_VALUE', kOp, `the ${what} of ${module}`, `${expected} in all adapters`, actual);
  }
}

/**
 * The updates of several adapters, read from their devices.
 * @throws ERR_UNSUPPORTED · ERR_VALUE · ERR_NON_FINITE · ERR_TYPE · ERR_DISPOSED
 */
export async function updatesOf(adapters: readonly AdapterMap[]): Promise<Updates[]> {
  const first = new Map<string, Adapter>();
  for (const own of adapters) {
    for (const [module, adapter] of own) {
      checkLora(module, adapter);
      checkKind(module, first.get(module) ?? adapter, adapter);
      first.set(module, first.get(module) ?? adapter);
    }
  }
  return Promise.all(
    adapters.map(async (own) => {
      const updates = await Promise.all([...own].map(readUpdate));
      return new Map([...own.keys()].map((module, i) => [module, updates[i] as LoraUpdate]));
    }),
  );
}

async function readUpdate([module, adapter]: readonly [string, Adapter]): Promise<LoraUpdate> {
  const { inFeatures, outFeatures } = adapter;
  const read = async (name: 'loraA' | 'loraB') => {
    const values = await factorOf(adapter, name).read();
    const at = values.findIndex((value) => !Number.isFinite(value));
    if (at >= 0)
      fail('ERR_NON_FINITE', kOp, `${name} of ${module}`, 'finite', `${values[at]} at ${at}`);
    return values;
  };
  const [loraA, loraB] = [await read('loraA'), await read('loraB')];
  const config = configOf(adapter);
  return { loraA, loraB, r: config.r, inFeatures, outFeatures, scaling: scalingOf(config) };
}

/** Adapters of updates, each with the method, the dtype, the device and the kind of layer of the adapter it is like. */
export function adaptersOf(updates: Updates, like: AdapterMap): Map<string, Adapter> {
  return new Map(
    [...updates].map(([module, update]) => {
      const model = like.get(module) as Adapter;
      const { r, inFeatures, outFeatures, scaling } = update;
      const { device } = model;
      const place = { device, dtype: factorOf(model, 'loraA').dtype };
      const config = { ...model.config, r, loraAlpha: scaling * r, rslora: false };
      const method = kMethods.find((each) => each.method === model.method) as AnyMethod;
      const factors = {
        loraA: Tensor.from(update.loraA, [r, inFeatures], place),
        loraB: Tensor.from(update.loraB, [outFeatures, r], place),
      };
      return [
        module,
        method.from(factors, { ...place, ...config, inFeatures, outFeatures, module }),
      ];
    }),
  );
}
