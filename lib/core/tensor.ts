import { type NativeHandle, native, nativeAsync } from './binding.js';
import { type Device, resolveDevice } from './device.js';
import { checkDType, type DType, dtypeBytes } from './dtype.js';
import { fail, LowrankError, markClass, notConstructed, wrongType } from './errors.js';
import { noteWritten, refuseInStep } from './recording.js';
import { track } from './scope.js';
import { checkDims, checkFinite, newArray, readOptions, seedWords } from './validate.js';

/** Device and dtype of a new tensor. */
export interface TensorOptions {
  /** Default `f32`. */
  dtype?: DType;
  /** Default {@link defaultDevice}. */
  device?: Device;
}

/** Values for a new tensor. A Uint16Array holds the bits of bf16 or f16 values. */
export type TensorData =
  | Float32Array
  | Float64Array
  | Uint16Array
  | readonly number[]
  | Float16ArrayLike;

/** `Float16Array`, if the runtime has it. */
export interface Float16ArrayLike extends ArrayBufferView {
  readonly length: number;
  readonly BYTES_PER_ELEMENT: number;
  readonly [Symbol.toStringTag]: 'Float16Array';
}

function isFloat16Array(data: unknown): data is Float16ArrayLike {
  return (
    ArrayBuffer.isView(data) && Object.prototype.toString.call(data) === '[object Float16Array]'
  );
}

/** Is it a typed array of that class? A proxy of one is not: the addon cannot see its memory. */
function isTyped<T>(type: new (length: number) => T, data: unknown): data is T {
  return ArrayBuffer.isView(data) && data instanceof type;
}

/**
 * The form that the addon takes: typed arrays as they are, numbers as doubles, f16 values as bits.
 * The length is compared with the shape before an array of numbers is copied, because it may claim
 * any length.
 */
function hostArray(
  op: string,
  data: unknown,
  shape: readonly number[],
): Float32Array | Float64Array | Uint16Array {
  if (isTyped(Float32Array, data) || isTyped(Float64Array, data) || isTyped(Uint16Array, data)) {
    checkLength(op, data.length, shape);
    return data;
  }
  if (isFloat16Array(data)) {
    checkLength(op, data.length, shape);
    return new Uint16Array(data.buffer, data.byteOffset, data.length);
  }
  const expected = 'a Float32Array, Float64Array, Uint16Array, Float16Array or array of numbers';
  if (!Array.isArray(data)) throw wrongType(op, 'data', expected, data);
  checkLength(op, data.length, shape);
  const values = new Float64Array(elements(shape));
  for (let i = 0; i < values.length; i++) {
    const value: unknown = data[i];
    if (typeof value !== 'number') throw wrongType(op, `data[${i}]`, 'a number', value);
    values[i] = value;
  }
  return values;
}

/** State shared by all tensors over one buffer, whichever parts of it they wrap. */
const wrapped = new WeakMap<ArrayBufferLike, { writes: number }>();

function memoryOf(buffer: ArrayBufferLike): { writes: number } {
  const known = wrapped.get(buffer) ?? { writes: 0 };
  wrapped.set(buffer, known);
  return known;
}

function elements(shape: readonly number[]): number {
  return shape.reduce((product, dim) => product * dim, 1);
}

function checkLength(op: string, length: number, shape: readonly number[]): void {
  const expected = elements(shape);
  if (length !== expected) {
    fail(
      'ERR_SHAPE',
      op,
      'data',
      `of length ${expected} (shape [${shape.join(', ')}])`,
      `${length}`,
    );
  }
}

/**
 * A dense row-major array on a device. It owns its memory until {@link Tensor.dispose}, or shares it
 * with others ({@link Tensor.reshape}). Queued ops hold the memory they need, so you may dispose a
 * tensor right after a call. Ops return at once; only reading waits.
 * @example
 * using x = Tensor.from(new Float32Array(6), [2, 3], { dtype: 'bf16' });
 */
export class Tensor implements Disposable {
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly device: Device;
  #handle: NativeHandle | undefined;
  /** State shared by all tensors over the same memory; undefined until a second one is made or one is written to. */
  #memory: { writes: number } | undefined;

  private constructor(
    handle: NativeHandle,
    shape: readonly number[],
    dtype: DType,
    device: Device,
  ) {
    if (typeof device !== 'string') {
      throw notConstructed('Tensor', 'Tensor.from, Tensor.zeros, Tensor.randn or Tensor.uniform');
    }
    this.#handle = handle;
    this.shape = shape;
    this.dtype = dtype;
    this.device = device;
    track(this);
  }

  /** @internal Makes a tensor from a fresh native handle. */
  static adopt(
    handle: NativeHandle,
    shape: readonly number[],
    dtype: DType,
    device: Device,
  ): Tensor {
    const own = Object.isFrozen(shape) ? shape : Object.freeze([...shape]);
    return new Tensor(handle, own, dtype, device);
  }

  /** Is this a tensor of this library? False for a proxy or an imitation, which have no memory. */
  static is(value: unknown): value is Tensor {
    return typeof value === 'object' && value !== null && #handle in value;
  }

  /** @internal Do both overlap in memory, even in part? */
  static sharesMemory(a: Tensor, b: Tensor): boolean {
    if (a === b) return true;
    const [one, other] = [a.#handle, b.#handle];
    if (one === undefined || other === undefined) return false;
    return native('overlap', (raw) => raw.overlap(one, other));
  }

  /** @internal How often it has been written to. What was computed from it at another count is out of date. */
  static writesOf(tensor: Tensor): number {
    return tensor.#memory?.writes ?? 0;
  }

  /** @internal An op that writes to an operand calls this. */
  static written(tensor: Tensor): void {
    tensor.#memory ??= { writes: 0 };
    tensor.#memory.writes++;
    noteWritten(tensor);
  }

  /** @internal The live handle. @throws ERR_DISPOSED */
  static handleOf(tensor: Tensor, op: string, operand: string): NativeHandle {
    const handle = tensor.#handle;
    if (handle === undefined) fail('ERR_DISPOSED', op, operand, 'a live tensor', 'a disposed one');
    return handle;
  }

  /**
   * Copies `data` into a new tensor, rounding once to its dtype.
   * @param data values; a Uint16Array (or Float16Array) holds 16-bit values and needs `dtype`
   *   `bf16` or `f16` (a Float16Array is f16 by default)
   * @param shape dimensions, row-major; their product is the length of `data`
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_OOM
   */
  static from(data: TensorData, shape: readonly number[], options?: TensorOptions): Tensor {
    const op = 'Tensor.from';
    const { dtype: askedDType, device: askedDevice } = readOptions(op, options, {
      dtype: true,
      device: true,
    });
    const dims = checkDims(op, shape);
    const source = hostArray(op, data, dims);
    const half = isFloat16Array(data);
    const dtype = checkDType(op, 'dtype', askedDType ?? (half ? 'f16' : 'f32'));
    if (half && dtype !== 'f16')
      fail('ERR_DTYPE', op, 'dtype', 'f16 for a Float16Array', `"${dtype}"`);
    if (source instanceof Uint16Array && dtype === 'f32') {
      fail('ERR_DTYPE', op, 'dtype', 'bf16 or f16 (a Uint16Array holds 16-bit values)', '"f32"');
    }
    const device = resolveDevice(op, askedDevice);
    refuseInStep(op, device, 'host');
    return Tensor.adopt(
      native(op, (raw) => raw.createTensor(device, dtype, dims, source)),
      dims,
      dtype,
      device,
    );
  }

  /**
   * A tensor over memory that belongs to the caller: data is not copied.
   *
   * A typed array must lie over a `SharedArrayBuffer` (an `ArrayBuffer` can be detached while a
   * kernel reads it). It stays alive until the last op that uses it has run. A pointer (bigint) is
   * trusted: the memory must stay valid until `dispose()` and {@link synchronize}. Writing to the
   * memory while queued ops read it is a race; call `synchronize()` first.
   *
   * On a CUDA device a pointer must point to memory of that device. A typed array is page-locked,
   * and the kernels read it over the bus: good for sharing, slow for data that is used often.
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE
   */
  static wrap(
    data: Float32Array | Uint16Array | bigint,
    shape: readonly number[],
    options?: TensorOptions,
  ): Tensor {
    const op = 'Tensor.wrap';
    const { dtype: askedDType, device: askedDevice } = readOptions(op, options, {
      dtype: true,
      device: true,
    });
    const dims = checkDims(op, shape);
    const bits = isTyped(Uint16Array, data);
    if (!bits && !isTyped(Float32Array, data) && typeof data !== 'bigint') {
      throw wrongType(op, 'data', 'a Float32Array, Uint16Array or bigint pointer', data);
    }
    const dtype = checkDType(op, 'dtype', askedDType ?? 'f32');
    if (typeof data !== 'bigint') {
      if (!(data.buffer instanceof SharedArrayBuffer)) {
        throw wrongType(op, 'data.buffer', 'a SharedArrayBuffer', data.buffer);
      }
      if (bits !== (dtype !== 'f32')) {
        fail('ERR_DTYPE', op, 'dtype', bits ? 'bf16 or f16' : 'f32', `"${dtype}"`);
      }
      checkLength(op, data.length, dims);
    }
    const device = resolveDevice(op, askedDevice);
    const tensor = Tensor.adopt(
      native(op, (raw) => raw.wrapTensor(device, dtype, dims, data)),
      dims,
      dtype,
      device,
    );
    if (typeof data !== 'bigint') tensor.#memory = memoryOf(data.buffer);
    return tensor;
  }

  /** A tensor of zeros. @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_OOM */
  static zeros(shape: readonly number[], options?: TensorOptions): Tensor {
    const op = 'Tensor.zeros';
    const { dtype: askedDType, device: askedDevice } = readOptions(op, options, {
      dtype: true,
      device: true,
    });
    const dims = checkDims(op, shape);
    const dtype = checkDType(op, 'dtype', askedDType ?? 'f32');
    const device = resolveDevice(op, askedDevice);
    return Tensor.adopt(
      native(op, (raw) => raw.createTensor(device, dtype, dims, null)),
      dims,
      dtype,
      device,
    );
  }

  /**
   * Normally distributed values, `mean + std · z`. Element i depends on the seed and i only
   * (Philox4x32-10 and Box–Muller): the same bits on every device.
   * @param options.seed integer from 0 to 2^53 - 1
   * @param options.std default 1
   * @param options.mean default 0
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_OOM
   */
  static randn(
    shape: readonly number[],
    options: TensorOptions & { seed: number; std?: number; mean?: number },
  ): Tensor {
    const given = readOptions('Tensor.randn', options, {
      dtype: true,
      device: true,
      seed: true,
      std: true,
      mean: true,
    });
    return Tensor.#random('Tensor.randn', shape, given, 'normal', given.mean ?? 0, given.std ?? 1);
  }

  /**
   * Uniformly distributed values in [low, high); otherwise like {@link Tensor.randn}.
   * @param options.low default 0
   * @param options.high default 1
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_OOM
   */
  static uniform(
    shape: readonly number[],
    options: TensorOptions & { seed: number; low?: number; high?: number },
  ): Tensor {
    const op = 'Tensor.uniform';
    const given = readOptions(op, options, {
      dtype: true,
      device: true,
      seed: true,
      low: true,
      high: true,
    });
    const low = checkFinite(op, 'low', given.low ?? 0);
    const high = checkFinite(op, 'high', given.high ?? 1);
    if (high < low) fail('ERR_VALUE', op, 'high', `at least low (${low})`, String(high));
    return Tensor.#random(op, shape, given, 'uniform', (low + high) / 2, (high - low) / 2);
  }

  static #random(
    op: string,
    shape: readonly number[],
    given: Partial<TensorOptions & { seed: number }>,
    kind: 'normal' | 'uniform',
    mean: number,
    scale: number,
  ): Tensor {
    const dims = checkDims(op, shape);
    const dtype = checkDType(op, 'dtype', given.dtype ?? 'f32');
    const [low, high] = seedWords(op, given.seed);
    checkFinite(op, 'mean', mean);
    if (checkFinite(op, 'std', scale) < 0) fail('ERR_VALUE', op, 'std', 'not negative', `${scale}`);
    const device = resolveDevice(op, given.device);
    refuseInStep(op, device, 'seed');
    return Tensor.adopt(
      native(op, (raw) =>
        raw.randomTensor(device, dtype, dims, kind, low, high, mean, scale, null),
      ),
      dims,
      dtype,
      device,
    );
  }

  /** Number of elements. */
  get size(): number {
    return elements(this.shape);
  }

  /** Bytes of memory. */
  get byteLength(): number {
    return this.size * dtypeBytes(this.dtype);
  }

  get disposed(): boolean {
    return this.#handle === undefined;
  }

  /**
   * The values as f32, once every earlier queued op has run.
   * @throws ERR_DISPOSED; the error of an op that made this tensor (ERR_NON_FINITE, ...)
   */
  async read(): Promise<Float32Array> {
    const handle = Tensor.handleOf(this, 'read', 'tensor');
    refuseInStep('read', this.device, 'read');
    return new Float32Array(
      await nativeAsync<ArrayBuffer>('read', (raw, done) => raw.read(handle, null, 'f32', done)),
    );
  }

  /** The raw bits of a bf16 or f16 tensor. @throws ERR_DISPOSED; ERR_DTYPE for f32 */
  async readBits(): Promise<Uint16Array> {
    const handle = Tensor.handleOf(this, 'readBits', 'tensor');
    refuseInStep('readBits', this.device, 'read');
    if (this.dtype === 'f32') fail('ERR_DTYPE', 'readBits', 'tensor', 'bf16 or f16', 'f32');
    return new Uint16Array(
      await nativeAsync<ArrayBuffer>('readBits', (raw, done) =>
        raw.read(handle, null, 'bits', done),
      ),
    );
  }

  /** {@link Tensor.read} that blocks the thread: for scripts and synchronous trainers. */
  readSync(): Float32Array {
    const op = 'readSync';
    const handle = Tensor.handleOf(this, op, 'tensor');
    const values = newArray(op, Float32Array, this.size);
    this.#fill(op, handle, values);
    return values;
  }

  /**
   * Like {@link Tensor.readSync}, into an array of the caller.
   * @param target Float32Array of {@link Tensor.size} elements
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DISPOSED
   */
  readInto(target: Float32Array): void {
    const op = 'readInto';
    const handle = Tensor.handleOf(this, op, 'tensor');
    if (!isTyped(Float32Array, target)) throw wrongType(op, 'target', 'a Float32Array', target);
    if (target.length !== this.size) {
      fail('ERR_SHAPE', op, 'target', `of length ${this.size}`, String(target.length));
    }
    this.#fill(op, handle, target);
  }

  #fill(op: string, handle: NativeHandle, target: Float32Array): void {
    refuseInStep(op, this.device, 'read');
    if (!native(op, (raw) => raw.readSync(handle, null, target))) {
      // worker.terminate() stops a thread only some instructions later, and the target holds nothing.
      throw new LowrankError('ERR_CANCELLED', `${op}: the environment is closing`);
    }
  }

  /**
   * Replaces the values, after all earlier queued ops.
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DISPOSED
   */
  write(data: TensorData): void {
    const op = 'write';
    const handle = Tensor.handleOf(this, op, 'tensor');
    const source = hostArray(op, data, this.shape);
    if (isFloat16Array(data) && this.dtype !== 'f16') {
      fail('ERR_DTYPE', op, 'data', `values of ${this.dtype}`, 'a Float16Array');
    }
    if (source instanceof Uint16Array && this.dtype === 'f32') {
      fail('ERR_DTYPE', op, 'data', 'a Float32Array (the tensor is f32)', 'a Uint16Array');
    }
    refuseInStep(op, this.device, 'host');
    native(op, (raw) => raw.writeTensor(handle, source));
    Tensor.written(this);
  }

  /**
   * A copy with another dtype (rounded once), on another device, or both.
   * @throws ERR_TYPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM
   */
  to(target: TensorOptions): Tensor {
    const op = 'to';
    const given = readOptions(op, target, { dtype: true, device: true });
    const handle = Tensor.handleOf(this, op, 'tensor');
    const dtype = given.dtype === undefined ? this.dtype : checkDType(op, 'dtype', given.dtype);
    const device = given.device === undefined ? this.device : resolveDevice(op, given.device);
    if (device === this.device) {
      const cast = native(op, (raw) => raw.castTensor(handle, dtype));
      return Tensor.adopt(cast, this.shape, dtype, device);
    }
    refuseInStep(op, this.device, 'read');
    const moved = Tensor.adopt(
      native(op, (raw) => raw.toDevice(handle, device)),
      this.shape,
      this.dtype,
      device,
    );
    if (dtype === this.dtype) return moved;
    try {
      return moved.to({ dtype });
    } finally {
      moved.dispose();
    }
  }

  /**
   * The same values with another row-major shape, without a copy: a second tensor over the same
   * memory. A write to one, by {@link Tensor.write} or by an op that adds to it, changes the other.
   * Each tensor is disposed separately; the memory is freed with the last.
   * @param shape dimensions whose product is {@link Tensor.size}
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DISPOSED
   * @example
   * const heads = x.reshape([M, G, K / G]); // blocks of x [M, K], for a product of each
   */
  reshape(shape: readonly number[]): Tensor {
    const op = 'reshape';
    const dims = checkDims(op, shape);
    const handle = Tensor.handleOf(this, op, 'tensor');
    if (elements(dims) !== this.size) {
      const expected = `of ${this.size} elements (the tensor is [${this.shape.join(', ')}])`;
      fail('ERR_SHAPE', op, 'shape', expected, `[${dims.join(', ')}]`);
    }
    const view = Tensor.adopt(
      native(op, (raw) => raw.reshape(handle, dims)),
      dims,
      this.dtype,
      this.device,
    );
    this.#memory ??= { writes: 0 };
    view.#memory = this.#memory;
    return view;
  }

  /** Frees the memory as soon as no queued op needs it. A second call does nothing. */
  dispose(): void {
    const handle = this.#handle;
    if (handle === undefined) return;
    this.#handle = undefined;
    native('dispose', (raw) => raw.dispose(handle));
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(Tensor, 'Tensor');
