import { notConstructed } from '../../core/errors.js';
import { track } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import type { BaseWeight } from '../base-weight.js';
import type { LoraAdapter } from '../lora/lora-adapter.js';

/** An adapter that has rows in a batch. */
export interface GroupedEntry {
  readonly name: string;
  readonly adapter: LoraAdapter;
  /** Its drop probability in this call; 0 if it is not a training step. */
  readonly dropout: number;
}

/**
 * State for `GroupedLora.backward`: `x` (only if a loraA is trained), the packed `h` (only if a loraB is trained, or
 * there are gates), and the adapters of each row. It holds them until the backward pass or {@link GroupedSaved.dispose}.
 * The adapters, the base weight, `rowScale` and `dropoutMask` belong to the caller and must live as long.
 */
export class GroupedSaved implements Disposable {
  readonly w: BaseWeight;
  /** The adapters that have rows, in the order of the packed `h`. */
  readonly entries: readonly GroupedEntry[];
  /** For each slot of each row of x folded to [M, K], the index of its adapter in `entries`, or -1. */
  readonly adapterOf: Int32Array;
  /** Number of adapters that a row may have. */
  readonly slots: number;
  /** `x` of the forward pass, if kept. */
  readonly x: Tensor | undefined;
  /** [Σ rows · r] f32: the [rows, r] of each adapter, if kept. */
  readonly h: Tensor | undefined;
  readonly rowScale: Tensor | undefined;
  /** Shape of `y`. */
  readonly yShape: readonly number[];
  readonly inFeatures: number;
  readonly hasBias: boolean;
  readonly seed: number;
  readonly dropoutMask: Tensor | undefined;
  #disposed = false;

  /** @internal */
  constructor(fields: {
    w: BaseWeight;
    entries: readonly GroupedEntry[];
    adapterOf: Int32Array;
    slots: number;
    x: Tensor | undefined;
    h: Tensor | undefined;
    rowScale: Tensor | undefined;
    yShape: readonly number[];
    inFeatures: number;
    hasBias: boolean;
    seed: number;
    dropoutMask: Tensor | undefined;
  }) {
    if (!Array.isArray(fields?.entries))
      throw notConstructed('GroupedSaved', 'GroupedLora.forward');
    this.w = fields.w;
    this.entries = fields.entries;
    this.adapterOf = fields.adapterOf;
    this.slots = fields.slots;
    this.x = fields.x;
    this.h = fields.h;
    this.rowScale = fields.rowScale;
    this.yShape = fields.yShape;
    this.inFeatures = fields.inFeatures;
    this.hasBias = fields.hasBias;
    this.seed = fields.seed;
    this.dropoutMask = fields.dropoutMask;
    track(this);
  }

  /** Is this a saved state of this library? False for a proxy or an imitation. */
  static is(value: unknown): value is GroupedSaved {
    return typeof value === 'object' && value !== null && #disposed in value;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Frees the saved state. A second call does nothing. */
  dispose(): void {
    this.#disposed = true;
    this.x?.dispose();
    this.h?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
