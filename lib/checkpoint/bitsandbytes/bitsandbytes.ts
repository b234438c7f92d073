/**
 * The state of bitsandbytes' blockwise quantised weights in a checkpoint.
 *
 * 4-bit (Linear4bit), keys relative to the layer:
 *
 *   weight                  U8 [ceil(N·K / 2), 1], two codes a byte, element 2i in the high nibble; or
 *                           the same bytes under another dtype (quant_storage)
 *   weight.absmax           F32 [blocks]; U8 [blocks] with double quantisation
 *   weight.quant_map        F32 [16], the codebook
 *   weight.nested_absmax    F32 [ceil(blocks / nested_blocksize)]   } double quantisation: absmax of
 *   weight.nested_quant_map F32 [256]                               } block j = map[u8[j]] ·
 *   weight.quant_state.bitsandbytes__nf4 | __fp4   U8, JSON         } nested_absmax[j / 256] + offset
 *
 * int8 (quantize_blockwise with the dynamic map) differs in `weight`, U8 of the weight's own shape
 * with one code a byte, in `weight.quant_map`, F32 [256], and in the name of its state, __int8.
 */

import { anyOf, fail } from '../../core/errors.js';
import { type BitsandbytesFormat, bitsandbytesNames, formatOf } from '../../core/formats.js';
import { printable } from '../../core/printable.js';
import { checkMap, checkName, checkObject } from '../arguments.js';
import { bytesOf, checkRawTensor, type RawDType, type RawTensor } from '../raw-tensor.js';
import {
  type BitsandbytesDType,
  formatQuantState,
  isBlocksize,
  parseQuantState,
} from './quant-state.js';
import { kRowInt8Keys } from './row-int8-state.js';

export type { BitsandbytesFormat } from '../../core/formats.js';
export type { BitsandbytesDType } from './quant-state.js';

/** One layer's tensors; the keys are bitsandbytes', relative to the layer. */
export interface BitsandbytesState {
  readonly [key: string]: RawTensor;
}

/** Scales that are quantised themselves: absmax[j] = codebook[code] · nested absmax + offset. */
export interface NestedAbsmax {
  readonly absmax8bit: Uint8Array; // [blocks]
  readonly absmaxCodebook: Float32Array; // [256], ascending
  readonly nestedAbsmax: Float32Array; // [ceil(blocks / nestedBlocksize)]
  /** Mean of the scales, an f32 value. */
  readonly offset: number;
  /** Number of scales that share a nested scale; bitsandbytes uses 256. */
  readonly nestedBlocksize: number;
}

/** Dtypes under which bitsandbytes stores packed codes. */
export type QuantStorage = 'U8' | 'BF16' | 'F16' | 'F32';

/** A checked weight. */
export interface ParsedBitsandbytes {
  readonly format: BitsandbytesFormat;
  readonly blocksize: number;
  /** Dtype before quantisation, and therefore of the dequantised weight. */
  readonly dtype: BitsandbytesDType;
  /** [N, K]; blocks run over the flattened tensor. */
  readonly shape: readonly number[];
  /** Packed: element 2i in the high nibble of byte i. */
  readonly codes: Uint8Array; // [ceil(elements / 2)]; int8: one code a byte, [elements]
  readonly absmax: Float32Array | NestedAbsmax; // [ceil(elements / blocksize)]
  readonly codebook: Float32Array; // [16]; int8: [256]
  /** Dtype in which the codes are stored; default U8. */
  readonly quantStorage?: QuantStorage;
}

const kStoragePerByte: Readonly<Record<QuantStorage, number>> = { U8: 1, BF16: 2, F16: 2, F32: 4 };
const kStatePrefix = 'weight.quant_state.bitsandbytes__';

/** Bytes that the codes of so many elements take. */
function codeBytes(format: BitsandbytesFormat, elements: number): number {
  return Math.ceil((elements * formatOf(format).bits) / 8);
}

const kTensorKeys = [
  'weight',
  'weight.absmax',
  'weight.quant_map',
  'weight.nested_absmax',
  'weight.nested_quant_map',
];

/** Are the scales of a parsed weight quantised themselves? */
export function isNestedAbsmax(absmax: Float32Array | NestedAbsmax): absmax is NestedAbsmax {
  return !(absmax instanceof Float32Array);
}

/**
 * Checks the 4-bit state of one layer and splits it into its parts. The arrays are copies.
 *
 * The structure of the codebook is checked (nf4: 16 ascending values in [-1, 1]; fp4: 8 magnitudes
 * and their negatives). The caller must compare it with the standard table.
 *
 * @param state keys as in the file, relative to the layer; other keys, such as `bias`, are ignored
 * @throws LowrankError `ERR_FORMAT`, which names the key
 * @example
 * const { layers } = splitBitsandbytes(readSafetensors('model.safetensors').tensors);
 * const parsed = parseBitsandbytes(layers.get('fc1')!);
 */
export function parseBitsandbytes(state: BitsandbytesState): ParsedBitsandbytes {
  const op = 'parseBitsandbytes';
  const refuse = (key: string, expected: string, got: string): never =>
    fail('ERR_FORMAT', op, key, expected, got);
  const { format, tensor: stateTensor } = findQuantState(op, state);
  const tensor = (key: string, dtype: RawDType): RawTensor => {
    const found = Object.hasOwn(state, key) ? state[key] : undefined;
    if (found === undefined) return refuse(key, `a ${dtype} tensor`, 'none');
    checkState(op, key, found);
    return found.dtype === dtype ? found : refuse(key, `of dtype ${dtype}`, found.dtype);
  };
  const floats = (key: string, length: number, holds: (v: number) => boolean, what: string) => {
    const values = new Float32Array(bytesOf(tensor(key, 'F32').data).slice().buffer);
    if (values.length !== length) refuse(key, `${length} values`, String(values.length));
    const bad = values.findIndex((value) => !holds(value));
    if (bad >= 0) refuse(key, what, `${values[bad]} at ${bad}`);
    return values;
  };

  const key = kStatePrefix + format;
  checkState(op, key, stateTensor);
  if (stateTensor.dtype !== 'U8') refuse(key, 'of dtype U8', stateTensor.dtype);
  const quantState = parseQuantState(op, bytesOf(stateTensor.data));
  if (quantState.format !== format) {
    refuse(key, `a state with quant_type "${format}"`, `"${quantState.format}"`);
  }
  const { blocksize, dtype, shape, nested } = quantState;
  const elements = shape.reduce((product, dim) => product * dim, 1);
  const blocks = Math.ceil(elements / blocksize);
  const { codes, quantStorage } = packedCodes(op, state, codeBytes(format, elements));
  const codebook = floats(
    'weight.quant_map',
    format === 'int8' ? 256 : 16,
    (v) => Math.abs(v) <= 1,
    'within [-1, 1]',
  );
  checkCodebook(op, format, codebook);

  const isScale = (value: number) => value >= 0 && Number.isFinite(value);
  const scaleText = 'finite and not negative';
  let absmax: Float32Array | NestedAbsmax;
  if (nested === undefined) {
    for (const other of ['weight.nested_absmax', 'weight.nested_quant_map']) {
      if (Object.hasOwn(state, other)) refuse(other, 'absent without nested fields', 'a tensor');
    }
    absmax = floats('weight.absmax', blocks, isScale, scaleText);
  } else {
    const absmax8bit = bytesOf(tensor('weight.absmax', 'U8').data).slice();
    if (absmax8bit.length !== blocks) {
      refuse('weight.absmax', `${blocks} values`, String(absmax8bit.length));
    }
    const nestedBlocks = Math.ceil(blocks / nested.blocksize);
    const absmaxCodebook = floats('weight.nested_quant_map', 256, Number.isFinite, 'finite');
    requireAscending(op, 'weight.nested_quant_map', absmaxCodebook);
    absmax = {
      absmax8bit,
      absmaxCodebook,
      nestedAbsmax: floats('weight.nested_absmax', nestedBlocks, isScale, scaleText),
      offset: nested.offset,
      nestedBlocksize: nested.blocksize,
    };
  }
  return { format, blocksize, dtype, shape, codes, absmax, codebook, quantStorage };
}

/**
 * The state of one layer as bitsandbytes writes it: keys, their order, shapes and bytes. The
 * inverse of
 * {@link parseBitsandbytes}.
 *
 * @param parsed a 4-bit weight; lengths must fit the shape
 * @returns state whose tensors are copies
 * @throws LowrankError `ERR_FORMAT`
 */
export function formatBitsandbytes(parsed: ParsedBitsandbytes): BitsandbytesState {
  const op = 'formatBitsandbytes';
  const { format, blocksize, dtype, shape, codes, absmax, codebook } = parsed;
  const storage = parsed.quantStorage ?? 'U8';
  const perByte = kStoragePerByte[storage];
  if (codes.length % perByte !== 0) {
    fail('ERR_FORMAT', op, 'codes', `a multiple of ${perByte} bytes`, String(codes.length));
  }
  const f32 = (values: Float32Array): RawTensor => ({
    dtype: 'F32',
    shape: [values.length],
    data: values.slice(),
  });
  const nested = isNestedAbsmax(absmax);
  const state: Record<string, RawTensor> = {
    weight: {
      dtype: storage,
      shape: format === 'int8' ? [...shape] : [codes.length / perByte, 1],
      data: codes.slice(),
    },
    'weight.absmax': nested
      ? { dtype: 'U8', shape: [absmax.absmax8bit.length], data: absmax.absmax8bit.slice() }
      : f32(absmax),
    'weight.quant_map': f32(codebook),
  };
  if (nested) {
    state['weight.nested_absmax'] = f32(absmax.nestedAbsmax);
    state['weight.nested_quant_map'] = f32(absmax.absmaxCodebook);
  }
  if (!isBlocksize(blocksize)) {
    fail('ERR_FORMAT', op, 'blocksize', 'a power of two from 32 to 4096', String(blocksize));
  }
  const json = formatQuantState({
    format,
    blocksize,
    dtype,
    shape,
    ...(nested ? { nested: { blocksize: absmax.nestedBlocksize, offset: absmax.offset } } : {}),
  });
  state[kStatePrefix + format] = { dtype: 'U8', shape: [json.length], data: json };
  // Reads the result back: this checks lengths, tables and numbers.
  parseBitsandbytes(state);
  return state;
}

/** A checkpoint's tensors, split into quantised layers and the rest. */
export interface SplitBitsandbytes {
  /** Layer name (without `.weight`; empty for a bare weight) to its 4-bit or Linear8bitLt state. */
  readonly layers: Map<string, BitsandbytesState>;
  /** All other tensors under their full names: biases, norms, embeddings. */
  readonly rest: Map<string, RawTensor>;
}

const kScales = 'SCB';

/** Where the key of a layer's state starts in a tensor's full name. */
function keyAt(name: string): number {
  if (name === kScales || name.endsWith(`.${kScales}`)) return name.length - kScales.length;
  return Math.max(name.lastIndexOf('weight'), 0);
}

/**
 * Finds the quantised layers of a checkpoint: 4-bit ones by their `quant_state` tensors, those of Linear8bitLt
 * by an `SCB` next to an I8 `weight`.
 *
 * @param tensors a whole checkpoint, e.g. from `readSafetensors`
 * @throws `ERR_TYPE`
 * @example
 * const { layers, rest } = splitBitsandbytes(readSafetensors('model.safetensors').tensors);
 */
export function splitBitsandbytes(tensors: ReadonlyMap<string, RawTensor>): SplitBitsandbytes {
  const op = 'splitBitsandbytes';
  checkMap(op, 'tensors', tensors, 'a Map of tensors by name, as readSafetensors(path).tensors is');
  const layers = new Map<string, Record<string, RawTensor>>();
  for (const name of tensors.keys()) {
    checkName(op, 'a tensor name', name);
    const at = name.lastIndexOf(kStatePrefix);
    if (at === 0 || (at > 0 && name[at - 1] === '.')) layers.set(name.slice(0, at), {});
    const prefix = name.slice(0, keyAt(name));
    if (name !== `${prefix}${kScales}`) continue;
    if (tensors.get(`${prefix}weight`)?.dtype === 'I8') layers.set(prefix, {});
  }
  const rest = new Map<string, RawTensor>();
  for (const [name, tensor] of tensors) {
    const at = keyAt(name);
    const key = name.slice(at);
    const layer = layers.get(name.slice(0, at));
    const keys = tensors.has(`${name.slice(0, at)}${kScales}`) ? kRowInt8Keys : kTensorKeys;
    if (layer !== undefined && (keys.includes(key) || key.startsWith(kStatePrefix))) {
      layer[key] = tensor;
    } else {
      rest.set(name, tensor);
    }
  }
  const named = [...layers].map(([prefix, state]) => [prefix.replace(/\.$/, ''), state] as const);
  return { layers: new Map(named), rest };
}

/**
 * The inverse of {@link splitBitsandbytes}: restores the full names.
 * @throws ERR_TYPE
 * @example
 * const split = splitBitsandbytes(readSafetensors('model.safetensors').tensors);
 * writeSafetensors('copy.safetensors', joinBitsandbytes(split));
 */
export function joinBitsandbytes(split: SplitBitsandbytes): Map<string, RawTensor> {
  const op = 'joinBitsandbytes';
  checkObject(op, 'split', split, 'what splitBitsandbytes gives');
  checkMap(op, 'split.rest', split.rest);
  checkMap(op, 'split.layers', split.layers);
  const tensors = new Map(split.rest);
  for (const [layer, state] of split.layers) {
    checkName(op, 'a layer', layer);
    checkObject(op, `state of ${printable(layer)}`, state);
    for (const [key, tensor] of Object.entries(state)) {
      checkObject(op, `${printable(key)} of ${printable(layer)}`, tensor, 'a tensor');
      tensors.set(layer === '' ? key : `${layer}.${key}`, tensor);
    }
  }
  return tensors;
}

function checkState(op: string, key: string, tensor: RawTensor): void {
  try {
    checkRawTensor(op, key, tensor);
  } catch (error) {
    fail('ERR_FORMAT', op, key, 'a tensor whose bytes fit its dtype and shape', String(error));
  }
}

function findQuantState(
  op: string,
  state: BitsandbytesState,
): { format: BitsandbytesFormat; tensor: RawTensor } {
  const keys = Object.keys(state).filter((key) => key.startsWith(kStatePrefix));
  const [key] = keys;
  const [first = '', ...others] = bitsandbytesNames;
  const endings = [`${kStatePrefix}${first}`, ...others.map((name) => `__${name}`)];
  const expected = `exactly one ${anyOf(endings)}`;
  if (key === undefined || keys.length > 1) {
    return fail('ERR_FORMAT', op, 'state', expected, key === undefined ? 'none' : keys.join(', '));
  }
  const format = bitsandbytesNames.find((name) => key === kStatePrefix + name);
  const tensor = state[key];
  if (format === undefined || tensor === undefined) {
    return fail('ERR_FORMAT', op, 'state', expected, printable(key));
  }
  return { format, tensor };
}

/** The packed bytes, in whatever dtype they are stored. */
function packedCodes(
  op: string,
  state: BitsandbytesState,
  bytes: number,
): { codes: Uint8Array; quantStorage: QuantStorage } {
  const weight = Object.hasOwn(state, 'weight') ? state.weight : undefined;
  if (weight === undefined) return fail('ERR_FORMAT', op, 'weight', 'a packed tensor', 'none');
  checkState(op, 'weight', weight);
  const { dtype, data } = weight;
  if (dtype !== 'U8' && dtype !== 'BF16' && dtype !== 'F16' && dtype !== 'F32') {
    return fail('ERR_FORMAT', op, 'weight', 'stored as U8, BF16, F16 or F32', dtype);
  }
  if (data.byteLength !== bytes) {
    fail('ERR_FORMAT', op, 'weight', `${bytes} bytes for its shape`, String(data.byteLength));
  }
  return { codes: bytesOf(data).slice(), quantStorage: dtype };
}

function checkCodebook(op: string, format: BitsandbytesFormat, codebook: Float32Array): void {
  const { bits, signMagnitude } = formatOf(format);
  if (!signMagnitude) {
    requireAscending(op, 'weight.quant_map', codebook, bits === 8);
    return;
  }
  for (let code = 0; code < 8; code++) {
    const positive = codebook[code] as number;
    if (!(positive >= 0) || codebook[code + 8] !== 0 - positive) {
      const got = `${positive} and ${codebook[code + 8]} at ${code}`;
      fail('ERR_FORMAT', op, 'weight.quant_map', 'eight magnitudes, then their negatives', got);
    }
  }
}

/** A table of 256 values may have equal ones: fp8 has two zeros. */
function requireAscending(op: string, key: string, values: Float32Array, mayRepeat = false): void {
  for (let i = 1; i < values.length; i++) {
    const [before, value] = [values[i - 1] as number, values[i] as number];
    if (!(value > before || (mayRepeat && value === before))) {
      fail('ERR_FORMAT', op, key, 'in ascending order', `${values[i]} at ${i}`);
    }
  }
}
