import { checkTensor, checkVector } from '../../core/check-tensor.js';
import { type Device, resolveDevice } from '../../core/device.js';
import { checkDType, type DType } from '../../core/dtype.js';
import { fail, LowrankTypeError, markClass, refusal, wrongType } from '../../core/errors.js';
import { track } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import {
  checkDropout,
  checkFinite,
  checkInteger,
  checkSameDevice,
  readOptions,
  seedWords,
  showShape,
} from '../../core/validate.js';

/** Parts of a {@link LoraAdapter}. */
export interface LoraParts {
  /** [r, K] */
  loraA: Tensor;
  /** [N, r] */
  loraB: Tensor;
  loraAlpha: number;
  /** Rank-stabilised scaling `loraAlpha / sqrt(r)` instead of `loraAlpha / r`; default false. */
  rslora?: boolean;
  /** Probability that an element of the adapter's input is dropped in training; default 0. */
  dropout?: number;
  /** Does loraA get a gradient? Default true. A frozen factor costs nothing and saves nothing. */
  trainA?: boolean;
  /** Does loraB get a gradient? Default true. */
  trainB?: boolean;
  /** [N] bias of the up-projection (PEFT's `lora_bias`). */
  loraBias?: Tensor;
}

/** How {@link LoraAdapter.init} initialises its factors. */
export interface LoraInit {
  /** K */
  inFeatures: number;
  /** N */
  outFeatures: number;
  r: number;
  loraAlpha: number;
  seed: number;
  /**
   * `kaiming` (PEFT's default): loraA uniform in ±1/sqrt(K), loraB zero; `gaussian`: loraA normal
   * with standard deviation 1/r, loraB zero.
   */
  init?: 'kaiming' | 'gaussian';
  dtype?: DType;
  device?: Device;
  rslora?: boolean;
  dropout?: number;
  trainA?: boolean;
  trainB?: boolean;
}

function checkFlag(op: string, name: string, value: unknown, preset: boolean): boolean {
  if (value === undefined) return preset;
  if (typeof value !== 'boolean') throw wrongType(op, name, 'a boolean', value);
  return value;
}

/**
 * A low-rank adapter of a linear layer: `Δy = scaling · (x · loraAᵀ) · loraBᵀ`
 * (Hu et al., "LoRA", 2021; rank-stabilised scaling: Kalajdzievski, 2023).
 * @example
 * const adapter = LoraAdapter.init({ inFeatures: 64, outFeatures: 32, r: 8, loraAlpha: 16, seed: 1 });
 */
export class LoraAdapter implements Disposable {
  /** [r, K] */
  readonly loraA: Tensor;
  /** [N, r] */
  readonly loraB: Tensor;
  /** [N], if given. */
  readonly loraBias?: Tensor;
  readonly r: number;
  readonly loraAlpha: number;
  readonly rslora: boolean;
  /** `loraAlpha / r`, with rsLoRA `loraAlpha / sqrt(r)`. */
  readonly scaling: number;
  readonly dropout: number;
  readonly trainA: boolean;
  readonly trainB: boolean;

  /** @throws ERR_TYPE, ERR_SHAPE, ERR_VALUE, ERR_DEVICE, ERR_DISPOSED */
  constructor(parts: LoraParts) {
    const op = 'LoraAdapter';
    if (parts === null || typeof parts !== 'object')
      throw wrongType(op, 'parts', 'an object', parts);
    refuseMethods(op, 'parts', `{ loraA, loraB, loraAlpha } ${factorsOf(parts)}`, parts);
    const given = readOptions(op, parts, {
      loraA: true,
      loraB: true,
      loraAlpha: true,
      rslora: true,
      dropout: true,
      trainA: true,
      trainB: true,
      loraBias: true,
    });
    this.loraA = checkTensor(op, 'loraA', given.loraA);
    this.loraB = checkTensor(op, 'loraB', given.loraB);
    const [r, K] = this.loraA.shape;
    if (this.loraA.shape.length !== 2 || r === undefined || K === undefined || r < 1) {
      fail('ERR_SHAPE', op, 'loraA', 'of shape [r, K] with r >= 1', showShape(this.loraA.shape));
    }
    if (this.loraB.shape.length !== 2 || this.loraB.shape[1] !== r) {
      fail('ERR_SHAPE', op, 'loraB', `of shape [N, r = ${r}]`, showShape(this.loraB.shape));
    }
    checkSameDevice(op, 'loraB', this.loraB, this.loraA);
    if (given.loraBias !== undefined) {
      this.loraBias = checkTensor(op, 'loraBias', given.loraBias);
      checkVector(op, 'loraBias', this.loraBias, this.loraB.shape[0] ?? 0);
      checkSameDevice(op, 'loraBias', this.loraBias, this.loraA);
    }
    this.r = r;
    this.loraAlpha = checkFinite(op, 'loraAlpha', given.loraAlpha);
    this.rslora = checkFlag(op, 'rslora', given.rslora, false);
    this.scaling = this.loraAlpha / (this.rslora ? Math.sqrt(r) : r);
    this.dropout = checkDropout(op, given.dropout ?? 0);
    this.trainA = checkFlag(op, 'trainA', given.trainA, true);
    this.trainB = checkFlag(op, 'trainB', given.trainB, true);
  }

  /**
   * New factors, with loraB zero, so that training starts at the base model.
   * @throws ERR_TYPE, ERR_VALUE, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_OOM
   */
  static init(options: LoraInit): LoraAdapter {
    const op = 'LoraAdapter.init';
    if (options === null || typeof options !== 'object') {
      throw wrongType(op, 'options', 'an object', options);
    }
    const given = readOptions(op, options, {
      inFeatures: true,
      outFeatures: true,
      r: true,
      loraAlpha: true,
      seed: true,
      init: true,
      dtype: true,
      device: true,
      rslora: true,
      dropout: true,
      trainA: true,
      trainB: true,
    });
    const K = checkInteger(op, 'inFeatures', given.inFeatures, 1, 2 ** 31);
    const N = checkInteger(op, 'outFeatures', given.outFeatures, 1, 2 ** 31);
    const r = checkInteger(op, 'r', given.r, 1, 2 ** 20);
    const loraAlpha = checkFinite(op, 'loraAlpha', given.loraAlpha);
    const dropout = checkDropout(op, given.dropout ?? 0);
    const kind = given.init ?? 'kaiming';
    if (kind !== 'kaiming' && kind !== 'gaussian') {
      fail('ERR_VALUE', op, 'init', 'kaiming or gaussian', `"${String(kind)}"`);
    }
    checkDType(op, 'dtype', given.dtype ?? 'f32');
    resolveDevice(op, given.device);
    const place = {
      ...(given.dtype === undefined ? {} : { dtype: given.dtype }),
      ...(given.device === undefined ? {} : { device: given.device }),
    };
    const seed = given.seed as number;
    seedWords(op, seed);
    const bound = 1 / Math.sqrt(K);
    const loraA =
      kind === 'kaiming'
        ? Tensor.uniform([r, K], { ...place, seed, low: -bound, high: bound })
        : Tensor.randn([r, K], { ...place, seed, std: 1 / r });
    let loraB: Tensor | undefined;
    try {
      loraB = Tensor.zeros([N, r], place);
      const adapter = new LoraAdapter({
        loraA,
        loraB,
        loraAlpha,
        dropout,
        ...(given.rslora === undefined ? {} : { rslora: given.rslora }),
        ...(given.trainA === undefined ? {} : { trainA: given.trainA }),
        ...(given.trainB === undefined ? {} : { trainB: given.trainB }),
      });
      track(adapter);
      return adapter;
    } catch (error) {
      loraA.dispose();
      loraB?.dispose();
      throw error;
    }
  }

  get disposed(): boolean {
    return this.loraA.disposed || this.loraB.disposed;
  }

  /** Frees the factors. A second call does nothing. */
  dispose(): void {
    this.loraA.dispose();
    this.loraB.dispose();
    this.loraBias?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
markClass(LoraAdapter, 'LoraAdapter');

/**
 * The method of an adapter from `adapters.<method>.create`, recognised by its fields, because a
 * higher layer defines the class.
 */
function methodOf(value: unknown): string | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  if (!('method' in value && 'parameters' in value)) return undefined;
  return typeof value.method === 'string' ? value.method : undefined;
}

/** Says, in words, what to pass instead of an adapter of a method where factors are expected. */
function factorsOf(value: unknown): string {
  return methodOf(value) === 'lora'
    ? '(make it with new LoraAdapter({ ...adapter.parameters, loraAlpha, rslora, dropout }), with the numbers of adapter.config)'
    : '(call adapter.forward and adapter.backward of this adapter instead)';
}

/**
 * Rejects an adapter of a method where factors are expected.
 * @param expected what is expected, in words
 * @throws ERR_TYPE
 */
export function refuseMethods(op: string, operand: string, expected: string, value: unknown): void {
  const method = methodOf(value);
  if (method === undefined) return;
  const actual = `an adapter of the method ${method}`;
  throw new LowrankTypeError(op, refusal(op, operand, expected, actual));
}

/** @throws ERR_TYPE */
export function checkLoraAdapter(op: string, operand: string, value: unknown): LoraAdapter {
  if (value instanceof LoraAdapter) return value;
  const made = 'a LoraAdapter from new LoraAdapter or LoraAdapter.init';
  refuseMethods(op, operand, `${made} ${factorsOf(value)}`, value);
  throw wrongType(op, operand, made, value);
}
