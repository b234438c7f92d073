import { native } from './binding.js';
import type { Device } from './device.js';
import { checkDType } from './dtype.js';
import { fail, markClass, notConstructed } from './errors.js';
import { Tensor, type TensorOptions } from './tensor.js';
import {
  checkDims,
  checkDropout,
  checkFinite,
  orDefault,
  readOptions,
  seedWords,
} from './validate.js';

/** The two words of a seed as the bits of two f32. */
function bitsOf(op: string, seed: unknown): Float32Array {
  return new Float32Array(Uint32Array.from(seedWords(op, seed)).buffer);
}

/**
 * A seed in the memory of a device. Random numbers are drawn from the value that it has when the op runs, so each
 * replay of a captured step can have others: {@link DeviceSeed.write} it before. The same bits as with the number.
 * @example
 * const seed = DeviceSeed.from(1, { device: 'cuda' });
 * const mask = seed.keepMask([M, K], 0.1);
 */
export class DeviceSeed implements Disposable {
  readonly #at: Tensor;
  readonly #offset: number;

  private constructor(at: Tensor, offset: number) {
    if (!Tensor.is(at) || typeof offset !== 'number')
      throw notConstructed('DeviceSeed', 'DeviceSeed.from');
    this.#at = at;
    this.#offset = offset;
  }

  /** @param seed integer from 0 to 2^53 - 1 @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE, ERR_OOM */
  static from(seed: number, options?: { device?: Device }): DeviceSeed {
    const op = 'DeviceSeed.from';
    const { device } = readOptions(op, options, { device: true });
    const at = Tensor.from(bitsOf(op, seed), [2], device === undefined ? {} : { device });
    return new DeviceSeed(at, 0);
  }

  /** Is this one of ours? */
  static is(value: unknown): value is DeviceSeed {
    return typeof value === 'object' && value !== null && #at in value;
  }

  get device(): Device {
    return this.#at.device;
  }

  /** Replaces the seed, after all earlier queued ops. @throws ERR_TYPE, ERR_VALUE, ERR_DISPOSED */
  write(seed: number): void {
    this.#at.write(bitsOf('DeviceSeed.write', seed));
  }

  /** The seed that is larger by `n`, in the same memory: for another draw of the same step. */
  plus(n: number): DeviceSeed {
    seedWords('DeviceSeed.plus', n);
    return new DeviceSeed(this.#at, this.#offset + n);
  }

  /** {@link Tensor.randn} from this seed. @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DISPOSED, ERR_OOM */
  randn(shape: readonly number[], options?: Pick<TensorOptions, 'dtype'>): Tensor {
    return this.#draw('DeviceSeed.randn', 'normal', shape, 0, 1, options);
  }

  /** {@link Tensor.uniform} from this seed, in [low, high). @throws as {@link DeviceSeed.randn}; ERR_VALUE */
  uniform(
    shape: readonly number[],
    options: Pick<TensorOptions, 'dtype'> & { low?: number; high?: number } = {},
  ): Tensor {
    const op = 'DeviceSeed.uniform';
    const given = readOptions(op, options, { dtype: true, low: true, high: true });
    const low = checkFinite(op, 'low', orDefault(given.low, 0));
    const high = checkFinite(op, 'high', orDefault(given.high, 1));
    if (high < low) fail('ERR_VALUE', op, 'high', `at least low (${low})`, String(high));
    const { dtype } = given;
    const as = dtype === undefined ? {} : { dtype };
    return this.#draw(op, 'uniform', shape, (low + high) / 2, (high - low) / 2, as);
  }

  /**
   * The mask of dropout: 0 with probability p, else 1. As `dropoutMask` of an op with the same p it gives the bits of
   * that op with the number as seed.
   * @throws as {@link DeviceSeed.randn}; ERR_VALUE
   */
  keepMask(shape: readonly number[], p: number, options?: Pick<TensorOptions, 'dtype'>): Tensor {
    const op = 'DeviceSeed.keepMask';
    return this.#draw(op, 'keep', shape, checkDropout(op, p), 0, options);
  }

  #draw(
    op: string,
    kind: 'normal' | 'uniform' | 'keep',
    shape: readonly number[],
    mean: number,
    scale: number,
    options: Pick<TensorOptions, 'dtype'> | undefined,
  ): Tensor {
    const dims = checkDims(op, shape);
    const given = readOptions(op, options, { dtype: true }).dtype;
    const dtype = given === undefined ? 'f32' : checkDType(op, 'dtype', given);
    const [low, high] = seedWords(op, this.#offset);
    const at = Tensor.handleOf(this.#at, op, 'this');
    const { device } = this;
    return Tensor.adopt(
      native(op, (raw) => raw.randomTensor(device, dtype, dims, kind, low, high, mean, scale, at)),
      dims,
      dtype,
      device,
    );
  }

  /** Frees the memory; seeds made by {@link DeviceSeed.plus} share it. Twice is a no-op. */
  dispose(): void {
    this.#at.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(DeviceSeed, 'DeviceSeed');
