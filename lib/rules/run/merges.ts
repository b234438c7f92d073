/** What a run has merged into its base: factors by layer, and the base that they make. */

import { fail } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import type { DecoderWeights } from '../../model/decoder-weights.js';
import type { LinearSource } from '../../model/linear-source.js';
import type { LinearPlace } from '../../model/places.js';
import { mergeLora } from '../../ops/lora/merge.js';
import type { StoredState } from '../../optim/run/optimizer-run.js';
import type { RuleUpdate } from '../definition/run.js';

/** A layer that may be merged. */
export interface MergingLayer {
  readonly place: LinearPlace;
  readonly r: number;
  readonly scaling: number;
}

/**
 * The updates that a run has merged. The base of a layer is its weight in the files and the sum of them, stored once: it
 * follows from them alone, so a checkpoint has them and no base.
 */
export class Merges {
  #layers: ReadonlyMap<string, MergingLayer> = new Map();
  readonly #factors = new Map<string, RuleUpdate[]>();
  /** Of a checkpoint that is being read. */
  #read = new Map<string, RuleUpdate[]>();

  constructor(
    private readonly weights: DecoderWeights,
    private readonly source: LinearSource | undefined,
  ) {}

  /** The layers that may be merged. */
  set layers(layers: readonly MergingLayer[]) {
    this.#layers = new Map(layers.map((layer) => [layer.place.module, layer]));
  }

  /** The updates of each layer, oldest first. */
  get factors(): ReadonlyMap<string, readonly RuleUpdate[]> {
    return this.#factors;
  }

  /** How often each layer was merged, in the order of the layers. */
  get counts(): readonly number[] {
    return [...this.#layers.keys()].map((module) => this.#factors.get(module)?.length ?? 0);
  }

  /** Adds an update to a layer's base. */
  add(module: string, factors: RuleUpdate): void {
    this.set(module, [...(this.#factors.get(module) ?? []), factors]);
  }

  /** The updates that a layer's base has, in place of those before. */
  set(module: string, updates: readonly RuleUpdate[]): void {
    this.#build(module, updates);
    this.#factors.set(module, [...updates]);
  }

  #build(module: string, factors: readonly RuleUpdate[]): void {
    const layer = this.#layers.get(module) as MergingLayer;
    const { place, r, scaling } = layer;
    const { source } = this;
    if (source === undefined) {
      fail(
        'ERR_UNSUPPORTED',
        'rule',
        'the base',
        'given with its files, to be merged into',
        'none',
      );
    }
    const base = scope(() => {
      const w = source.read(place);
      const { device } = w;
      for (const { a, b } of factors) {
        const loraA = Tensor.from(a, [r, place.K], { device });
        const loraB = Tensor.from(b, [place.N, r], { device });
        mergeLora(w, { loraA, loraB, scaling });
      }
      return source.store(place, w);
    });
    this.weights.replace(module, base);
  }

  /**
   * What a checkpoint has, or will have after it is read.
   * @param counts merges of each layer
   */
  storedOf(counts: readonly number[]): readonly StoredState[] {
    const read = new Map<string, RuleUpdate[]>();
    this.#read = read;
    return [...this.#layers].flatMap(([module, { place, r }], i) =>
      Array.from({ length: counts[i] ?? 0 }, (_, n) => {
        const parts = [
          ['a', [r, place.K]],
          ['b', [place.N, r]],
        ] as const;
        return parts.map(
          ([part, shape]): StoredState => ({
            name: `merged/${n}/${module}.${part}`,
            shape,
            notNegative: false,
            dtype: 'F32',
            read: () => this.#factors.get(module)?.[n]?.[part] as Float32Array,
            write: (values) => {
              const list = read.get(module) ?? [];
              list[n] = { ...(list[n] as RuleUpdate), [part]: values as Float32Array };
              read.set(module, list);
            },
          }),
        );
      }).flat(),
    );
  }

  /** Builds the bases of a checkpoint that was read. */
  restore(): void {
    for (const [module, factors] of this.#read) {
      this.#build(module, factors);
      this.#factors.set(module, factors);
    }
    this.#read = new Map();
  }
}
