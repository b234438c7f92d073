/**
 * All adapters of a run in one flat array, so that clipping, the optimiser and checkpoints are each
 * one loop over one piece of memory.
 */

import { fail } from '../core/errors.js';
import { LoraAdapter } from '../index.js';
import { type BaseModel, type LinearName, linearNames } from './base-model.js';
import type { BaseLinear } from './kernels.js';
import { hash32 } from './random.js';

/** What the adapters of a run look like. */
export interface AdapterConfig {
  readonly r: number;
  readonly loraAlpha: number;
  readonly rslora: boolean;
  readonly dropout: number;
  readonly targets: readonly LinearName[];
}

/** Where one adapter lies in the flat array. */
export interface AdapterSlot {
  readonly layer: BaseLinear;
  readonly r: number;
  /** [r, K] */
  readonly loraA: Float32Array;
  /** [N, r] */
  readonly loraB: Float32Array;
  readonly loraA_elems: number;
  readonly loraB_elems: number;
}

/** The trained parameters, each adapter a view of {@link values}. */
export class AdapterSet {
  readonly values: Float32Array;
  readonly slots: readonly AdapterSlot[];
  readonly scaling: number;
  private readonly byLayer: ReadonlyMap<string, number>;

  /** Fresh adapters: lora_a uniform in ±1/sqrt(K), as PEFT draws it, and lora_b zero. */
  constructor(
    base: BaseModel,
    readonly config: AdapterConfig,
    seed: number,
  ) {
    const { r, loraAlpha, rslora } = config;
    this.scaling = loraAlpha / (rslora ? Math.sqrt(r) : r);
    const layers = base.layers.flatMap((layer) =>
      linearNames.filter((name) => config.targets.includes(name)).map((name) => layer.linear[name]),
    );
    const count = layers.reduce((sum, { N, K }) => sum + r * (N + K), 0);
    this.values = new Float32Array(count);
    let at = 0;
    const take = (size: number) => {
      at += size;
      return this.values.subarray(at - size, at);
    };
    this.slots = layers.map((layer) => {
      const loraA_elems = at;
      const loraA = take(r * layer.K);
      const loraB_elems = at;
      return { layer, r, loraA, loraB: take(layer.N * r), loraA_elems, loraB_elems };
    });
    this.byLayer = new Map(this.slots.map(({ layer }, index) => [layer.name, index]));
    for (const [index, slot] of this.slots.entries()) {
      const { N, K } = slot.layer;
      const fresh = LoraAdapter.init({
        inFeatures: K,
        outFeatures: N,
        r,
        loraAlpha,
        seed: hash32(seed, 'lora_a', index),
      });
      fresh.loraA.readInto(slot.loraA);
      fresh.dispose();
    }
  }

  /** Index of the slot of a layer, or `undefined` where it is not adapted. */
  indexOf(layerName: string): number | undefined {
    return this.byLayer.get(layerName);
  }
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
