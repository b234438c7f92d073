import { type NativeHandle, native } from '../core/binding.js';
import { checkShape, checkTensor, lastDim } from '../core/check-tensor.js';
import { type Device, resolveDevice } from '../core/device.js';
import { checkDType, type DType } from '../core/dtype.js';
import { fail, wrongType } from '../core/errors.js';
import { track } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import {
  checkFinite,
  checkInteger,
  checkSameDevice,
  newArray,
  orDefault,
  readOptions,
  showShape,
} from '../core/validate.js';
import { withLast } from './base-weight.js';

/** Definition of a {@link FeatureMap}: the lists, or the index if each list has one entry. */
export interface FeatureMapSpec {
  /** K, the number of input features. */
  inFeatures: number;
  /** J, the number of output features. */
  outFeatures: number;
  /** J lists of inputs to sum. An input occurs at most once in a list. */
  lists?: readonly ArrayLike<number>[];
  /** J entries: the input to copy, or −1 for a zero. */
  index?: Int32Array;
  /** Default {@link defaultDevice}. */
  device?: Device;
}

/** Device option of the functions that make a {@link FeatureMap}. */
export interface FeatureMapOptions {
  device?: Device;
}

const MAX_FEATURES = 2 ** 31 - 1;

/** Lists one after another, or one index per output. */
interface Lists {
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** [J + 1] where the list of each output begins; null if `index` has one entry per output. */
  readonly begin: Int32Array | null;
  readonly index: Int32Array;
  readonly device: Device;
}

/** Lists that need no checks. */
class OwnLists {
  readonly lists: Lists;
  /** The map belongs to another one: no scope frees it. */
  readonly owned: boolean;
  constructor(lists: Lists, owned: boolean) {
    this.lists = lists;
    this.owned = owned;
  }
}

/** f(0), f(1), ... */
function indices(length: number, f: (j: number) => number): Int32Array {
  const index = newArray('FeatureMap', Int32Array, length);
  for (let j = 0; j < length; j++) index[j] = f(j);
  return index;
}

function indexOf(op: string, value: unknown, K: number, J: number): Int32Array {
  if (!(ArrayBuffer.isView(value) && value instanceof Int32Array)) {
    throw wrongType(op, 'index', 'an Int32Array', value);
  }
  if (value.length !== J) fail('ERR_SHAPE', op, 'index', `of length ${J}`, String(value.length));
  const index = Int32Array.from(value);
  for (let j = 0; j < J; j++) {
    const t = index[j] as number;
    if (t < -1 || t >= K) fail('ERR_VALUE', op, `index[${j}]`, `from -1 to ${K - 1}`, String(t));
  }
  return index;
}

/** One list, sorted. */
function listOf(op: string, j: number, value: unknown, K: number): Int32Array {
  const operand = `lists[${j}]`;
  const typed = ArrayBuffer.isView(value) && value instanceof Int32Array;
  if (!typed && !Array.isArray(value)) {
    throw wrongType(op, operand, 'an array of numbers or an Int32Array', value);
  }
  const { length } = value;
  if (!(length <= K)) {
    fail('ERR_SHAPE', op, operand, `of at most ${K} inputs`, String(length));
  }
  const list = new Int32Array(length);
  for (let i = 0; i < length; i++) {
    list[i] = checkInteger(op, `${operand}[${i}]`, value[i], 0, K - 1);
  }
  list.sort();
  for (let i = 1; i < length; i++) {
    if (list[i] === list[i - 1]) {
      fail('ERR_VALUE', op, operand, 'of distinct inputs', `${list[i]} twice`);
    }
  }
  return list;
}

/** Lists of any length as begin and index; if none has more than one entry, as one index each. */
function joined(lists: readonly Int32Array[]): { begin: Int32Array | null; index: Int32Array } {
  if (lists.every(({ length }) => length <= 1)) {
    return { begin: null, index: Int32Array.from(lists, (list) => list[0] ?? -1) };
  }
  const begin = new Int32Array(lists.length + 1);
  lists.forEach((list, j) => {
    begin[j + 1] = (begin[j] as number) + list.length;
  });
  const index = new Int32Array(begin[lists.length] as number);
  lists.forEach((list, j) => {
    index.set(list, begin[j]);
  });
  return { begin, index };
}

function listsOf(op: string, value: unknown, K: number, J: number) {
  if (!Array.isArray(value)) throw wrongType(op, 'lists', 'an array of lists', value);
  if (value.length !== J) fail('ERR_SHAPE', op, 'lists', `of length ${J}`, String(value.length));
  const lists: Int32Array[] = [];
  let entries = 0;
  for (let j = 0; j < J; j++) {
    const list = listOf(op, j, value[j], K);
    entries += list.length;
    if (entries > MAX_FEATURES) {
      fail('ERR_SHAPE', op, 'lists', `of at most ${MAX_FEATURES} entries`, 'more');
    }
    lists.push(list);
  }
  return joined(lists);
}

function readSpec(op: string, spec: unknown): Lists {
  if (spec === undefined) throw wrongType(op, 'spec', 'an object', spec);
  const given = readOptions(op, spec as FeatureMapSpec, {
    inFeatures: true,
    outFeatures: true,
    lists: true,
    index: true,
    device: true,
  });
  const inFeatures = checkInteger(op, 'inFeatures', given.inFeatures, 0, MAX_FEATURES);
  const outFeatures = checkInteger(op, 'outFeatures', given.outFeatures, 0, MAX_FEATURES);
  if ((given.lists === undefined) === (given.index === undefined)) {
    const what = given.lists === undefined ? 'neither' : 'both';
    fail('ERR_VALUE', op, 'spec', 'an object of either lists or index', what);
  }
  const parts =
    given.lists === undefined
      ? { begin: null, index: indexOf(op, given.index, inFeatures, outFeatures) }
      : listsOf(op, given.lists, inFeatures, outFeatures);
  return { inFeatures, outFeatures, ...parts, device: resolveDevice(op, given.device) };
}

/** The transposed map: its list t contains j for every list j that contains t. */
function transposed({ inFeatures, outFeatures, begin, index, device }: Lists): Lists {
  const counts = new Int32Array(inFeatures + 1);
  for (const t of index) if (t >= 0) counts[t + 1] = (counts[t + 1] as number) + 1;
  const single = counts.every((count) => count <= 1);
  const back = { inFeatures: outFeatures, outFeatures: inFeatures, device };
  const place = single ? new Int32Array(inFeatures).fill(-1) : undefined;
  const first = Int32Array.from(counts);
  for (let t = 0; t < inFeatures; t++)
    first[t + 1] = (first[t + 1] as number) + (first[t] as number);
  const inverse = new Int32Array(first[inFeatures] as number);
  const next = first.slice(0, inFeatures);
  for (let j = 0; j < outFeatures; j++) {
    const end = begin === null ? j + 1 : (begin[j + 1] as number);
    for (let p = begin === null ? j : (begin[j] as number); p < end; p++) {
      const t = index[p] as number;
      if (t < 0) continue;
      if (place !== undefined) place[t] = j;
      inverse[next[t] as number] = j;
      next[t] = (next[t] as number) + 1;
    }
  }
  if (place !== undefined) return { ...back, begin: null, index: place };
  return { ...back, begin: first, index: inverse };
}

/**
 * A fixed sparse 0/1 map of the last dimension, for {@link mapFeatures}: output j is the sum of the
 * inputs in its list. It covers gathers, slices, permutations, repetitions, sums of groups and
 * compositions of them: everything that a structured adapter does to its input and output besides
 * products.
 *
 * It owns native memory until {@link FeatureMap.dispose}, and keeps the lists on the host for its
 * {@link FeatureMap.adjoint}.
 * @example
 * using pairs = new FeatureMap({ inFeatures: 4, outFeatures: 2, lists: [[0, 1], [2, 3]] });
 * const sums = mapFeatures(x, pairs); // x [..., 4]
 */
export class FeatureMap implements Disposable {
  /** K */
  readonly inFeatures: number;
  /** J */
  readonly outFeatures: number;
  readonly device: Device;
  readonly #lists: Lists;
  /** Is it the adjoint of another map, which frees it? */
  readonly #owned: boolean;
  #handle: NativeHandle | undefined;
  #adjoint: FeatureMap | undefined;

  /**
   * @param spec its sizes, and either `lists` or `index`
   * @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DEVICE, ERR_OOM
   */
  constructor(spec: FeatureMapSpec) {
    const op = 'FeatureMap';
    const given: unknown = spec;
    const lists = given instanceof OwnLists ? given.lists : readSpec(op, given);
    const { inFeatures, outFeatures, begin, index, device } = lists;
    this.#lists = lists;
    this.#owned = given instanceof OwnLists && given.owned;
    this.#handle = native(op, (raw) =>
      raw.featureMap(device, inFeatures, outFeatures, begin, index),
    );
    this.inFeatures = inFeatures;
    this.outFeatures = outFeatures;
    this.device = device;
    if (!this.#owned) track(this);
  }

  /** Is this a map of this library? False for a proxy or an imitation, which have no memory. */
  static is(value: unknown): value is FeatureMap {
    return typeof value === 'object' && value !== null && #handle in value;
  }

  /** @internal The live handle. @throws ERR_DISPOSED */
  static handleOf(map: FeatureMap, op: string, operand: string): NativeHandle {
    const handle = map.#handle;
    if (handle === undefined) fail('ERR_DISPOSED', op, operand, 'a live map', 'a disposed one');
    return handle;
  }

  /** @internal A map from lists that need no checks, one after another. */
  static ofSums(lists: { readonly begin: Int32Array } & Lists): FeatureMap {
    const own: unknown = new OwnLists(lists, false);
    return new FeatureMap(own as FeatureMapSpec);
  }

  static #of(op: string, K: number, index: Int32Array, options: unknown): FeatureMap {
    const { device } = readOptions(op, options as FeatureMapOptions | undefined, { device: true });
    return new FeatureMap({
      inFeatures: K,
      outFeatures: index.length,
      index,
      ...(device === undefined ? {} : { device }),
    });
  }

  /**
   * `y[j] = x[index[j]]`, or zero if the index is −1.
   * @param inFeatures K
   * @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE, ERR_OOM
   */
  static gather(index: Int32Array, inFeatures: number, options?: FeatureMapOptions): FeatureMap {
    const op = 'FeatureMap.gather';
    const K = checkInteger(op, 'inFeatures', inFeatures, 0, MAX_FEATURES);
    const given: unknown = index;
    if (!(ArrayBuffer.isView(given) && given instanceof Int32Array)) {
      throw wrongType(op, 'index', 'an Int32Array', given);
    }
    return FeatureMap.#of(op, K, index, options);
  }

  /** Features from `start` up to `end`. @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE, ERR_OOM */
  static slice(
    inFeatures: number,
    start: number,
    end: number,
    options?: FeatureMapOptions,
  ): FeatureMap {
    const op = 'FeatureMap.slice';
    const K = checkInteger(op, 'inFeatures', inFeatures, 0, MAX_FEATURES);
    const last = checkInteger(op, 'end', end, 0, K);
    const first = checkInteger(op, 'start', start, 0, last);
    const index = indices(last - first, (j) => first + j);
    return FeatureMap.#of(op, K, index, options);
  }

  /**
   * `y[j] = x[index[j]]`, with each input used once.
   * @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE, ERR_OOM
   */
  static permute(index: Int32Array, options?: FeatureMapOptions): FeatureMap {
    const op = 'FeatureMap.permute';
    const given: unknown = index;
    if (!(ArrayBuffer.isView(given) && given instanceof Int32Array)) {
      throw wrongType(op, 'index', 'an Int32Array', given);
    }
    const own = indexOf(op, given, given.length, given.length);
    const seen = new Uint8Array(own.length);
    for (let j = 0; j < own.length; j++) {
      const t = own[j] as number;
      if (t < 0 || seen[t] === 1) {
        fail('ERR_VALUE', op, `index[${j}]`, 'an input that no earlier output takes', String(t));
      }
      seen[t] = 1;
    }
    return FeatureMap.#of(op, own.length, own, options);
  }

  /**
   * Repeats every feature `times` times: each in a row (`inner`, `y[j] = x[floor(j / times)]`), or
   * the whole vector again and again (`outer`, `y[j] = x[j mod K]`).
   * @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE, ERR_OOM
   */
  static repeat(
    inFeatures: number,
    times: number,
    kind: 'inner' | 'outer',
    options?: FeatureMapOptions,
  ): FeatureMap {
    const op = 'FeatureMap.repeat';
    const K = checkInteger(op, 'inFeatures', inFeatures, 0, MAX_FEATURES);
    const most = Math.floor(MAX_FEATURES / Math.max(K, 1));
    const count = checkInteger(op, 'times', times, 1, most);
    if (typeof kind !== 'string') throw wrongType(op, 'kind', 'a string', kind);
    if (kind !== 'inner' && kind !== 'outer') {
      fail('ERR_VALUE', op, 'kind', 'inner or outer', `"${String(kind)}"`);
    }
    const index = indices(
      K * count,
      kind === 'inner' ? (j) => Math.floor(j / count) : (j) => j % K,
    );
    return FeatureMap.#of(op, K, index, options);
  }

  /**
   * The sums of `groups` runs of K / groups neighbouring features: the adjoint of
   * `repeat(groups, K / groups, 'inner')`.
   * @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE, ERR_OOM
   */
  static groupSum(inFeatures: number, groups: number, options?: FeatureMapOptions): FeatureMap {
    const op = 'FeatureMap.groupSum';
    const K = checkInteger(op, 'inFeatures', inFeatures, 1, MAX_FEATURES);
    const J = checkInteger(op, 'groups', groups, 1, K);
    if (K % J !== 0) fail('ERR_VALUE', op, 'groups', `a divisor of ${K}`, String(J));
    const { device } = readOptions(op, options, { device: true });
    const size = K / J;
    const lists = Array.from({ length: J }, (_, j) => indices(size, (t) => j * size + t));
    return new FeatureMap({
      inFeatures: K,
      outFeatures: J,
      lists,
      ...(device === undefined ? {} : { device }),
    });
  }

  /**
   * The transpose of a matrix that is stored row by row: `y[c · rows + r] = x[r · cols + c]`.
   * @throws ERR_TYPE, ERR_VALUE, ERR_DEVICE, ERR_OOM
   */
  static transpose(rows: number, cols: number, options?: FeatureMapOptions): FeatureMap {
    const op = 'FeatureMap.transpose';
    const R = checkInteger(op, 'rows', rows, 0, MAX_FEATURES);
    const C = checkInteger(op, 'cols', cols, 0, Math.floor(MAX_FEATURES / Math.max(R, 1)));
    const index = indices(R * C, (j) => (j % R) * C + Math.floor(j / R));
    return FeatureMap.#of(op, R * C, index, options);
  }

  /**
   * The transposed map, from J features to K, which the gradient of {@link mapFeatures} uses. It is
   * made at its first use, kept, and freed with this map. Its own adjoint is this map.
   * @throws ERR_DISPOSED, ERR_OOM
   */
  get adjoint(): FeatureMap {
    FeatureMap.handleOf(this, 'FeatureMap.adjoint', 'map');
    let adjoint = this.#adjoint;
    if (adjoint === undefined || adjoint.disposed) {
      const own: unknown = new OwnLists(transposed(this.#lists), true);
      adjoint = new FeatureMap(own as FeatureMapSpec);
      adjoint.#adjoint = this;
      this.#adjoint = adjoint;
    }
    return adjoint;
  }

  /** Number of entries in all lists. */
  get entries(): number {
    return this.#lists.index.length;
  }

  /** Bytes of memory on the device. */
  get byteLength(): number {
    const { begin, index } = this.#lists;
    return index.byteLength + (begin?.byteLength ?? 0);
  }

  get disposed(): boolean {
    return this.#handle === undefined;
  }

  /** Frees the memory of this map and of its adjoint as soon as no queued op needs it. A second call does nothing. */
  dispose(): void {
    const handle = this.#handle;
    if (handle === undefined) return;
    this.#handle = undefined;
    native('dispose', (raw) => raw.dispose(handle));
    if (!this.#owned) this.#adjoint?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Options of {@link mapFeatures}. */
export interface MapFeaturesOptions {
  /** [..., J] a summand, any dtype; default 0. */
  c?: Tensor;
  /** Factor of the sums; default 1. */
  alpha?: number;
  /** Factor of the summand; default 1. */
  beta?: number;
  /** Dtype of the result; default that of `x`. */
  dtype?: DType;
}

/**
 * A fixed 0/1 map of the last dimension: `y[m, j] = alpha · Σ x[m, t] + beta · c[m, j]`, with t over
 * the map's list j. Each list is summed in double in ascending order and rounded to f32. alpha, beta
 * and `c` follow in f32, rounded once to the dtype of the result. The bits are the same on every
 * device except `reference`. The gradient with respect to `x` is
 * `mapFeatures(dy, map.adjoint, { alpha })`.
 * @param x [..., K] any dtype
 * @param map from K features to J, on the device of `x`
 * @returns y [..., J]
 * @throws ERR_TYPE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_VALUE, ERR_DISPOSED, ERR_OOM
 * @example
 * const shuffle = FeatureMap.permute(Int32Array.of(2, 0, 1));
 * const shuffled = mapFeatures(x, shuffle); // x [..., 3]
 * const dx = mapFeatures(dShuffled, shuffle.adjoint);
 */
export function mapFeatures(x: Tensor, map: FeatureMap, options?: MapFeaturesOptions): Tensor {
  const op = 'mapFeatures';
  checkTensor(op, 'x', x);
  if (!FeatureMap.is(map)) throw wrongType(op, 'map', 'a FeatureMap', map);
  const mapHandle = FeatureMap.handleOf(map, op, 'map');
  if (x.shape.length === 0 || lastDim(x) !== map.inFeatures) {
    fail('ERR_SHAPE', op, 'x', `of shape [..., ${map.inFeatures}]`, showShape(x.shape));
  }
  checkSameDevice(op, 'map', map, x);
  const given = readOptions(op, options, { c: true, alpha: true, beta: true, dtype: true });
  const { c } = given;
  if (c !== undefined) {
    checkTensor(op, 'c', c);
    checkShape(op, 'c', c, withLast(x, map.outFeatures));
    checkSameDevice(op, 'c', c, x);
  }
  const alpha = checkFinite(op, 'alpha', orDefault(given.alpha, 1));
  const beta = checkFinite(op, 'beta', orDefault(given.beta, 1));
  const dtype = checkDType(op, 'dtype', orDefault(given.dtype, x.dtype));
  const xHandle = Tensor.handleOf(x, op, 'x');
  const cHandle = c === undefined ? null : Tensor.handleOf(c, op, 'c');
  return Tensor.adopt(
    native(op, (raw) => raw.mapFeatures(xHandle, mapHandle, cHandle, alpha, beta, dtype)),
    withLast(x, map.outFeatures),
    dtype,
    x.device,
  );
}
