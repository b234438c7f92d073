import type { Device } from '../core/device.js';
import type { DType } from '../core/dtype.js';
import { fail } from '../core/errors.js';
import { outsideScopes, track } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { checkInteger } from '../core/validate.js';
import type { DecoderConfig } from './config/decoder-config.js';

/** The size of a {@link KvCache}. */
export interface KvCacheOptions {
  /** Tokens of a row that fit. */
  readonly capacity: number;
  /** Rows; default 1. */
  readonly batch?: number;
  /** Of the activations; default f32. */
  readonly dtype?: DType;
  readonly device: Device;
}

const kMostTokens = 2 ** 31 - 1;

/**
 * The keys and values of the tokens that a decoder has seen: a token then costs one row of each layer.
 * @example
 * using cache = new KvCache(decoder.config, { capacity: 512, device: 'cpu' });
 */
export class KvCache implements Disposable {
  readonly batch: number;
  readonly capacity: number;
  readonly dtype: DType;
  readonly device: Device;
  /** By layer, [batch, capacity, kvHeads · headDim] each. */
  readonly layers: readonly { readonly k: Tensor; readonly v: Tensor }[];
  #length = 0;

  /** @throws ERR_VALUE, ERR_OOM */
  constructor(
    config: DecoderConfig,
    { capacity, batch = 1, dtype = 'f32', device }: KvCacheOptions,
  ) {
    const op = 'KvCache';
    this.capacity = checkInteger(op, 'capacity', capacity, 1, kMostTokens);
    this.batch = checkInteger(op, 'batch', batch, 1, kMostTokens);
    this.dtype = dtype;
    this.device = device;
    const made: Tensor[] = [];
    const zeros = (cols: number): Tensor => {
      const tensor = Tensor.zeros([batch, capacity, cols], { dtype, device });
      made.push(tensor);
      return tensor;
    };
    try {
      this.layers = outsideScopes(() =>
        config.layers.map(({ attention: { kvHeads, headDim } }) => {
          const cols = kvHeads * headDim;
          return { k: zeros(cols), v: zeros(cols) };
        }),
      );
    } catch (error) {
      for (const tensor of made) tensor.dispose();
      throw error;
    }
    track(this);
  }

  /** Tokens of each row that are there. */
  get length(): number {
    return this.#length;
  }

  /**
   * Checks that a call's rows fit.
   * @throws ERR_SHAPE another number of rows · ERR_VALUE a cache that is full
   */
  requireRoom(op: string, B: number, T: number): void {
    if (B !== this.batch) fail('ERR_SHAPE', op, 'cache', `of ${B} rows`, String(this.batch));
    if (this.#length + T <= this.capacity) return;
    const expected = `one with room for ${T} tokens after its ${this.#length}`;
    fail('ERR_VALUE', op, 'cache', expected, `one of ${this.capacity}`);
  }

  /** A call has written its rows. */
  advance(T: number): void {
    this.#length += T;
  }

  /**
   * Forgets all tokens from this one on; they need not be freed.
   * @throws ERR_VALUE
   */
  truncate(length = 0): void {
    this.#length = checkInteger('KvCache.truncate', 'length', length, 0, this.#length);
  }

  /** Frees the memory. Twice is a no-op. */
  dispose(): void {
    for (const { k, v } of this.layers) {
      k.dispose();
      v.dispose();
    }
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
