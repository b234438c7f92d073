import { native } from '../../core/binding.js';
import { checkTensor } from '../../core/check-tensor.js';
import { checkDType, type DType } from '../../core/dtype.js';
import { fail, wrongType } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import {
  checkFinite,
  checkSameDevice,
  orDefault,
  readOptions,
  showShape,
} from '../../core/validate.js';
import { hostCodes } from '../../quant/host-codes.js';
import { QuantizedWeight } from '../../quant/quantized-weight.js';
import { requantizedWeight } from '../../quant/requantized-weight.js';
import { type BaseWeight, checkFactor, checkWeight } from '../base-weight.js';
import { denseRows, putRows, rowTiles } from '../dense-rows.js';
import { multiplyAdd } from '../elementwise.js';
import { matmulInputGrad } from '../matmul.js';
import { shiftRows, zeroTermOf } from '../zero-points.js';
import { refuseMethods } from './lora-adapter.js';

/** What is added to a weight: `scaling · loraB · core · loraA`. A {@link LoraAdapter} has this form. */
export interface MergeParts {
  /** [r, K], any dtype */
  readonly loraA: Tensor;
  /** [N, r], or [N, p] with a core [p, r]; any dtype */
  readonly loraB: Tensor;
  /** [r], a diagonal; or a matrix [p, r]; any dtype. */
  readonly core?: Tensor;
  /** Default 1. */
  readonly scaling?: number;
  /** Factor of the weight itself; default 1. */
  readonly beta?: number;
}

/**
 * The loss of storing the sum. With W the weight before and Q the weight after, both as products
 * decode them, and `V = beta · W + scaling · B · C · A` in f32, over all elements:
 */
export interface MergeLoss {
  /** Root mean square of Q − V, the rounding error of each element to its code, or to the dtype. */
  readonly rms: number;
  /** Largest |Q − V|. */
  readonly max: number;
  /** Root mean square of V − W, the update. If `rms` is far above it, the codes hardly changed. */
  readonly deltaRms: number;
  /**
   * The fraction of the update that survived: `⟨Q − W, V − W⟩ / ⟨V − W, V − W⟩`, the projection of
   * the actual change onto the intended one. 1 if nothing is lost, 0 if the update vanished in
   * rounding. It may exceed 1 if rounding moves the elements further. 1 without an update.
   */
  readonly kept: number;
}

/** Result of {@link mergeLora}. */
export interface MergeResult<Weight extends BaseWeight = BaseWeight> {
  /** The dense weight itself, changed; or a new quantised one. */
  readonly weight: Weight;
  readonly lost: MergeLoss;
}

/** Options of {@link mergeLora}. */
export interface MergeOptions {
  /** Merge a quantised weight into a new dense one of this dtype, instead of its own format. */
  readonly dtype?: DType;
}

/** Checked parts: B · C in f32 [N, r] and A in f32 [r, K], newly made. */
interface Update {
  readonly left: Tensor;
  readonly right: Tensor;
  readonly scaling: number;
  readonly beta: number;
}

function readParts(op: string, parts: unknown): MergeParts {
  if (parts === null || (typeof parts !== 'object' && typeof parts !== 'function')) {
    throw wrongType(op, 'parts', 'an object of loraA, loraB and more', parts);
  }
  const own = op === 'mergeLora' ? 'merge' : 'unmerge';
  const expected = `a LoraAdapter or { loraA, loraB, scaling } (for an adapter from adapters.lora.create call adapter.${own}(w))`;
  refuseMethods(op, 'parts', expected, parts);
  // Read once and not copied: an adapter's fields are accessors of its class.
  const { loraA, loraB, core, scaling, beta } = parts as MergeParts;
  return {
    loraA,
    loraB,
    ...(core === undefined ? {} : { core }),
    ...(scaling === undefined ? {} : { scaling }),
    ...(beta === undefined ? {} : { beta }),
  };
}

/** A number that is finite in f32; 1 if it is not given. */
function factorOf(op: string, name: string, value: unknown): number {
  const factor = checkFinite(op, name, orDefault(value, 1));
  if (!Number.isFinite(Math.fround(factor))) {
    fail('ERR_VALUE', op, name, 'finite in f32', String(factor));
  }
  return factor;
}

/** B · C, with C checked against both sides. */
function withCore(op: string, loraB: Tensor, core: Tensor | undefined, r: number): Tensor {
  const left = loraB.to({ dtype: 'f32' });
  const p = loraB.shape[1] ?? 0;
  if (core === undefined || core.shape.length === 1) {
    const expected = core === undefined ? `[N, r = ${r}]` : `[N, r = ${r}] (core is a diagonal)`;
    if (p !== r) fail('ERR_SHAPE', op, 'loraB', `of shape ${expected}`, showShape(loraB.shape));
    return core === undefined ? left : multiplyAdd({ a: left, b: core });
  }
  return matmulInputGrad(left, core.to({ dtype: 'f32' }));
}

function updateOf(op: string, weight: BaseWeight, N: number, K: number, given: MergeParts): Update {
  const loraA = checkFactor(op, 'loraA', given.loraA, `[r, K = ${K}]`, 1, K, weight);
  const loraB = checkFactor(op, 'loraB', given.loraB, `[N = ${N}, r]`, 0, N, weight);
  const r = loraA.shape[0] ?? 0;
  const p = loraB.shape[1] ?? 0;
  const { core } = given;
  if (core !== undefined) {
    checkTensor(op, 'core', core);
    const { shape } = core;
    const matrix = shape.length === 2 && shape[0] === p && shape[1] === r;
    if (!matrix && !(shape.length === 1 && shape[0] === r)) {
      const expected = `of shape [r = ${r}] or [${p}, ${r}]`;
      fail('ERR_SHAPE', op, 'core', expected, showShape(shape));
    }
    checkSameDevice(op, 'core', core, weight);
  }
  const scaling = factorOf(op, 'scaling', given.scaling);
  const beta = factorOf(op, 'beta', given.beta);
  return { left: withCore(op, loraB, core, r), right: loraA.to({ dtype: 'f32' }), scaling, beta };
}

/** @internal Sums over what has been stored so far. */
export class LossSums {
  #count = 0;
  #error = 0;
  #max = 0;
  #update = 0;
  #moved = 0;

  add(before: Float32Array, wanted: ArrayLike<number>, stored: Float32Array): void {
    this.#count += wanted.length;
    for (let i = 0; i < wanted.length; i++) {
      const [w, v, q] = [before[i] as number, wanted[i] as number, stored[i] as number];
      const error = q - v;
      const update = v - w;
      this.#error += error * error;
      this.#update += update * update;
      this.#moved += (q - w) * update;
      this.#max = Math.max(this.#max, Math.abs(error));
    }
  }

  get loss(): MergeLoss {
    const count = Math.max(this.#count, 1);
    return {
      rms: Math.sqrt(this.#error / count),
      max: this.#max,
      deltaRms: Math.sqrt(this.#update / count),
      kept: this.#update === 0 ? 1 : this.#moved / this.#update,
    };
  }
}

/** Where the sum goes, tile by tile. */
interface Target {
  /** What holds it. */
  readonly result: BaseWeight;
  put(tile: Tensor, first: number): void;
  /** The result, if it is complete after the last tile alone. */
  finish?(): BaseWeight;
}

/** A new weight whose codes the host makes at the end. */
function hostTarget(op: string, weight: QuantizedWeight, K: number): Target | undefined {
  const host = hostCodes(op, weight);
  if (host !== undefined) {
    return {
      result: weight,
      put: (tile, first) => host.put(tile, first * K),
      finish: () => host.finish(),
    };
  }
  if (weight.format !== 'planar') return undefined;
  const values = new Float32Array((weight.shape[0] as number) * K);
  return {
    result: weight,
    put: (tile, first) => values.set(tile.readSync(), first * K),
    finish: () => requantizedWeight(op, weight, values),
  };
}

/** A new weight of the same blockwise format, which the device encodes. */
function deviceTarget(op: string, weight: QuantizedWeight): Target {
  const result = QuantizedWeight.emptyLike(weight, op);
  const to = QuantizedWeight.handleOf(result, op, 'w');
  const zeros = zeroTermOf(weight);
  const { device, doubleQuant, blocks } = weight;
  const absmax = doubleQuant ? Tensor.zeros([blocks], { device }) : undefined;
  const scales = absmax === undefined ? null : Tensor.handleOf(absmax, op, 'absmax');
  const put = (tile: Tensor, first: number): void => {
    const centred =
      zeros === undefined ? tile : shiftRows(tile, zeros, { dtype: 'f32', first, sign: -1 });
    const from = Tensor.handleOf(centred, op, 'tile');
    native(op, (raw) => raw.quantizeRows(from, to, first, scales));
  };
  if (scales === null) return { result, put };
  const finish = (): BaseWeight => {
    native(op, (raw) => raw.quantizeScales(scales, to));
    return result;
  };
  return { result, put, finish };
}

function targetOf(op: string, weight: BaseWeight, K: number, dtype: DType | undefined): Target {
  if (!(weight instanceof QuantizedWeight)) {
    return { result: weight, put: (tile, first) => putRows(weight, tile, first) };
  }
  if (dtype !== undefined) {
    const dense = Tensor.zeros(weight.shape, { dtype, device: weight.device });
    return { result: dense, put: (tile, first) => putRows(dense, tile, first) };
  }
  return hostTarget(op, weight, K) ?? deviceTarget(op, weight);
}

function merge(
  op: string,
  w: BaseWeight,
  parts: MergeParts,
  options: MergeOptions | undefined,
): MergeResult {
  const { weight, N, K } = checkWeight(op, w);
  const given = readOptions(op, options, { dtype: true });
  const wanted = given.dtype === undefined ? undefined : checkDType(op, 'dtype', given.dtype);
  if (wanted !== undefined && !(weight instanceof QuantizedWeight)) {
    fail(
      'ERR_VALUE',
      op,
      'dtype',
      'left out for a dense weight, which is changed in place',
      wanted,
    );
  }
  return scope(() => {
    const { left, right, scaling, beta } = updateOf(op, weight, N, K, parts);
    const target = targetOf(op, weight, K, wanted);
    // Decoded as products in the weight's own dtype decode it.
    const dtype = weight instanceof QuantizedWeight ? weight.sourceDType : weight.dtype;
    const read = (of: BaseWeight, first: number, end: number): Tensor =>
      denseRows(of, first, end, { dtype: of instanceof Tensor ? of.dtype : dtype });
    const tiles = rowTiles(weight);
    const sums = new LossSums();
    const each = (body: (first: number, end: number, old: Tensor, wanted: Tensor) => void) => {
      for (const [first, end] of tiles) {
        scope(() => {
          const old = read(weight, first, end);
          const delta = matmulInputGrad(denseRows(left, first, end), right);
          body(first, end, old, multiplyAdd({ a: delta, c: old, alpha: scaling, beta }));
        });
      }
    };
    let { result } = target;
    const account = (first: number, end: number, old: Float32Array, wanted: Tensor) =>
      sums.add(old, wanted.readSync(), read(result, first, end).readSync());
    each((first, end, old, wanted) => {
      // Read before it is overwritten.
      const values = old.readSync();
      target.put(wanted, first);
      if (target.finish === undefined) account(first, end, values, wanted);
    });
    if (target.finish !== undefined) {
      result = target.finish();
      each((first, end, old, wanted) => account(first, end, old.readSync(), wanted));
    }
    return { weight: result, lost: sums.loss };
  });
}

/**
 * Merges an adapter into its weight: `W ← beta · W + scaling · loraB · core · loraA`. The sum is in f32 and stored once. A dense weight is changed
 * in place and rounded to its dtype. A quantised one is decoded (to the dtype that it was quantised from, as products decode it), added to and
 * encoded again, tile by tile, into a new weight of the same format, tables of levels and scales, blocksize and double quantisation; the old one
 * stays. (With custom tables this happens on the host.) Zero-points stay too: the codes take up the update. Extra memory is a few tiles of 1 MB, one
 * f32 per block if scales are quantised too, and more only if the row length is so odd that blocks and rows rarely begin together.
 *
 * A planar weight is rounded on the host, in f32 and one byte a code: 5 bytes a weight beside its own. Its scales stay where they reach,
 * as {@link requantizePlanar} says. {@link QuantizedWeight.toPlanes} gives what a checkpoint keeps.
 *
 * It blocks the thread, about 0.3 s for 4,096 x 4,096, and no op of the weight may be running on
 * another thread. Rounding hides updates that are small compared with a code's step: `lost` says by
 * how much.
 * @param w [N, K] dense or quantised
 * @param parts the factors, or a {@link LoraAdapter} (its `loraBias` does not affect the weight)
 * @param options.dtype merges a quantised weight into a new dense one of this dtype
 * @returns the weight that holds the sum, and the loss of storing it
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DEVICE, ERR_DTYPE, ERR_VALUE, ERR_DISPOSED, ERR_OOM; ERR_NON_FINITE if a
 * sum for a quantised weight is not finite
 * @example
 * const { weight, lost } = mergeLora(w4, adapter);
 * if (lost.kept < 0.9) console.warn(`a tenth of the update is lost in ${w4.format}`);
 */
export function mergeLora(
  w: QuantizedWeight,
  parts: MergeParts,
  options: { readonly dtype: DType },
): MergeResult<Tensor>;
export function mergeLora<Weight extends BaseWeight>(
  w: Weight,
  parts: MergeParts,
  options?: MergeOptions & { readonly dtype?: never },
): MergeResult<Weight>;
export function mergeLora(w: BaseWeight, parts: MergeParts, options?: MergeOptions): MergeResult {
  const op = 'mergeLora';
  return merge(op, w, readParts(op, parts), options);
}

/**
 * Removes an adapter from a weight: `W ← (W − scaling · loraB · core · loraA) / beta`, otherwise like
 * {@link mergeLora}. A weight that was rounded in between is restored within that rounding.
 * @throws as {@link mergeLora}; ERR_VALUE if beta is 0
 * @example
 * const { weight } = mergeLora(w, adapter);
 * const { weight: before } = unmergeLora(weight, adapter);
 */
export function unmergeLora<Weight extends BaseWeight>(
  w: Weight,
  parts: MergeParts,
): MergeResult<Weight> {
  const op = 'unmergeLora';
  const given = readParts(op, parts);
  const beta = factorOf(op, 'beta', given.beta);
  if (beta === 0) fail('ERR_VALUE', op, 'beta', 'not 0', '0');
  const scaling = factorOf(op, 'scaling', given.scaling);
  const inverse = { ...given, scaling: -scaling / beta, beta: 1 / beta };
  return merge(op, w, inverse, undefined) as MergeResult<Weight>;
}
