/** Quantises weights to the block types of GGUF. */

import { fail, shown, wrongType } from '../../../core/errors.js';
import { checkObject } from '../../arguments.js';
import { checkGgufShape, GGUF_TYPES } from '../block-types.js';
import {
  type BlockParts,
  type GgufBlockType,
  ggufBlockTypes,
  isBlockType,
  layoutOf,
  writeParts,
} from '../blocks/parts.js';
import type { GgufTensor } from '../gguf.js';
import type { BlockQuantizer } from './block.js';
import { float4Quantizers } from './float4.js';
import { roundingQuantizers } from './of-32.js';
import { searchingQuantizers } from './super-blocks.js';

const kQuantizers: Readonly<Record<GgufBlockType, BlockQuantizer>> = {
  ...roundingQuantizers,
  ...searchingQuantizers,
  ...float4Quantizers,
};

/** Options of {@link quantizeToGguf}. */
export interface QuantizeToGgufOptions {
  /** [K], how much an error in each column weighs; at least 0. Default: all the same. */
  readonly importance?: Float32Array;
}

/** Blocks of this many elements are quantised and written at a time. */
const kChunkElements = 1 << 20;

/**
 * Quantises a weight [..., N, K] to a block type of GGUF.
 *
 * - Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4 and TQ2_0 round plainly and give ggml's bytes.
 * - NVFP4 rounds too, to the best of five scales a group. Scales of groups below 0.1 are coarse, because the type itself has no
 *   scale for the whole tensor.
 * - Q2_K to Q6_K, IQ4_NL and IQ4_XS search for the scales with the least `Σ importance[k] · (w − decoded)²`.
 *
 * With `importance` Q4_0, Q4_1, Q5_0 and Q5_1 search too. Q8_0, MXFP4 and TQ2_0 ignore it. An importance of 0 for a whole
 * group counts as none.
 *
 * @param values row-major, all finite
 * @param shape K must be a multiple of the type's block: 32, NVFP4 64, K-quants, IQ4_XS and TQ2_0 256
 * @returns a tensor for {@link writeGguf}
 * @throws `ERR_TYPE` · LowrankError `ERR_DTYPE` for a type without blocks · `ERR_SHAPE` if values, shape, blocks and importance
 *   do not fit each other · `ERR_NON_FINITE` for a NaN or an infinity · `ERR_VALUE` for a negative importance, or weights whose
 *   scale f16 does not hold
 * @example
 * const tensor = quantizeToGguf(weights, [4096, 4096], 'Q4_K');
 * writeGguf('model.gguf', { metadata, tensors: { 'blk.0.ffn_up.weight': tensor } });
 */
export function quantizeToGguf(
  values: Float32Array,
  shape: readonly number[],
  type: GgufBlockType,
  options: QuantizeToGgufOptions = {},
): GgufTensor {
  const op = 'quantizeToGguf';
  checkArguments(op, values, shape, type, options);
  const { elements, bytes } = GGUF_TYPES[type];
  const columns = shape.at(-1) as number;
  const importance = options.importance && withoutEmptyGroups(options.importance, type);
  const data = new Uint8Array((values.length / elements) * bytes);
  const chunk = Math.max(1, Math.floor(kChunkElements / elements)) * elements;
  for (let from = 0; from < values.length; from += chunk) {
    const part = values.subarray(from, from + chunk);
    const parts = quantizeBlocks(type, part, (at) => {
      const column = (from + at) % columns;
      return importance?.subarray(column, column + elements);
    });
    for (const halves of [parts.scale.halves, parts.min?.halves]) {
      const block = halves?.findIndex((bits) => (bits & 0x7c00) === 0x7c00) ?? -1;
      if (block < 0) continue;
      const place = `values of a block of ${type}`;
      const first = from + block * elements;
      fail(
        'ERR_VALUE',
        op,
        place,
        'small enough for a scale in f16',
        `larger ones from ${first} on`,
      );
    }
    data.set(writeParts(type, parts), (from / elements) * bytes);
  }
  return { type, shape: [...shape], data };
}

function quantizeBlocks(
  type: GgufBlockType,
  values: Float32Array,
  importanceAt: (element: number) => Float32Array | undefined,
): BlockParts {
  const layout = layoutOf(type);
  const { elements } = GGUF_TYPES[type];
  const blocks = values.length / elements;
  const groups = elements / layout.group;
  const codes = new Uint8Array(values.length);
  const integers = new Uint8Array(blocks * groups);
  const minIntegers = new Uint8Array(layout.min === undefined ? 0 : blocks * groups);
  const halves = new Uint16Array(blocks);
  const minHalves = new Uint16Array(blocks);
  const quantizer = kQuantizers[type];
  for (let block = 0; block < blocks; block++) {
    const at = block * elements;
    const group = block * groups;
    quantizer(values.subarray(at, at + elements), importanceAt(at), {
      codes: codes.subarray(at, at + elements),
      scales: integers.subarray(group, group + groups),
      mins: minIntegers.subarray(group, group + groups),
      half: halves.subarray(block, block + 1),
      minHalf: minHalves.subarray(block, block + 1),
    });
  }
  const scale = { integers, halves };
  const min = { integers: minIntegers, halves: minHalves };
  return { codes, scale, ...(layout.min !== undefined && { min }) };
}

/** Groups in which nothing counts have equal importances instead, so that they are quantised at all. */
function withoutEmptyGroups(importance: Float32Array, type: GgufBlockType): Float32Array {
  const { group } = layoutOf(type);
  const result = Float32Array.from(importance);
  for (let from = 0; from < result.length; from += group) {
    const part = result.subarray(from, from + group);
    if (part.every((value) => value === 0)) part.fill(1);
  }
  return result;
}

function checkArguments(
  op: string,
  values: unknown,
  shape: unknown,
  type: unknown,
  options: unknown,
): void {
  if (!(values instanceof Float32Array)) throw wrongType(op, 'values', 'a Float32Array', values);
  if (!Array.isArray(shape)) throw wrongType(op, 'shape', 'an array of integers', shape);
  if (!isBlockType(type)) {
    fail('ERR_DTYPE', op, 'type', `one of ${ggufBlockTypes.join(', ')}`, shown(type));
  }
  checkObject(op, 'options', options);
  checkGgufShape(op, 'shape', type, shape);
  const count = (shape as number[]).reduce((product, dim) => product * dim, 1);
  if (values.length !== count) {
    const expected = `${count} for [${shape.join(', ')}]`;
    fail('ERR_SHAPE', op, 'number of values', expected, `${values.length}`);
  }
  const flaw = values.findIndex((value) => !Number.isFinite(value));
  if (flaw >= 0) fail('ERR_NON_FINITE', op, `values[${flaw}]`, 'finite', `${values[flaw]}`);
  const { importance } = options as QuantizeToGgufOptions;
  if (importance !== undefined) checkImportance(op, importance, shape.at(-1) as number);
}

function checkImportance(op: string, importance: unknown, columns: number): void {
  if (!(importance instanceof Float32Array)) {
    throw wrongType(op, 'importance', 'a Float32Array', importance);
  }
  if (importance.length !== columns) {
    const expected = `${columns} long, one a column`;
    fail('ERR_SHAPE', op, 'importance', expected, `${importance.length}`);
  }
  const flaw = importance.findIndex((value) => !(value >= 0 && Number.isFinite(value)));
  if (flaw < 0) return;
  fail('ERR_VALUE', op, `importance[${flaw}]`, 'finite and at least 0', `${importance[flaw]}`);
}
