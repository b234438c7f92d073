import {
  type BitsandbytesState,
  type ParsedBitsandbytes,
  parseBitsandbytes,
} from '../checkpoint/bitsandbytes/bitsandbytes.js';
import {
  isRowInt8,
  parseRowInt8,
  type RowInt8,
} from '../checkpoint/bitsandbytes/row-int8-state.js';
import type { PlanarWeight } from '../checkpoint/planar/planar-weight.js';
import { type NativeHandle, native, nativeAsync } from '../core/binding.js';
import { checkShape, checkTensor } from '../core/check-tensor.js';
import { type Device, resolveDevice } from '../core/device.js';
import { checkDType, type DType } from '../core/dtype.js';
import { anyOf, fail, markClass, notConstructed, wrongType } from '../core/errors.js';
import {
  bitsandbytesNames,
  checkBlocksize,
  checkFormat,
  isBitsandbytes,
  type QuantFormat,
} from '../core/formats.js';
import { type Freeable, track } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import { checkSameDevice, readOptions } from '../core/validate.js';
import { bitsandbytesState } from './bitsandbytes-state.js';
import { formatCodebook, ownTable } from './codebook.js';
import {
  blocksOf,
  formatGroupAffine,
  type GroupAffineState,
  parseGroupAffine,
} from './group-affine.js';
import { groupOf, planesFromDevice, planesOnDevice, readPlanes } from './planes.js';
import type { PlanesRecipe } from './read-planes.js';
import { LEAST_ROW_BLOCK, rowBlocksize, storeRows } from './row-int8.js';
import { NESTED_BLOCKSIZE, type WeightFormat, type WeightMeta } from './weight-meta.js';

export { NESTED_BLOCKSIZE, type WeightFormat };

/**
 * A blockwise quantised base weight [N, K] in bitsandbytes' layout: blocks of `blocksize` elements
 * run over the flattened weight, across the ends of rows.
 *
 * `w[i] = codebook[code[i]] · absmax[i / blocksize]`. Double quantisation stores absmax itself as
 * `absmax_codebook[absmax_8bit] · nested_absmax + absmax_offset`. A rowwise weight (bitsandbytes' LLM.int8) has
 * the codebook `-128/127, ..., 127/127`, and all blocks of a row have the row's absmax.
 *
 * An `int4` weight may have a zero-point for each block of a row: `w[n, k] = codebook[code] · absmax + zeroPoints[n,
 * floor(k / blocksize)]`. Products decode the codes to the dtype of x, and add the contribution of the zero-points
 * in f32.
 * @example
 * using w4 = quantize(w, { format: 'nf4', doubleQuant: true });
 */
export class QuantizedWeight implements Disposable {
  /** [N, K]; a vector keeps its one dimension. */
  readonly shape: readonly number[];
  readonly format: WeightFormat;
  /** Elements that share a scale. With groups by a column order, the average. */
  readonly blocksize: number;
  readonly doubleQuant: boolean;
  /** Linear int8 codes with one scale per row, as in bitsandbytes' `Linear8bitLt`. */
  readonly rowwise: boolean;
  readonly device: Device;
  /** dtype of the tensor that was quantised; the default of {@link dequantize}. */
  readonly sourceDType: DType;
  /**
   * [N, K / blocksize], f32, in units of the weight; it belongs to the weight. Writing to it changes the weight.
   * {@link QuantizedWeight.withZeroPoints} makes a new one.
   */
  readonly zeroPoints: Tensor | undefined;
  readonly #meta: WeightMeta;
  readonly #companions = new Map<string, Freeable>();
  #handle: NativeHandle | undefined;

  private constructor(handle: NativeHandle, meta: WeightMeta) {
    if (meta?.format?.name === undefined && meta?.planes === undefined) {
      throw notConstructed('QuantizedWeight', 'quantize or QuantizedWeight.fromBitsandbytes');
    }
    this.#handle = handle;
    this.#meta = meta;
    this.shape = meta.shape;
    this.format = meta.format?.name ?? 'planar';
    this.blocksize = meta.blocksize;
    this.doubleQuant = meta.doubleQuant;
    this.rowwise = meta.rowwise ?? false;
    this.device = meta.device;
    this.sourceDType = meta.sourceDType;
    this.zeroPoints = meta.zeroPoints;
    track(this);
  }

  /** @internal */
  static adopt(handle: NativeHandle, meta: WeightMeta): QuantizedWeight {
    return new QuantizedWeight(handle, meta);
  }

  /** Is this a weight of this library? False for a proxy or an imitation, which have no memory. */
  static is(value: unknown): value is QuantizedWeight {
    return typeof value === 'object' && value !== null && #handle in value;
  }

  /** @internal The live handle. @throws ERR_DISPOSED */
  static handleOf(weight: QuantizedWeight, op: string, operand: string): NativeHandle {
    const handle = weight.#handle;
    if (handle === undefined) fail('ERR_DISPOSED', op, operand, 'a live weight', 'a disposed one');
    return handle;
  }

  /** @internal A blockwise weight of the same shape and format whose contents are still to be written. */
  static emptyLike(weight: QuantizedWeight, op: string): QuantizedWeight {
    const handle = QuantizedWeight.handleOf(weight, op, 'w');
    return new QuantizedWeight(
      native(op, (raw) => raw.emptyLike(handle)),
      weight.#metaWith(weight.device),
    );
  }

  /** @internal An object that ops make once for a weight. It is freed with the weight. */
  static companion<T extends Freeable>(weight: QuantizedWeight, key: string, make: () => T): T {
    const kept = weight.#companions.get(key) as T | undefined;
    if (kept !== undefined) return kept;
    const made = make();
    weight.#companions.set(key, made);
    return made;
  }

  /** For another weight, which gets its own handle to zero-points there. */
  #metaWith(device: Device, zeroPoints = this.zeroPoints): WeightMeta {
    if (zeroPoints === undefined) return { ...this.#meta, device };
    const own =
      zeroPoints.device === device
        ? zeroPoints.reshape(zeroPoints.shape)
        : zeroPoints.to({ device });
    return { ...this.#meta, device, zeroPoints: own };
  }

  /** @internal A rowwise weight from its codes. @throws ERR_SHAPE, ERR_OOM */
  static fromRows(
    op: string,
    rows: RowInt8,
    place: Pick<WeightMeta, 'shape' | 'sourceDType' | 'device'>,
  ): QuantizedWeight {
    const format = checkFormat(op, 'int8');
    const K = place.shape.at(-1) ?? 1;
    const blocksize = rowBlocksize(op, K, LEAST_ROW_BLOCK, format.maxBlocksize);
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
        true,
      ),
    );
    const { shape, sourceDType, device } = place;
    const meta = { format, blocksize, doubleQuant: false, nestedBlocksize, rowwise: true };
    return new QuantizedWeight(handle, { ...meta, shape, sourceDType, device });
  }

  /** @internal A weight from its codes and any tables. @throws ERR_OOM */
  static fromTables(
    op: string,
    { codes, codebook, absmax }: Pick<ParsedBitsandbytes, 'codes' | 'codebook' | 'absmax'>,
    place: Pick<QuantizedWeight, 'shape' | 'sourceDType' | 'device' | 'blocksize'> & {
      readonly format: QuantFormat;
    },
  ): QuantizedWeight {
    const { shape, blocksize, device, sourceDType } = place;
    const format = checkFormat(op, place.format);
    const rows = shape.slice(0, -1).reduce((product, dim) => product * dim, 1);
    const cols = shape.at(-1) ?? 1;
    const nested = absmax instanceof Float32Array ? undefined : absmax;
    const nestedBlocksize = nested?.nestedBlocksize ?? NESTED_BLOCKSIZE;
    const scales =
      nested === undefined
        ? { absmax: absmax as Float32Array }
        : {
            absmax8bit: nested.absmax8bit,
            absmaxCodebook: nested.absmaxCodebook,
            nestedAbsmax: nested.nestedAbsmax,
            absmaxOffset: new Float32Array([nested.offset]),
          };
    const parts = { codes, codebook, ...scales };
    const handle = native(op, (raw) =>
      raw.weightFromParts(device, format.name, rows, cols, blocksize, nestedBlocksize, parts),
    );
    return new QuantizedWeight(handle, {
      shape,
      format,
      blocksize,
      doubleQuant: nested !== undefined,
      nestedBlocksize,
      sourceDType,
      device,
      codebook: ownTable(op, format.name, codebook),
      scaleCodebook: nested && ownTable(op, 'int8', nested.absmaxCodebook),
    });
  }

  /** @internal The tables of levels, and with double quantisation of scales, if one is not the format's. */
  get ownTables() {
    const { codebook, scaleCodebook, format, nestedBlocksize } = this.#meta;
    if (format === undefined) return undefined;
    if (codebook === undefined && scaleCodebook === undefined) return undefined;
    const standard = (name: QuantFormat) => formatCodebook('quantize', name);
    return {
      format: format.name,
      codebook: codebook ?? standard(format.name),
      scaleCodebook: this.doubleQuant ? (scaleCodebook ?? standard('int8')) : undefined,
      nestedBlocksize,
    };
  }

  /** @internal A matrix may be cut at rows that are multiples of this, and the parts decoded and encoded separately. */
  get rowStep(): number {
    if (this.format === 'planar') return 1;
    const cols = this.shape.at(-1) ?? 1;
    const unit = this.blocksize * (this.doubleQuant ? this.#meta.nestedBlocksize : 1);
    let [divisor, rest] = [unit, cols % unit];
    while (rest !== 0) [divisor, rest] = [rest, divisor % rest];
    return unit / divisor;
  }

  /** @internal Number of groups of elements that share a scale. */
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
    return this.#meta.format?.bits === 4 ? Math.ceil(this.#elements / 2) : this.#elements;
  }

  get disposed(): boolean {
    return this.#handle === undefined;
  }

  /** Bytes of codes, scales and tables. */
  get byteLength(): number {
    const { format, nestedBlocksize, planes } = this.#meta;
    if (planes !== undefined || format === undefined) return planes?.byteLength ?? 0;
    const tables = format.levels * 4;
    const scales = this.doubleQuant
      ? this.#blocks + Math.ceil(this.#blocks / nestedBlocksize) * 4 + 256 * 4 + 4
      : this.#blocks * 4;
    return this.#codeBytes + tables + scales + (this.zeroPoints?.size ?? 0) * 4;
  }

  /**
   * The weight as bitsandbytes stores it in a checkpoint, byte for byte. Keys are relative to the
   * layer: `weight`, `weight.absmax`, `weight.quant_map`, with double quantisation also
   * `weight.nested_absmax` and `weight.nested_quant_map`, and
   * `weight.quant_state.bitsandbytes__nf4` (or `__fp4`). A rowwise weight has `weight`, `SCB` and
   * `weight_format`.
   * @throws ERR_DISPOSED; ERR_FORMAT for a format that bitsandbytes lacks (int4); ERR_NON_FINITE if
   * the quantised tensor held NaN or infinity
   */
  async toBitsandbytes(): Promise<BitsandbytesState> {
    const { nestedBlocksize } = this.#meta;
    const name = this.format;
    if (name === 'planar' || !isBitsandbytes(name)) {
      const expected = `${anyOf(bitsandbytesNames)} (toGroupAffine is for int4)`;
      return fail('ERR_FORMAT', 'toBitsandbytes', 'weight', expected, name);
    }
    const { blocksize, sourceDType: dtype, shape, rowwise, doubleQuant } = this;
    const nested = doubleQuant ? nestedBlocksize : undefined;
    const facts = { format: name, blocksize, dtype, shape, rowwise, nestedBlocksize: nested };
    return bitsandbytesState(facts, (part) => this.#readPart(part));
  }

  async #readPart(part: string): Promise<Uint8Array> {
    const handle = QuantizedWeight.handleOf(this, 'toBitsandbytes', 'weight');
    return new Uint8Array(
      await nativeAsync<ArrayBuffer>('toBitsandbytes', (raw, done) =>
        raw.read(handle, part, 'f32', done),
      ),
    );
  }

  async #readFloats(part: string): Promise<Float32Array> {
    return new Float32Array((await this.#readPart(part)).buffer);
  }

  /**
   * A weight of any codes, grid of scales, zero-points or minima: what checkpoints of other programs hold (see
   * {@link PlanarWeight}). Products decode it as they do other formats: in f32, rounded once to the dtype of x.
   * @param options.sourceDType the default dtype of {@link dequantize}; f32 if left out
   * @throws ERR_TYPE, ERR_DTYPE; ERR_SHAPE unless each plane has one number for each entry of the grid; ERR_FORMAT for
   * zero-points beside minima; ERR_VALUE for a code of too many bits or a group that does not exist; ERR_DEVICE, ERR_OOM
   */
  static fromPlanes(
    planes: PlanarWeight,
    options?: { device?: Device; sourceDType?: DType },
  ): QuantizedWeight {
    const op = 'fromPlanes';
    const given = readOptions(op, options, { device: true, sourceDType: true });
    const sourceDType = checkDType(op, 'sourceDType', given.sourceDType ?? 'f32');
    const device = resolveDevice(op, given.device);
    const { handle, byteLength, recipe } = planesOnDevice(op, planes, device);
    return new QuantizedWeight(handle, {
      shape: Object.freeze([planes.rows, planes.columns]),
      planes: { bits: planes.bits, byteLength, recipe },
      blocksize: groupOf(planes),
      doubleQuant: false,
      nestedBlocksize: NESTED_BLOCKSIZE,
      sourceDType,
      device,
    });
  }

  /**
   * The planes of a weight that {@link QuantizedWeight.fromPlanes} made, copied from its device: `writeQuantizedLayer` and
   * `planarToGguf` write them. Of several codes of a table with one value, the first stands for all.
   * @throws ERR_DISPOSED; ERR_FORMAT for a weight of a blockwise format
   * @example
   * const { weight, lost } = mergeLora(w, adapter);
   * const tensors = writeQuantizedLayer({ weight: await weight.toPlanes(), layout });
   */
  async toPlanes(): Promise<PlanarWeight> {
    const op = 'toPlanes';
    const handle = QuantizedWeight.handleOf(this, op, 'weight');
    return readPlanes(op, handle, this.#recipe(op));
  }

  /** @internal As {@link QuantizedWeight.toPlanes}, while the thread waits. */
  static planesOf(weight: QuantizedWeight, op: string): PlanarWeight {
    const handle = QuantizedWeight.handleOf(weight, op, 'w');
    return planesFromDevice(op, handle, weight.#recipe(op));
  }

  #recipe(op: string): PlanesRecipe {
    const recipe = this.#meta.planes?.recipe;
    if (recipe === undefined) fail('ERR_FORMAT', op, 'weight', 'made by fromPlanes', this.format);
    return recipe;
  }

  /**
   * A weight from bitsandbytes' checkpoint tensors (see {@link QuantizedWeight.toBitsandbytes}): of 4-bit
   * layers and of `Linear8bitLt`. It keeps their codebook. The state of `Linear8bitLt` does not record the
   * dtype it was quantised from: it becomes f32.
   * @throws ERR_FORMAT if the state is incomplete or contradicts itself; ERR_DEVICE, ERR_OOM; ERR_SHAPE
   * if the row length of `Linear8bitLt` is not a multiple of 8
   */
  static fromBitsandbytes(
    state: BitsandbytesState,
    options?: { device?: Device },
  ): QuantizedWeight {
    const op = 'fromBitsandbytes';
    const { device: asked } = readOptions(op, options, { device: true });
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
    const { dtype: sourceDType, blocksize } = parsed;
    const shape = Object.freeze([...parsed.shape]);
    const place = { shape, format: format.name, blocksize, sourceDType, device };
    return QuantizedWeight.fromTables(op, parsed, place);
  }

  /**
   * An `int4` weight in the form of other group-affine weights: scales and zeros for each block of a
   * row.
   * @throws ERR_DISPOSED, ERR_SHAPE; ERR_FORMAT for another format or for double quantisation
   * @example
   * const { codes, scales, zeros } = await quantize(w, { format: 'int4', zeroPoints: true }).toGroupAffine();
   */
  async toGroupAffine(): Promise<GroupAffineState> {
    const op = 'toGroupAffine';
    this.#requireGroups(op);
    const [zeroPoints = new Float32Array(this.#blocks), codes, absmax] = await Promise.all([
      this.zeroPoints?.read(),
      this.#readPart('codes'),
      this.#readFloats('absmax'),
    ]);
    return formatGroupAffine({ codes, absmax, zeroPoints }, this.shape, this.blocksize);
  }

  #requireGroups(op: string): void {
    if (this.format !== 'int4' || this.doubleQuant) {
      const actual = this.doubleQuant ? `${this.format} with doubleQuant` : this.format;
      fail('ERR_FORMAT', op, 'weight', 'int4 without doubleQuant', actual);
    }
    blocksOf(op, 'weight', this.shape, this.blocksize);
  }

  /** @internal As {@link QuantizedWeight.toGroupAffine}, while the thread waits. */
  static groupAffineOf(weight: QuantizedWeight, op: string): GroupAffineState {
    const handle = QuantizedWeight.handleOf(weight, op, 'w');
    weight.#requireGroups(op);
    const [codes, absmax] = [new Uint8Array(weight.#codeBytes), new Float32Array(weight.#blocks)];
    native(op, (raw) => raw.readSync(handle, 'codes', codes));
    native(op, (raw) => raw.readSync(handle, 'absmax', absmax));
    const zeroPoints = weight.zeroPoints?.readSync() ?? new Float32Array(weight.#blocks);
    return formatGroupAffine({ codes, absmax, zeroPoints }, weight.shape, weight.blocksize);
  }

  /**
   * Converts a group-affine weight of another program to `int4` with zero-points.
   * @param options.sourceDType the default dtype of {@link dequantize}; f32 if left out
   * @throws ERR_TYPE, ERR_SHAPE, ERR_FORMAT, ERR_VALUE, ERR_DEVICE, ERR_OOM
   */
  static fromGroupAffine(
    state: GroupAffineState,
    options?: { device?: Device; sourceDType?: DType },
  ): QuantizedWeight {
    const op = 'fromGroupAffine';
    const { device: asked, sourceDType: source } = readOptions(op, options, {
      device: true,
      sourceDType: true,
    });
    if (state === null || typeof state !== 'object')
      throw wrongType(op, 'state', 'an object', state);
    const format = checkFormat(op, 'int4');
    const blocksize = checkBlocksize(op, format, state.blocksize);
    const sourceDType = checkDType(op, 'sourceDType', source ?? 'f32');
    const { zeroPoints: zeros, ...parts } = parseGroupAffine(op, state);
    const device = resolveDevice(op, asked);
    const [N = 0, K = 0] = state.shape;
    const shape = Object.freeze([N, K]);
    const nestedBlocksize = NESTED_BLOCKSIZE;
    const handle = native(op, (raw) =>
      raw.weightFromParts(device, format.name, N, K, blocksize, nestedBlocksize, parts),
    );
    const zeroPoints = Tensor.from(zeros, [N, K / blocksize], { device });
    const meta = { shape, format, blocksize, doubleQuant: false, nestedBlocksize };
    return new QuantizedWeight(handle, { ...meta, sourceDType, device, zeroPoints });
  }

  /**
   * The same codes and scales with other zero-points, which are copied. An update that is constant within blocks
   * merges this way without rounding.
   * @param zeroPoints [N, K / blocksize], any dtype
   * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED, ERR_OOM; ERR_FORMAT if the weight is not int4
   * @example
   * const shifted = w4.withZeroPoints(multiplyAdd({ a: update, c: w4.zeroPoints }));
   */
  withZeroPoints(zeroPoints: Tensor): QuantizedWeight {
    const op = 'withZeroPoints';
    const handle = QuantizedWeight.handleOf(this, op, 'weight');
    if (this.format !== 'int4') fail('ERR_FORMAT', op, 'weight', 'int4', this.format);
    const G = blocksOf(op, 'weight', this.shape, this.blocksize);
    checkTensor(op, 'zeroPoints', zeroPoints);
    checkShape(op, 'zeroPoints', zeroPoints, [this.shape[0] ?? 0, G]);
    checkSameDevice(op, 'zeroPoints', zeroPoints, this);
    const copy = native(op, (raw) => raw.toDevice(handle, this.device));
    const own = zeroPoints.to({ dtype: 'f32' });
    return new QuantizedWeight(copy, { ...this.#meta, zeroPoints: own });
  }

  /** A copy on another device. @throws ERR_DISPOSED, ERR_DEVICE, ERR_OOM */
  to(target: { device: Device }): QuantizedWeight {
    const handle = QuantizedWeight.handleOf(this, 'to', 'weight');
    const device = resolveDevice('to', readOptions('to', target, { device: true }).device);
    const moved = native('to', (raw) => raw.toDevice(handle, device));
    return new QuantizedWeight(moved, this.#metaWith(device));
  }

  /** Frees the memory as soon as no queued op needs it. A second call does nothing. */
  dispose(): void {
    const handle = this.#handle;
    if (handle === undefined) return;
    this.#handle = undefined;
    native('dispose', (raw) => raw.dispose(handle));
    this.zeroPoints?.dispose();
    for (const companion of this.#companions.values()) companion.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(QuantizedWeight, 'QuantizedWeight');
