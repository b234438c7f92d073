/** Checked access to the tensors of one layer and to what its config says about it. */
import { type ErrorCode, fail, shown } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { bytesOf, checkRawTensor, type RawDType, type RawTensor } from '../raw-tensor.js';
import type { LayerTensors, QuantizationConfig } from './layer-tensors.js';

export const listed = (shape: readonly number[]): string => `[${shape.join(', ')}]`;

export class LayerReader {
  private readonly taken = new Set<string>();

  /**
   * @param name of the layer, for messages; empty if it has none
   * @param config what the config says of this layer: its group or its own settings, not those of others
   */
  constructor(
    readonly op: string,
    readonly name: string,
    private readonly tensors: LayerTensors,
    readonly config: QuantizationConfig,
  ) {}

  /** Throws an error that names a tensor, or a field of the config, and the layer. */
  refuse(code: ErrorCode, key: string, expected: string, actual: string): never {
    const operand = this.name === '' ? key : `${key} of ${printable(this.name)}`;
    return fail(code, this.op, operand, expected, actual);
  }

  has(key: string): boolean {
    return Object.hasOwn(this.tensors, key);
  }

  /** A tensor whose bytes fit its shape, with at least one element. */
  tensor(key: string, dtypes: readonly RawDType[]): RawTensor {
    const found = this.has(key) ? this.tensors[key] : undefined;
    if (found === undefined) {
      const present = Object.keys(this.tensors).map(printable).join(', ');
      return this.refuse('ERR_FORMAT', key, 'a tensor of the layer', `only ${present}`);
    }
    this.taken.add(key);
    const operand = this.name === '' ? key : `${key} of ${printable(this.name)}`;
    checkRawTensor(this.op, operand, found);
    if (!dtypes.includes(found.dtype)) {
      this.refuse('ERR_DTYPE', key, `of dtype ${dtypes.join(' or ')}`, found.dtype);
    }
    if (found.shape.includes(0)) {
      this.refuse('ERR_SHAPE', key, 'of dimensions of at least 1', listed(found.shape));
    }
    return found;
  }

  /** A tensor [first, second]. */
  matrix(key: string, dtypes: readonly RawDType[]): RawTensor & { size: [number, number] } {
    const tensor = this.tensor(key, dtypes);
    const [first, second, ...more] = tensor.shape;
    if (first === undefined || second === undefined || more.length > 0) {
      return this.refuse('ERR_SHAPE', key, 'of two dimensions', listed(tensor.shape));
    }
    return { ...tensor, size: [first, second] };
  }

  /** @param why names what the shape follows from */
  requireShape(key: string, { shape }: RawTensor, expected: readonly number[], why: string): void {
    if (listed(shape) !== listed(expected)) {
      this.refuse('ERR_SHAPE', key, `of shape ${listed(expected)} for ${why}`, listed(shape));
    }
  }

  /** The one integer of a tensor. */
  scalar(key: string): number {
    const tensor = this.tensor(key, ['I32', 'I64', 'U8', 'BOOL']);
    const { dtype, shape, data } = tensor;
    const count = shape.reduce((product, dim) => product * dim, 1);
    if (count !== 1) this.refuse('ERR_SHAPE', key, 'one value', listed(shape));
    const bytes = bytesOf(data).slice();
    if (dtype === 'I32') return new Int32Array(bytes.buffer)[0] as number;
    return dtype === 'I64' ? Number(new BigInt64Array(bytes.buffer)[0]) : (bytes[0] as number);
  }

  /** Tensors that are kept as they are, copied. */
  others(keys: readonly string[]): LayerTensors {
    const found = Object.entries(this.tensors).filter(([key]) => keys.includes(key));
    for (const [key, tensor] of found) {
      this.taken.add(key);
      checkRawTensor(this.op, key, tensor);
    }
    return Object.fromEntries(found.map(([key, tensor]) => [key, copied(tensor)]));
  }

  /** Refuses tensors that the layout does not have. */
  finish(layout: string): void {
    for (const key of Object.keys(this.tensors)) {
      if (this.taken.has(key)) continue;
      this.refuse('ERR_FORMAT', printable(key), `absent in a layer of ${layout}`, 'a tensor');
    }
  }

  private setting(key: string): unknown {
    const value = Object.hasOwn(this.config, key) ? this.config[key] : undefined;
    return value === null ? undefined : value;
  }

  /** An integer of the config; `undefined` if it says nothing. */
  integer(key: string, least: number, most: number): number | undefined {
    const value = this.setting(key);
    if (value === undefined) return undefined;
    if (typeof value === 'number' && Number.isInteger(value) && value >= least && value <= most) {
      return value;
    }
    return this.refuse(
      'ERR_FORMAT',
      `${key} in the config`,
      `an integer from ${least} to ${most}`,
      shown(value),
    );
  }

  /** Columns that share a scale by the config: K for -1. */
  groupSize(K: number): number | undefined {
    const size = this.integer('group_size', -1, Number.MAX_SAFE_INTEGER);
    if (size === 0) {
      this.refuse('ERR_FORMAT', 'group_size in the config', '-1 or a positive integer', '0');
    }
    return size === -1 ? K : size;
  }

  text(key: string): string | undefined {
    const value = this.setting(key);
    if (value === undefined || typeof value === 'string') return value;
    return this.refuse('ERR_FORMAT', `${key} in the config`, 'a string', shown(value));
  }

  flag(key: string): boolean | undefined {
    const value = this.setting(key);
    if (value === undefined || typeof value === 'boolean') return value;
    return this.refuse('ERR_FORMAT', `${key} in the config`, 'true or false', shown(value));
  }

  /** Two positive integers, [rows, columns]. */
  pair(key: string): readonly [number, number] | undefined {
    const value = this.setting(key);
    if (value === undefined) return undefined;
    const [rows, columns, ...more]: unknown[] = Array.isArray(value) ? value : [];
    const positive = (n: unknown): n is number => Number.isSafeInteger(n) && (n as number) >= 1;
    if (positive(rows) && positive(columns) && more.length === 0) return [rows, columns];
    return this.refuse(
      'ERR_FORMAT',
      `${key} in the config`,
      'two positive integers',
      Array.isArray(value) ? 'another list' : shown(value),
    );
  }
}

/** A tensor in memory of its own. */
export function copied({ dtype, shape, data }: RawTensor): RawTensor {
  return { dtype, shape: [...shape], data: data.slice() };
}
