/** Planar weights on a device: what native/addon/weights/planes.cpp makes of lib/checkpoint/planar. */

import type { PlanarWeight, PlaneValues, ScalePlane } from '../checkpoint/planar/planar-weight.js';
import { type NativeHandle, native } from '../core/binding.js';
import type { HostArray, RawPlanes } from '../core/binding-weights.js';
import type { Device } from '../core/device.js';
import { fail, wrongType } from '../core/errors.js';
import { checkInteger } from '../core/validate.js';

type Parts = Record<string, HostArray | Int32Array | undefined>;

/** Adds a plane's layout and arrays under its name: `scale`, `scaleOuter`, `scaleTable`. */
function addScale(
  op: string,
  name: 'scale' | 'min',
  plane: ScalePlane,
  layout: Record<string, unknown>,
  parts: Parts,
): void {
  const { values, outer, offset } = plane;
  layout[name] = values.dtype;
  parts[name] = values.data;
  if (values.dtype === 'u8') parts[`${name}Table`] = values.table;
  if (outer !== undefined) {
    if (outer.values.dtype === 'u8') {
      fail('ERR_DTYPE', op, `${name}.outer`, 'f32, bf16 or f16', 'u8');
    }
    layout[`${name}Outer`] = outer.values.dtype;
    layout[`${name}OuterSpan`] = outer.span;
    parts[`${name}Outer`] = outer.values.data;
  }
  if (offset !== undefined) layout[`${name}Offset`] = offset;
}

/** @throws ERR_TYPE unless each plane has an array of its dtype */
function checkValues(op: string, name: string, values: PlaneValues | undefined): void {
  const kinds = { f32: Float32Array, bf16: Uint16Array, f16: Uint16Array, u8: Uint8Array };
  const Kind = kinds[values?.dtype as keyof typeof kinds];
  if (Kind === undefined) {
    throw wrongType(op, `${name}.dtype`, 'f32, bf16, f16 or u8', values?.dtype);
  }
  if (!(values?.data instanceof Kind)) {
    throw wrongType(op, `${name}.data`, `a ${Kind.name} (for ${values?.dtype})`, values?.data);
  }
}

function checkPlane(op: string, name: string, plane: ScalePlane | undefined): void {
  if (plane === null || typeof plane !== 'object') throw wrongType(op, name, 'a plane', plane);
  checkValues(op, name, plane.values);
  if (plane.values.dtype === 'u8' && !(plane.values.table instanceof Float32Array)) {
    throw wrongType(op, `${name}.table`, 'a Float32Array', plane.values.table);
  }
  if (plane.outer !== undefined) checkValues(op, `${name}.outer`, plane.outer.values);
}

/** Elements along a row that share a scale; of an ordered grid on average. */
export function groupOf({ columns, grid }: PlanarWeight): number {
  switch (grid.kind) {
    case 'tiles':
      return Math.min(grid.columns, columns);
    case 'flat':
      return grid.span;
    case 'ordered':
      return Math.ceil(columns / grid.groups);
  }
}

/** Bytes that the planes take on a device. */
export function planarBytes(weight: PlanarWeight): number {
  const { rows, columns, bits, scale, min, zero, grid } = weight;
  const sizeOf = ({ values, outer }: ScalePlane) =>
    values.data.byteLength +
    (values.dtype === 'u8' ? values.table.byteLength : 0) +
    (outer?.values.data.byteLength ?? 0);
  return (
    rows * Math.ceil((columns * bits) / 8) +
    (bits <= 4 ? 16 : 256) * 4 +
    sizeOf(scale) +
    (min === undefined ? 0 : sizeOf(min)) +
    (zero?.data.byteLength ?? 0) +
    (grid.kind === 'ordered' ? grid.group.byteLength : 0)
  );
}

/**
 * A planar weight's memory on a device. @throws ERR_TYPE, ERR_DTYPE, ERR_SHAPE, ERR_FORMAT, ERR_VALUE (a code or a group
 * beyond its bounds), ERR_OOM
 */
export function planarHandle(op: string, weight: PlanarWeight, device: Device): NativeHandle {
  if (weight === null || typeof weight !== 'object') {
    throw wrongType(op, 'planes', 'a PlanarWeight', weight);
  }
  const { codes, levels, grid, scale, min, zero } = weight;
  const rows = checkInteger(op, 'rows', weight.rows, 1, 2 ** 31);
  const columns = checkInteger(op, 'columns', weight.columns, 1, 2 ** 31);
  const bits = checkInteger(op, 'bits', weight.bits, 1, 8);
  if (!(codes instanceof Uint8Array)) throw wrongType(op, 'codes', 'a Uint8Array', codes);
  if (!(levels instanceof Float32Array)) throw wrongType(op, 'levels', 'a Float32Array', levels);
  if (grid === null || typeof grid !== 'object') throw wrongType(op, 'grid', 'an object', grid);
  checkPlane(op, 'scale', scale);
  if (min !== undefined) checkPlane(op, 'min', min);
  if (zero !== undefined && zero.dtype !== 'u8') checkValues(op, 'zero', zero);
  const layout: Record<string, unknown> = { bits, grid: grid.kind, gridRows: 1, gridSpan: 1 };
  layout.gridPitch = 0;
  const parts: Parts = { codes, levels };
  switch (grid.kind) {
    case 'tiles':
      Object.assign(layout, { gridRows: grid.rows, gridSpan: grid.columns });
      break;
    case 'flat':
      layout.gridSpan = grid.span;
      break;
    case 'ordered':
      layout.gridPitch = grid.groups;
      parts.group = grid.group;
  }
  addScale(op, 'scale', scale, layout, parts);
  if (min !== undefined) addScale(op, 'min', min, layout, parts);
  if (zero !== undefined) {
    layout.zero = zero.dtype;
    parts.zero = zero.data;
  }
  const raw = layout as unknown as RawPlanes;
  return native(op, (addon) => addon.weightFromPlanes(device, rows, columns, raw, parts));
}
