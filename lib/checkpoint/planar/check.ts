/** Checks that the parts of a planar weight fit each other: readers make it, and callers may. */
import { firstFrom } from '../../core/bit-fields.js';
import { fail } from '../../core/errors.js';
import { checkObject } from '../arguments.js';
import {
  entriesOf,
  type Grid,
  type PlanarWeight,
  type PlaneValues,
  type ScalePlane,
  type ZeroPlane,
} from './planar-weight.js';

type Refuse = (operand: string, expected: string, actual: string) => never;

function checkGrid(refuse: Refuse, rows: number, columns: number, grid: Grid): void {
  const positive = (name: string, value: number): void => {
    if (!Number.isSafeInteger(value) || value < 1) {
      refuse(`grid.${name}`, 'a positive integer', String(value));
    }
  };
  switch (grid.kind) {
    case 'tiles':
      positive('rows', grid.rows);
      positive('columns', grid.columns);
      return;
    case 'flat':
      positive('span', grid.span);
      return;
    case 'cyclic':
      positive('period', grid.period);
      if ((rows * columns) % grid.period !== 0) {
        refuse('grid.period', `a divisor of ${rows * columns} elements`, String(grid.period));
      }
      return;
    case 'ordered': {
      positive('groups', grid.groups);
      if (!(grid.group instanceof Int32Array) || grid.group.length !== columns) {
        refuse('grid.group', `an Int32Array of ${columns} columns`, shownLength(grid.group));
      }
      const bad = grid.group.findIndex((group) => group < 0 || group >= grid.groups);
      if (bad >= 0) {
        refuse('grid.group', `groups below ${grid.groups}`, `${grid.group[bad]} at ${bad}`);
      }
      return;
    }
    default:
      refuse('grid.kind', 'tiles, flat, ordered or cyclic', shownLength(grid));
  }
}

const shownLength = (value: unknown): string =>
  ArrayBuffer.isView(value) && 'length' in value
    ? `${value.constructor.name} of ${String(value.length)}`
    : typeof value;

const kArrays = { f32: Float32Array, f16: Uint16Array, bf16: Uint16Array, u8: Uint8Array } as const;

function checkValues(
  refuse: Refuse,
  name: string,
  plane: PlaneValues | ZeroPlane,
  length: number,
): void {
  const View = Object.hasOwn(kArrays, plane.dtype) ? kArrays[plane.dtype] : undefined;
  if (View === undefined) {
    refuse(`${name}.dtype`, 'f32, f16, bf16 or u8', String(plane.dtype));
  }
  if (!(plane.data instanceof View) || plane.data.length !== length) {
    refuse(`${name}.data`, `a ${View.name} of ${length} entries`, shownLength(plane.data));
  }
  if ('table' in plane && !(plane.table instanceof Float32Array && plane.table.length === 256)) {
    refuse(`${name}.table`, 'a Float32Array of 256 values', shownLength(plane.table));
  }
}

function checkPlane(
  op: string,
  refuse: Refuse,
  name: string,
  plane: ScalePlane,
  entries: number,
): void {
  checkObject(op, name, plane);
  checkObject(op, `${name}.values`, plane.values);
  checkValues(refuse, `${name}.values`, plane.values, entries);
  if (plane.values.dtype === 'u8' && !('table' in plane.values)) {
    refuse(`${name}.values.table`, 'a Float32Array of 256 values', 'none');
  }
  if (plane.outer === undefined) return;
  checkObject(op, `${name}.outer`, plane.outer);
  const { values, span } = plane.outer;
  checkObject(op, `${name}.outer.values`, values);
  if (!Number.isSafeInteger(span) || span < 1) {
    refuse(`${name}.outer.span`, 'a positive integer', String(span));
  }
  checkValues(refuse, `${name}.outer.values`, values, Math.ceil(entries / span));
}

/**
 * Checks that the parts of a weight fit each other.
 * @throws ERR_TYPE · LowrankError `ERR_SHAPE`, `ERR_VALUE`
 */
export function checkPlanarWeight(op: string, weight: PlanarWeight): void {
  checkObject(op, 'weight', weight, 'a planar weight');
  checkObject(op, 'weight.grid', weight.grid);
  const refuse: Refuse = (operand, expected, actual) =>
    fail('ERR_SHAPE', op, operand, expected, actual);
  const { rows, columns, bits, codes, levels, grid, scale, zero, min } = weight;
  for (const [name, value] of Object.entries({ rows, columns })) {
    if (!Number.isSafeInteger(value) || value < 1) {
      refuse(name, 'a positive integer', String(value));
    }
  }
  if (!Number.isInteger(bits) || bits < 1 || bits > 8) refuse('bits', '1 to 8', String(bits));
  if (!(codes instanceof Uint8Array) || codes.length !== rows * columns) {
    refuse('codes', `a Uint8Array of ${rows * columns} codes`, shownLength(codes));
  }
  if (!(levels instanceof Float32Array) || levels.length !== 2 ** bits) {
    refuse('levels', `a Float32Array of ${2 ** bits} levels for ${bits} bits`, shownLength(levels));
  }
  const bad = bits === 8 ? -1 : firstFrom(codes, 2 ** bits);
  if (bad >= 0) {
    fail(
      'ERR_VALUE',
      op,
      'codes',
      `below ${2 ** bits} for ${bits} bits`,
      `${codes[bad]} at ${bad}`,
    );
  }
  checkGrid(refuse, rows, columns, grid);
  const entries = entriesOf(weight);
  checkPlane(op, refuse, 'scale', scale, entries);
  if (zero !== undefined && min !== undefined) refuse('zero', 'absent beside min', 'both');
  if (zero !== undefined) {
    checkObject(op, 'zero', zero);
    checkValues(refuse, 'zero', zero, entries);
  }
  if (min !== undefined) checkPlane(op, refuse, 'min', min, entries);
}
