/**
 * The tensor `weight.quant_state.bitsandbytes__nf4` (or `__fp4`): UTF-8 JSON in a U8 tensor.
 *
 *   {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [96, 64],
 *    "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.2098490446805954}
 *
 * The nested fields exist exactly with double quantisation. Field order and number text are those of
 * Python's `json.dumps`, so that a state is written back byte for byte.
 */

import { anyOf } from '../../core/errors.js';
import { type BitsandbytesFormat, bitsandbytesNames } from '../../core/formats.js';
import { printableValue } from '../../core/printable.js';
import { jsonBounds } from '../files/json-bounds.js';
import { Fields, parseJsonObject } from '../files/json-file.js';
import { PythonFloat, type PythonJson, pythonJson } from '../python-json.js';

/** Dtype that a weight had before it was quantised. */
export type BitsandbytesDType = 'f32' | 'bf16' | 'f16';

/** The content of a quant_state tensor. */
export interface QuantState {
  readonly format: BitsandbytesFormat;
  /** Elements that share a scale: a power of two from 32 to 4096. */
  readonly blocksize: number;
  readonly dtype: BitsandbytesDType;
  /** Shape of the weight before it was packed. */
  readonly shape: readonly number[];
  /** Double quantisation: the blocksize of the scales, and the offset that was subtracted from them. */
  readonly nested?: { readonly blocksize: number; readonly offset: number };
}

const kDTypes: readonly (readonly [string, BitsandbytesDType])[] = [
  ['float32', 'f32'],
  ['bfloat16', 'bf16'],
  ['float16', 'f16'],
];
const kFields = [
  'quant_type',
  'blocksize',
  'dtype',
  'shape',
  'nested_blocksize',
  'nested_dtype',
  'nested_offset',
];
const kMaxRank = 16;

/**
 * Parses the bytes of a quant_state tensor.
 *
 * @throws LowrankError `ERR_FORMAT`
 */
export function parseQuantState(op: string, bytes: Uint8Array): QuantState {
  const what = 'quant_state';
  const code = 'ERR_FORMAT';
  const object = parseJsonObject(op, what, bytes, jsonBounds.quantState, code);
  const fields = new Fields(op, what, object, code);
  const known = new Set(kFields);
  for (const key of Object.keys(object)) {
    if (!known.has(key)) fields.refuse(key, 'no field of a quant_state');
  }
  const quantType = fields.string('quant_type');
  const format = bitsandbytesNames.find((name) => name === quantType);
  if (format === undefined) {
    return fields.refuse('quant_type', anyOf(bitsandbytesNames.map((name) => `"${name}"`)));
  }
  const dtypeName = fields.string('dtype');
  const dtype = kDTypes.find(([name]) => name === dtypeName)?.[1];
  if (dtype === undefined) return fields.refuse('dtype', '"float32", "bfloat16" or "float16"');
  const state: QuantState = {
    format,
    blocksize: blocksize(fields, 'blocksize'),
    dtype,
    shape: shape(fields),
  };

  const nestedKeys = kFields.slice(4).filter((key) => fields.raw(key) !== undefined);
  if (nestedKeys.length === 0) return state;
  const nestedDType = fields.string('nested_dtype');
  if (nestedDType !== 'float32') return fields.refuse('nested_dtype', '"float32"');
  const offset = fields.number('nested_offset', 'a finite number', (value) =>
    Number.isFinite(Math.fround(value)),
  );
  return { ...state, nested: { blocksize: blocksize(fields, 'nested_blocksize'), offset } };
}

/**
 * The bytes of a quant_state tensor, as bitsandbytes writes them.
 *
 * @param state `nested.offset` should be an f32 value, as in bitsandbytes
 */
export function formatQuantState(state: QuantState): Uint8Array<ArrayBuffer> {
  const dtypeName = kDTypes.find(([, dtype]) => dtype === state.dtype)?.[0] ?? state.dtype;
  const fields = new Map<string, PythonJson>([
    ['quant_type', state.format],
    ['blocksize', state.blocksize],
    ['dtype', dtypeName],
    ['shape', state.shape],
  ]);
  if (state.nested !== undefined) {
    fields.set('nested_blocksize', state.nested.blocksize);
    fields.set('nested_dtype', 'float32');
    fields.set('nested_offset', new PythonFloat(state.nested.offset));
  }
  return new TextEncoder().encode(pythonJson(fields));
}

/** Is a number a blocksize, that is, a power of two from 32 to 4096? */
export function isBlocksize(value: unknown): value is number {
  return (
    typeof value === 'number' &&
    Number.isInteger(value) &&
    value >= 32 &&
    value <= 4096 &&
    Number.isInteger(Math.log2(value))
  );
}

function blocksize(fields: Fields, key: string): number {
  const value = fields.raw(key);
  return isBlocksize(value) ? value : fields.refuse(key, 'a power of two from 32 to 4096');
}

function shape(fields: Fields): number[] {
  const value = fields.raw('shape');
  if (!Array.isArray(value) || value.length === 0 || value.length > kMaxRank) {
    return fields.refuse('shape', `a list of 1 to ${kMaxRank} dimensions`);
  }
  let elements = 1;
  for (const dim of value) {
    if (typeof dim !== 'number' || !Number.isSafeInteger(dim) || dim < 0) {
      const got = printableValue(dim);
      return fields.refuse('shape', `a list of non-negative integers (it holds ${got})`);
    }
    elements *= Math.max(dim, 1);
    if (elements > Number.MAX_SAFE_INTEGER) {
      return fields.refuse('shape', 'a shape of fewer than 2^53 elements');
    }
  }
  return value as number[];
}
