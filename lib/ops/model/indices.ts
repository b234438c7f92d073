import { type NativeHandle, native } from '../../core/binding.js';
import { type Device, resolveDevice } from '../../core/device.js';
import { fail, markClass, wrongType } from '../../core/errors.js';
import { refuseInStep } from '../../core/recording.js';
import { track } from '../../core/scope.js';
import { checkInteger, readOptions } from '../../core/validate.js';

const MAX_INDEX = 2 ** 31 - 1;

/** How {@link Indices} are made. */
export interface IndicesOptions {
  /** Every index is below this: the rows of the table, or of the matrix, that they point into. */
  limit: number;
  /** Default false. `true` allows negative indices, which stand for "none" and are stored as -1. */
  holes?: boolean;
  /** Default {@link defaultDevice}. */
  device?: Device;
}

function int32(op: string, values: unknown): Int32Array {
  if (ArrayBuffer.isView(values) && values instanceof Int32Array) return values;
  if (!Array.isArray(values)) {
    throw wrongType(op, 'values', 'an Int32Array or an array of numbers', values);
  }
  return Int32Array.from(values, (value, i) =>
    checkInteger(op, `values[${i}]`, value, -MAX_INDEX, MAX_INDEX),
  );
}

/**
 * 32-bit indices on a device: the ids of tokens, the targets of a loss, the rows at which documents
 * begin. They are checked where they enter, so that kernels can read where they point. The native
 * memory is freed by {@link Indices.dispose}, or with the scope.
 * @example
 * using ids = Indices.from([3, 1, 4, 1, 5], { limit: 32_000 });
 * const x = embedding(ids, table);
 */
export class Indices implements Disposable {
  readonly length: number;
  /** Every index is below this. */
  readonly limit: number;
  /** May an index be negative, for "none"? */
  readonly holes: boolean;
  readonly device: Device;
  #handle: NativeHandle | undefined;

  private constructor(
    handle: NativeHandle,
    { length, limit, holes, device }: Pick<Indices, 'length' | 'limit' | 'holes' | 'device'>,
  ) {
    this.#handle = handle;
    this.length = length;
    this.limit = limit;
    this.holes = holes;
    this.device = device;
    track(this);
  }

  /** @internal Indices in [0, limit) that an op has written. */
  static adopt(handle: NativeHandle, place: Pick<Indices, 'length' | 'limit' | 'device'>): Indices {
    return new Indices(handle, { ...place, holes: false });
  }

  /**
   * Copies indices to a device.
   * @param values integers in [0, limit), and where `holes` is true also negative ones
   * @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE, ERR_OOM
   */
  static from(values: Int32Array | readonly number[], options: IndicesOptions): Indices {
    const op = 'Indices.from';
    const { limit, holes, device } = readOptions(op, options, {
      limit: true,
      holes: true,
      device: true,
    });
    const most = checkInteger(op, 'limit', limit, 0, MAX_INDEX);
    if (holes !== undefined && typeof holes !== 'boolean') {
      throw wrongType(op, 'holes', 'a boolean', holes);
    }
    const own = int32(op, values);
    const place = { limit: most, holes: holes ?? false, device: resolveDevice(op, device) };
    refuseInStep(op, place.device, 'host');
    const handle = native('Indices', (raw) =>
      raw.indices(place.device, own, place.limit, place.holes),
    );
    return new Indices(handle, { ...place, length: own.length });
  }

  /** Is this one of ours? False for a proxy or a forgery, which have no memory. */
  static is(value: unknown): value is Indices {
    return typeof value === 'object' && value !== null && #handle in value;
  }

  /** @internal The live handle. @throws ERR_TYPE · ERR_DISPOSED */
  static handleOf(indices: Indices, op: string, operand: string): NativeHandle {
    const given: unknown = indices;
    if (!Indices.is(given)) throw wrongType(op, operand, 'Indices', given);
    const handle = given.#handle;
    if (handle === undefined) fail('ERR_DISPOSED', op, operand, 'live indices', 'disposed ones');
    return handle;
  }

  /**
   * Replaces all indices, in the order of the device's queue: ops that were called before see the
   * old ones. The memory stays where it is, so a captured step reads the new ones.
   * @param values as many as before, in the same range
   * @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DISPOSED
   */
  write(values: Int32Array | readonly number[]): void {
    const op = 'Indices.write';
    const handle = Indices.handleOf(this, op, 'this');
    refuseInStep(op, this.device, 'host');
    native(op, (raw) => raw.writeIndices(handle, int32(op, values)));
  }

  get disposed(): boolean {
    return this.#handle === undefined;
  }

  /** Frees the memory once no queued op needs it. Twice is a no-op. */
  dispose(): void {
    const handle = this.#handle;
    if (handle === undefined) return;
    this.#handle = undefined;
    native('Indices.dispose', (raw) => raw.dispose(handle));
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(Indices, 'Indices');
