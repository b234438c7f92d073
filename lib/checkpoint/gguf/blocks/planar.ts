/** Quantised tensors of GGUF as planar weights, and back byte for byte. */

import { fail, wrongType } from '../../../core/errors.js';
import { checkObject } from '../../arguments.js';
import { checkPlanarWeight } from '../../planar/check.js';
import type { PlanarWeight, PlaneValues, ScalePlane } from '../../planar/planar-weight.js';
import { bytesOf, rawToFloat32 } from '../../raw-tensor.js';
import { checkGgufShape, GGUF_TYPES } from '../block-types.js';
import type { GgufTensor } from '../gguf.js';
import type { BlockIntegers, BlockPlane } from './layout.js';
import {
  type GgufBlockType,
  ggufBlockTypes,
  isBlockType,
  layoutOf,
  type PlaneParts,
  readParts,
  writeParts,
} from './parts.js';

type OuterPlane = NonNullable<ScalePlane['outer']>;

/**
 * A quantised tensor, with the factor that NVFP4 keeps in a tensor of its own, `NAME.scale`.
 */
export interface GgufWeight {
  readonly tensor: GgufTensor;
  /** F32, one number, or one for each expert: equal shares of the rows. */
  readonly scale?: GgufTensor;
}

/**
 * A quantised tensor of GGUF as a planar weight; `planarToFloat32` gives its values, with the bits of ggml. All dimensions but the last are rows. The planes hold the integers and the f16 bits of
 * the file:
 *
 * - `w = levels[c] · d` (Q4_0, Q5_0, Q8_0, IQ4_NL, TQ2_0), less a minimum of flipped sign (Q4_1, Q5_1);
 * - `w = levels[c] · (d · sc)`, less `dmin · m` (Q2_K, Q4_K, Q5_K), or alone (Q3_K, Q6_K, IQ4_XS);
 * - `w = levels[c] · table[byte]` (MXFP4), or `levels[c] · (table[byte] · scale)` (NVFP4).
 *
 * @param scale the tensor `NAME.scale` beside an NVFP4 tensor
 * @returns [N, K] where N is the product of all dimensions but the last
 * @throws `ERR_TYPE` · LowrankError `ERR_DTYPE` if the tensor's type has no blocks, or the scale is not F32 beside NVFP4 · `ERR_SHAPE` if
 *   bytes and shape do not fit each other, or the scales do not divide the rows
 * @example
 * const weight = ggufToPlanar(openGguf('model.gguf').read('blk.0.attn_q.weight'));
 * const w = Tensor.from(planarToFloat32(weight), [weight.rows, weight.columns]);
 */
export function ggufToPlanar(tensor: GgufTensor, scale?: GgufTensor): PlanarWeight {
  const op = 'ggufToPlanar';
  checkTensor(op, 'tensor', tensor);
  if (scale !== undefined) checkTensor(op, 'scale', scale);
  const { type, shape, data } = tensor;
  if (!isBlockType(type)) {
    return fail('ERR_DTYPE', op, 'tensor', `of ${ggufBlockTypes.join(', ')}`, String(type));
  }
  const columns = shape.at(-1) ?? 1;
  const length_bytes = checkGgufShape(op, 'tensor', type, shape);
  if (data.length !== length_bytes) {
    const expected = `${length_bytes} bytes for ${type}[${shape.join(', ')}]`;
    fail('ERR_SHAPE', op, 'tensor', expected, `${data.length} bytes`);
  }
  const { group, bits, codes, ...planes } = layoutOf(type);
  const { elements } = GGUF_TYPES[type];
  const parts = readParts(type, data);
  const rows = parts.codes.length / columns;
  const groups = elements / group;
  const factors = scale && factorsOf(op, type, scale, (rows * columns) / group, rows);
  return {
    rows,
    columns,
    bits,
    codes: parts.codes,
    levels: codes.table,
    grid: { kind: 'tiles', rows: 1, columns: group },
    scale: { ...planeOf(planes.scale, parts.scale, groups), ...(factors && { outer: factors }) },
    ...(planes.min && parts.min && { min: planeOf(planes.min, parts.min, groups) }),
  };
}

/** Checks the JavaScript types of a tensor. @throws ERR_TYPE */
function checkTensor(op: string, operand: string, tensor: unknown): void {
  checkObject(op, operand, tensor, 'a tensor of type, shape and data');
  const { shape, data } = tensor as GgufTensor;
  if (!Array.isArray(shape)) throw wrongType(op, `${operand}.shape`, 'an array of integers', shape);
  if (!((data as unknown) instanceof Uint8Array)) {
    throw wrongType(op, `${operand}.data`, 'a Uint8Array', data);
  }
}

/** A plane from what blocks hold; a plane has integers, an f16, or both. */
function planeOf(plane: BlockPlane, { integers, halves }: PlaneParts, span: number): ScalePlane {
  const f16 = halves && {
    dtype: 'f16' as const,
    data: plane.added === true ? negated(halves) : halves,
  };
  if (plane.integers === undefined || integers === undefined) return { values: f16 as PlaneValues };
  const values = { dtype: 'u8' as const, data: integers, table: tableOf(plane.integers) };
  return f16 === undefined ? { values } : { values, outer: { values: f16, span } };
}

const kTables = new WeakMap<BlockIntegers, Float32Array>();

/** The values of a type's integers as a table for every byte; those that the type does not have are 0. */
function tableOf(integers: BlockIntegers): Float32Array {
  const known = kTables.get(integers);
  if (known !== undefined) return known;
  const table = new Float32Array(256);
  table.set(integers.table);
  kTables.set(integers, table);
  return table;
}

/** The same numbers with the other sign, NaN and zeros too. */
const negated = (halves: Uint16Array): Uint16Array => halves.map((bits) => bits ^ 0x8000);

function factorsOf(
  op: string,
  type: GgufBlockType,
  scale: GgufTensor,
  entries: number,
  rows: number,
): OuterPlane {
  if (type !== 'NVFP4') fail('ERR_DTYPE', op, 'tensor', 'NVFP4 beside a scale', type);
  if (scale.type !== 'F32') fail('ERR_DTYPE', op, 'scale', 'F32', scale.type);
  const data = rawToFloat32({ dtype: 'F32', shape: scale.shape, data: scale.data });
  if (data.length === 0 || rows % data.length !== 0) {
    fail('ERR_SHAPE', op, 'scale', `one number, or a divisor of ${rows} rows`, `${data.length}`);
  }
  return { values: { dtype: 'f32', data }, span: entries / data.length };
}

/**
 * The blocks of a planar weight; the other way of {@link ggufToPlanar}, byte for byte.
 *
 * @returns a tensor [N, K]; with NVFP4 also its second scale, where the weight has one
 * @throws `ERR_TYPE` · LowrankError `ERR_DTYPE` for a type without blocks · `ERR_FORMAT` if the type cannot hold the weight without
 *   a change of its values · `ERR_SHAPE`, `ERR_VALUE` if its parts do not fit each other
 * @example
 * const { tensor } = planarToGguf(ggufToPlanar(file.read('blk.0.attn_q.weight')), 'Q4_K');
 */
export function planarToGguf(weight: PlanarWeight, type: GgufBlockType): GgufWeight {
  const op = 'planarToGguf';
  if (!isBlockType(type)) {
    return fail('ERR_DTYPE', op, 'type', `one of ${ggufBlockTypes.join(', ')}`, String(type));
  }
  checkPlanarWeight(op, weight);
  checkGgufShape(op, 'weight', type, [weight.rows, weight.columns]);
  const count = weight.rows * weight.columns;
  checkCodes(op, type, weight);
  const layout = layoutOf(type);
  const factors = type === 'NVFP4' ? weight.scale.outer : undefined;
  const scale = partsOf(op, type, 'scale', weight.scale, layout.scale, count);
  const min = weight.min && layout.min && partsOf(op, type, 'min', weight.min, layout.min, count);
  const data = writeParts(type, { codes: weight.codes, scale, ...(min && { min }) });
  const tensor: GgufTensor = { type, shape: [weight.rows, weight.columns], data };
  if (factors === undefined) return { tensor };
  return { tensor, scale: factorTensor(op, factors, count / layout.group) };
}

/** Requires the codes, levels and planes of a type. @throws ERR_FORMAT */
function checkCodes(op: string, type: GgufBlockType, weight: PlanarWeight): void {
  const { group, bits, codes, min } = layoutOf(type);
  const refuse = (operand: string, expected: string, got: string): never =>
    fail('ERR_FORMAT', op, operand, `${expected} for ${type}`, got);
  const { grid } = weight;
  if (grid.kind !== 'tiles' || grid.rows !== 1 || grid.columns !== group) {
    const tiles = grid.kind === 'tiles' ? `${grid.rows} x ${grid.columns} tiles` : grid.kind;
    refuse('grid', `groups of ${group} in a row`, tiles);
  }
  if (weight.bits !== bits || !same(weight.levels, codes.table)) {
    refuse('levels', `those of ${bits} bits`, `other levels of ${weight.bits} bits`);
  }
  if (weight.zero !== undefined) refuse('zero', 'absent', 'a plane of zero-points');
  if ((weight.min === undefined) === (min === undefined)) return;
  refuse('min', min ? 'a plane' : 'absent', weight.min ? 'a plane' : 'none');
}

/** What a type stores of a plane. @throws ERR_FORMAT if it stores another one */
function partsOf(
  op: string,
  type: GgufBlockType,
  operand: string,
  plane: ScalePlane,
  { integers, half, added }: BlockPlane,
  count: number,
): PlaneParts {
  const { elements } = GGUF_TYPES[type];
  const { group } = layoutOf(type);
  const [blocks, groups] = [count / elements, count / group];
  const { values, outer, offset } = plane;
  const parts: { integers?: Uint8Array; halves?: Uint16Array } = {};
  if (integers !== undefined && values.dtype === 'u8' && values.data.length === groups) {
    const known = values.data.every((value) => value < integers.table.length);
    if (known && same(values.table, tableOf(integers))) parts.integers = values.data;
  }
  const f16 = integers === undefined ? values : outer?.values;
  if (half !== undefined && f16?.dtype === 'f16' && f16.data.length === blocks) {
    parts.halves = added === true ? negated(f16.data) : f16.data;
  }
  // NVFP4 keeps its outer factor beside the blocks.
  const spans = integers !== undefined && half !== undefined ? elements / group : undefined;
  const placed = type === 'NVFP4' || outer?.span === spans;
  const whole =
    (integers === undefined) === (parts.integers === undefined) &&
    (half === undefined) === (parts.halves === undefined);
  if (whole && placed && offset === undefined) return parts;
  const stored = [
    ...(integers === undefined ? [] : [`integers of ${groups} groups`]),
    ...(half === undefined ? [] : [`f16 of ${blocks} blocks`]),
  ];
  const got = `${values.data.length} of ${values.dtype}`;
  const factors = outer && ` times ${outer.values.data.length} of ${outer.values.dtype}`;
  const expected = `${stored.join(' times ')} for ${type}`;
  return fail('ERR_FORMAT', op, operand, expected, `${got}${factors ?? ''}`);
}

function factorTensor(op: string, { values, span }: OuterPlane, groups: number): GgufTensor {
  if (values.dtype !== 'f32' || span * values.data.length !== groups) {
    const got = `${values.data.length} of ${values.dtype}`;
    return fail('ERR_FORMAT', op, 'scale.outer', `f32 that ${groups} groups share evenly`, got);
  }
  return { type: 'F32', shape: [values.data.length], data: bytesOf(values.data).slice() };
}

/** Bit for bit but for the payload of a NaN. */
const same = (a: Float32Array, b: Float32Array): boolean =>
  a.length === b.length && a.every((value, i) => Object.is(value, b[i]));
