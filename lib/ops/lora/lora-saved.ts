/** The saved state of a forward pass with an adapter, and the call that makes it. */
import type { NativeHandle, RawLoraPart } from '../../core/binding.js';
import { markClass, notConstructed } from '../../core/errors.js';
import { track } from '../../core/scope.js';
import type { Tensor } from '../../core/tensor.js';
import type { BaseWeight } from '../base-weight.js';
import type { LoraAdapter } from './lora-adapter.js';

/**
 * State for the backward pass: `x` (only if loraA is trained) and `h = x · loraAᵀ` (only if loraB
 * is). It holds them until {@link loraBackward} or {@link LoraSaved.dispose}, even if the caller
 * disposes `x` at once. No dropout mask is stored.
 */
export class LoraSaved implements Disposable {
  readonly w: BaseWeight;
  readonly adapter: LoraAdapter;
  /** `x` of the forward pass, if kept. */
  readonly x: Tensor | undefined;
  /** [..., r] f32, if kept. */
  readonly h: Tensor | undefined;
  /** Shape of `y`. */
  readonly yShape: readonly number[];
  readonly hasBias: boolean;
  readonly dropout: number;
  readonly seed: number;
  readonly dropoutMask: Tensor | undefined;
  #disposed = false;

  /** @internal */
  constructor(fields: {
    w: BaseWeight;
    adapter: LoraAdapter;
    x: Tensor | undefined;
    h: Tensor | undefined;
    yShape: readonly number[];
    hasBias: boolean;
    dropout: number;
    seed: number;
    dropoutMask: Tensor | undefined;
  }) {
    if (!Array.isArray(fields?.yShape)) throw notConstructed('LoraSaved', 'loraForward');
    this.w = fields.w;
    this.adapter = fields.adapter;
    this.x = fields.x;
    this.h = fields.h;
    this.yShape = fields.yShape;
    this.hasBias = fields.hasBias;
    this.dropout = fields.dropout;
    this.seed = fields.seed;
    this.dropoutMask = fields.dropoutMask;
    track(this);
  }

  /** Is this a saved state of this library? False for a proxy or an imitation. */
  static is(value: unknown): value is LoraSaved {
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
markClass(LoraSaved, 'LoraSaved');

/** A checked call of {@link loraForward}: the addon's arguments after x, and what to do with its results. */
export interface LoraForwardCall {
  readonly args: RawLoraPart;
  /** Some of the arguments, by name. */
  readonly parts: {
    readonly handle: NativeHandle;
    readonly loraA: NativeHandle;
    readonly dropout: number;
    readonly words: readonly [number, number];
    readonly mask: NativeHandle | null;
    readonly compute: string;
  };
  /** Will {@link LoraForwardCall.finish} hold x? */
  readonly keepX: boolean;
  finish(
    y: NativeHandle,
    h: NativeHandle,
    held: NativeHandle | null,
  ): { y: Tensor; saved: LoraSaved };
  /** Like finish, for tensors. */
  complete(y: Tensor, h: Tensor, held: NativeHandle | null): { y: Tensor; saved: LoraSaved };
}
