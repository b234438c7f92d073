import {
  type BitsandbytesState,
  formatBitsandbytes,
  parseBitsandbytes,
} from '../checkpoint/bitsandbytes.js';
import { formatRowInt8, isRowInt8, parseRowInt8 } from '../checkpoint/row-int8-state.js';
import { type NativeHandle, native, nativeAsync } from '../core/binding.js';
import { type Device, resolveDevice } from '../core/device.js';
import { checkDType, type DType } from '../core/dtype.js';
import { fail, wrongType } from '../core/errors.js';
import { track } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { checkTensor, readOptions } from '../core/validate.js';
import { checkCodebook, encodeCodebook } from './codebook.js';
import {
  checkBlocksize,
  checkFormat,
  FORMATS,
  type FormatInfo,
  type QuantFormat,
} from './formats.js';
import { encodeRows, loadRows, type RowInt8, rowBlocksize, storeRows } from './row-int8.js';

/** Blocks of absmax that share one nested absmax under double quantisation. */
const NESTED_BLOCKSIZE = 256;

interface WeightMeta {
  shape: readonly number[];
  format: FormatInfo;
  blocksize: number;
  doubleQuant: boolean;
  nestedBlocksize: number;
  sourceDType: DType;
  device: Device;
  rowwise?: boolean;
}

/**
 * A blockwise quantised base weight [N, K], in bitsandbytes' layout: blocks of `blocksize` elements
 * run over the flattened weight, across row ends.
 *
 * `w[i] = codebook[code[i]] · absmax[i / blocksize]`, where double quantisation stores absmax itself
 * as `absmax_codebook[absmax_8bit] · nested_absmax + absmax_offset`. A rowwise one (bitsandbytes' LLM.int8) has
 * the codebook `-128/127, ..., 127/127` and in all blocks of a row the row's absmax.
 * @example
 * using w4 = quantize(w, { format: 'nf4', doubleQuant: true });
 */
export class QuantizedWeight implements Disposable {
  /** [N, K]; a vector that was quantised keeps its one dimension. */
  readonly shape: readonly number[];
  readonly format: QuantFormat;
  readonly blocksize: number;
  readonly doubleQuant: boolean;
  /** Linear int8 codes with one scale a row, as in bitsandbytes' `Linear8bitLt`. */
  readonly rowwise: boolean;
  readonly device: Device;
  /** dtype of the tensor that was quantised; {@link dequantize}'s default. */
  readonly sourceDType: DType;
  readonly #meta: WeightMeta;
  #handle: NativeHandle | undefined;

  private constructor(handle: NativeHandle, meta: WeightMeta) {
    this.#handle = handle;
    this.#meta = meta;
    this.shape = meta.shape;
    this.format = meta.format.name;
    this.blocksize = meta.blocksize;
    this.doubleQuant = meta.doubleQuant;
    this.rowwise = meta.rowwise ?? false;
    this.device = meta.device;
    this.sourceDType = meta.sourceDType;
    track(this);
  }

  /** @internal */
  static adopt(handle: NativeHandle, meta: WeightMeta): QuantizedWeight {
    return new QuantizedWeight(handle, meta);
  }

  /** Is this a weight of ours? False for a proxy or a forgery of one, which have no memory. */
  static is(value: unknown): value is QuantizedWeight {
    return typeof value === 'object' && value !== null && #handle in value;
  }

  /** @internal The live handle. @throws ERR_DISPOSED */
  static handleOf(weight: QuantizedWeight, op: string, operand: string): NativeHandle {
    const handle = weight.#handle;
    if (handle === undefined) fail('ERR_DISPOSED', op, operand, 'a live weight', 'a disposed one');
    return handle;
  }

  /** @internal One of the same shape and format whose contents are yet to be written. */
  static emptyLike(weight: QuantizedWeight, op: string): QuantizedWeight {
    const handle = QuantizedWeight.handleOf(weight, op, 'w');
    return new QuantizedWeight(
      native(op, (raw) => raw.emptyLike(handle)),
      weight.#meta,
    );
  }

  /** @internal A rowwise weight of its codes. @throws ERR_SHAPE, ERR_OOM */
  static fromRows(
    op: string,
    rows: RowInt8,
    place: Pick<WeightMeta, 'shape' | 'sourceDType' | 'device'>,
  ): QuantizedWeight {
    const format = checkFormat(op, 'int8');
    const K = place.shape.at(-1) ?? 1;
    const blocksize = rowBlocksize(op, K, format.minBlocksize, format.maxBlocksize);
    const parts = storeRows(rows, K, blocksize);
    const nestedBlocksize = NESTED_BLOCKSIZE;
    const handle = native(op, (raw) =>
      raw.weightFromParts(
        place.device,
        format.name,
        rows.absmax.length,
        K,
        blocksize,
        nestedBlocksize,
        parts,
      ),
    );
    const { shape, sourceDType, device } = place;
    const meta = { format, blocksize, doubleQuant: false, nestedBlocksize, rowwise: true };
    return new QuantizedWeight(handle, { ...meta, shape, sourceDType, device });
  }

  /** @internal Rows of a matrix may be cut at multiples of this, and decoded and encoded apart. */
  get rowStep(): number {
    const cols = this.shape.at(-1) ?? 1;
    const unit = this.blocksize * (this.doubleQuant ? this.#meta.nestedBlocksize : 1);
    let [divisor, rest] = [unit, cols % unit];
    while (rest !== 0) [divisor, rest] = [rest, divisor % rest];
    return unit / divisor;
  }

  /** @internal Elements that share a scale. */
  get blocks(): number {
    return this.#blocks;
  }

  get #elements(): number {
    return this.shape.reduce((product, dim) => product * dim, 1);
  }

  get #blocks(): number {
    return Math.ceil(this.#elements / this.blocksize);
  }

  get #codeBytes(): number {
    return this.#meta.format.bits === 4 ? Math.ceil(this.#elements / 2) : this.#elements;
  }

  get disposed(): boolean {
    return this.#handle === undefined;
  }

  /** Bytes of codes, scales and tables. */
  get byteLength(): number {
    const { format, nestedBlocksize } = this.#meta;
    const tables = format.levels * 4;
    const scales = this.doubleQuant
      ? this.#blocks + Math.ceil(this.#blocks / nestedBlocksize) * 4 + 256 * 4 + 4
      : this.#blocks * 4;
    return this.#codeBytes + tables + scales;
  }

  /**
   * The weight as bitsandbytes stores it in a checkpoint, byte for byte, with keys relative to the
   * layer: `weight`, `weight.absmax`, `weight.quant_map`, with double quantisation also
   * `weight.nested_absmax` and `weight.nested_quant_map`, and
   * `weight.quant_state.bitsandbytes__nf4` (or `__fp4`). Of a rowwise weight: `weight`, `SCB` and
   * `weight_format`.
   * @throws ERR_DISPOSED; ERR_NON_FINITE where the quantised tensor held NaN or infinity
   */
  async toBitsandbytes(): Promise<BitsandbytesState> {
    const { format, nestedBlocksize } = this.#meta;
    const blocks = this.#blocks;
    const codes = new Uint8Array(this.#codeBytes);
    if (this.rowwise) {
      const absmax = new Float32Array(blocks);
      await Promise.all([this.#readPart('codes', codes), this.#readPart('absmax', absmax)]);
      const K = this.shape.at(-1) ?? 1;
      return formatRowInt8(loadRows(codes, absmax, K, this.blocksize), this.shape);
    }
    const codebook = new Float32Array(format.levels);
    const reads = [this.#readPart('codes', codes), this.#readPart('codebook', codebook)];
    const base = {
      format: format.name,
      blocksize: this.blocksize,
      dtype: this.sourceDType,
      shape: [...this.shape],
      codes,
      codebook,
    };
    if (!this.doubleQuant) {
      const absmax = new Float32Array(blocks);
      await Promise.all([...reads, this.#readPart('absmax', absmax)]);
      return formatBitsandbytes({ ...base, absmax });
    }
    const absmax8bit = new Uint8Array(blocks);
    const absmaxCodebook = new Float32Array(256);
    const nestedAbsmax = new Float32Array(Math.ceil(blocks / nestedBlocksize));
    const offset = new Float32Array(1);
    await Promise.all([
      ...reads,
      this.#readPart('absmax8bit', absmax8bit),
      this.#readPart('absmaxCodebook', absmaxCodebook),
      this.#readPart('nestedAbsmax', nestedAbsmax),
      this.#readPart('absmaxOffset', offset),
    ]);
    return formatBitsandbytes({
      ...base,
      absmax: {
        absmax8bit,
        absmaxCodebook,
        nestedAbsmax,
        offset: offset[0] ?? 0,
        nestedBlocksize,
      },
    });
  }

  #readPart(part: string, target: Float32Array | Uint8Array): Promise<void> {
    const handle = QuantizedWeight.handleOf(this, 'toBitsandbytes', 'weight');
    return nativeAsync('toBitsandbytes', (raw, done) => raw.read(handle, part, target, done));
  }

  /**
   * A weight from bitsandbytes' checkpoint tensors (see {@link QuantizedWeight.toBitsandbytes}); its
   * own codebook is kept. Of the 4-bit layers and of `Linear8bitLt`, whose state does not say what dtype it
   * was quantised from: f32.
   * @throws ERR_FORMAT where the state is incomplete or contradicts itself, ERR_DEVICE, ERR_OOM; ERR_SHAPE
   *   where the rows of `Linear8bitLt` are no multiple of 32
   */
  static fromBitsandbytes(
    state: BitsandbytesState,
    options?: { device?: Device },
  ): QuantizedWeight {
    const op = 'fromBitsandbytes';
    const { device: asked } = readOptions(op, options);
    if (state === null || typeof state !== 'object')
      throw wrongType(op, 'state', 'an object', state);
    if (isRowInt8(state)) {
      const { rows, shape } = parseRowInt8(state);
      const device = resolveDevice(op, asked);
      return QuantizedWeight.fromRows(op, rows, { shape, sourceDType: 'f32', device });
    }
    const parsed = parseBitsandbytes(state);
    const format = checkFormat(op, parsed.format);
    checkBlocksize(op, format, parsed.blocksize);
    const device = resolveDevice(op, asked);
    const { absmax } = parsed;
    const nested = absmax instanceof Float32Array ? undefined : absmax;
    const rows = parsed.shape.slice(0, -1).reduce((product, dim) => product * dim, 1);
    const cols = parsed.shape.at(-1) ?? 1;
    const nestedBlocksize = nested?.nestedBlocksize ?? NESTED_BLOCKSIZE;
    const handle = native(op, (raw) =>
      raw.weightFromParts(device, format.name, rows, cols, parsed.blocksize, nestedBlocksize, {
        codes: parsed.codes,
        codebook: parsed.codebook,
        ...(nested === undefined
          ? { absmax: absmax as Float32Array }
          : {
              absmax8bit: nested.absmax8bit,
              absmaxCodebook: nested.absmaxCodebook,
              nestedAbsmax: nested.nestedAbsmax,
              absmaxOffset: new Float32Array([nested.offset]),
            }),
      }),
    );
    return new QuantizedWeight(handle, {
      shape: Object.freeze([...parsed.shape]),
      format,
      blocksize: parsed.blocksize,
      doubleQuant: nested !== undefined,
      nestedBlocksize,
      sourceDType: parsed.dtype,
      device,
    });
  }

  /** A copy on another device. @throws ERR_DISPOSED, ERR_DEVICE, ERR_OOM */
  to(target: { device: Device }): QuantizedWeight {
    const handle = QuantizedWeight.handleOf(this, 'to', 'weight');
    const device = resolveDevice('to', readOptions('to', target).device);
    const moved = native('to', (raw) => raw.toDevice(handle, device));
    return new QuantizedWeight(moved, { ...this.#meta, device });
  }

  /** Frees the memory as soon as no queued op needs it. Twice is a no-op. */
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

/** How {@link quantize} stores a weight. */
export interface QuantizeOptions {
  format: QuantFormat;
  /** Elements that share a scale, a power of two from 32 to 4096; default 64 (int8: 256). */
  blocksize?: number;
  /** Quantise the scales themselves to 8 bits; default false. */
  doubleQuant?: boolean;
  /**
   * Of `int8`: linear codes with one scale a row, bitsandbytes' LLM.int8, in place of its dynamic map blockwise, of
   * w rounded to f16, as there; rows are a multiple of 32 (zeros that fill them up change nothing). Done on the host: w
   * is read, and what is not finite in f16 is refused at once. Default false.
   */
  rowwise?: boolean;
  /**
   * Of `int8`: 256 ascending levels within ±1 in place of the dynamic map (a linear one, an unsigned one). Done on
   * the host, as `rowwise`; merging encodes in the dynamic map again.
   */
  codebook?: Float32Array;
}

/**
 * Blockwise quantisation of a weight. `absmax` is the largest magnitude of a block; each element takes
 * the code whose level is nearest to `w / absmax`.
 *
 * The bytes are bitsandbytes'. Where its CPU and CUDA code differ the rule is: the value
 * `w · (1 / absmax)` in f32 against the thresholds of its CUDA source; a block whose `1 / absmax`
 * overflows (zeros, or an absmax under 2^-128) holds the code that the peer gives a block of zeros.
 * @param w [N, K] f32, bf16 or f16 (any rank; blocks run over the flattened elements)
 * @throws ERR_TYPE, ERR_FORMAT, ERR_DISPOSED, ERR_OOM; NaN or infinity in `w` shows as ERR_NON_FINITE
 *   at the first read of anything that depends on the weight
 * @example
 * const w4 = quantize(w, { format: 'nf4', blocksize: 64, doubleQuant: true });
 */
export function quantize(w: Tensor, options: QuantizeOptions): QuantizedWeight {
  const op = 'quantize';
  checkTensor(op, 'w', w);
  const given = readOptions(op, options);
  const format = checkFormat(op, given.format);
  const rowwise: unknown = given.rowwise ?? false;
  if (typeof rowwise !== 'boolean') throw wrongType(op, 'rowwise', 'a boolean', rowwise);
  if (rowwise) return quantizeRowwise(op, w, given);
  const blocksize = checkBlocksize(op, format, given.blocksize ?? format.defaultBlocksize);
  if (given.codebook !== undefined) return quantizeByCodebook(op, w, blocksize, given);
  const doubleQuant: unknown = given.doubleQuant ?? false;
  if (typeof doubleQuant !== 'boolean')
    throw wrongType(op, 'doubleQuant', 'a boolean', doubleQuant);
  const handle = Tensor.handleOf(w, op, 'w');
  return QuantizedWeight.adopt(
    native(op, (raw) => raw.quantize(handle, format.name, blocksize, doubleQuant)),
    {
      shape: w.shape,
      format,
      blocksize,
      doubleQuant,
      nestedBlocksize: NESTED_BLOCKSIZE,
      sourceDType: w.dtype,
      device: w.device,
    },
  );
}

function quantizeByCodebook(
  op: string,
  w: Tensor,
  blocksize: number,
  { format: name, doubleQuant, codebook: given }: Partial<QuantizeOptions>,
): QuantizedWeight {
  if (name !== 'int8') fail('ERR_VALUE', op, 'codebook', `left out for ${name}`, 'a table');
  if (doubleQuant) fail('ERR_VALUE', op, 'doubleQuant', 'false with a codebook', 'true');
  const codebook = checkCodebook(op, given);
  const { shape, device, dtype: sourceDType } = w;
  const parts = { ...encodeCodebook(op, w.readSync(), codebook, blocksize), codebook };
  const cols = shape.at(-1) ?? 1;
  const rows = cols === 0 ? 0 : w.size / cols;
  const nestedBlocksize = NESTED_BLOCKSIZE;
  const format = checkFormat(op, name);
  const handle = native(op, (raw) =>
    raw.weightFromParts(device, name, rows, cols, blocksize, nestedBlocksize, parts),
  );
  const meta = { shape, format, blocksize, doubleQuant: false, nestedBlocksize };
  return QuantizedWeight.adopt(handle, { ...meta, sourceDType, device });
}

function quantizeRowwise(
  op: string,
  w: Tensor,
  { format, blocksize, doubleQuant, codebook }: Partial<QuantizeOptions>,
): QuantizedWeight {
  if (format !== 'int8') fail('ERR_VALUE', op, 'rowwise', `false for ${format}`, 'true');
  if (blocksize !== undefined) {
    fail('ERR_VALUE', op, 'blocksize', 'left out with rowwise', String(blocksize));
  }
  if (doubleQuant) fail('ERR_VALUE', op, 'doubleQuant', 'false with rowwise', 'true');
  if (codebook !== undefined) fail('ERR_VALUE', op, 'codebook', 'left out with rowwise', 'a table');
  const { shape, device, dtype: sourceDType } = w;
  using half = w.to({ dtype: 'f16' });
  const rows = encodeRows(op, half.readSync(), shape.at(-1) ?? 1);
  return QuantizedWeight.fromRows(op, rows, { shape, sourceDType, device });
}

/**
 * A tensor in the format of a weight.
 * @internal
 */
export function quantizeLike(w: Tensor, like: QuantizedWeight): QuantizedWeight {
  const { format, blocksize, doubleQuant, rowwise } = like;
  return quantize(w, rowwise ? { format, rowwise } : { format, blocksize, doubleQuant });
}

/**
 * The dense weight: `codebook[code] · absmax` in f32, one rounding to `dtype`.
 * @param options.dtype default: that of the tensor which was quantised
 * @returns [N, K]
 * @throws ERR_TYPE, ERR_DTYPE, ERR_DISPOSED, ERR_OOM
 */
export function dequantize(w: QuantizedWeight, options?: { dtype?: DType }): Tensor {
  const op = 'dequantize';
  if (!QuantizedWeight.is(w)) throw wrongType(op, 'w', 'a QuantizedWeight', w);
  const given = readOptions(op, options);
  const dtype = checkDType(op, 'dtype', given.dtype ?? w.sourceDType);
  const handle = QuantizedWeight.handleOf(w, op, 'w');
  return Tensor.adopt(
    native(op, (raw) => raw.dequantize(handle, dtype)),
    w.shape,
    dtype,
    w.device,
  );
}

export { FORMATS };
