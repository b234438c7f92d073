/** Planar weights on a device: what native/addon/weights/planes.cpp makes of lib/checkpoint/planar. */

import { checkObject } from '../checkpoint/arguments.js';
import { checkPlanarWeight } from '../checkpoint/planar/check.js';
import type { PlanarWeight, ScalePlane } from '../checkpoint/planar/planar-weight.js';
import { type NativeHandle, native, nativeAsync } from '../core/binding.js';
import type { HostArray, RawPlanes } from '../core/binding-weights.js';
import type { Device } from '../core/device.js';
import { fail } from '../core/errors.js';
import { blockwiseOf } from './blockwise-planes.js';
import { type PlanesRecipe, partsOf, planesOf, recipeOf } from './read-planes.js';

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

/** Elements along a row that share a scale; of an ordered grid on average. */
export function groupOf({ columns, grid }: PlanarWeight): number {
  switch (grid.kind) {
    case 'tiles':
      return Math.min(grid.columns, columns);
    case 'flat':
      return grid.span;
    case 'ordered':
      return Math.ceil(columns / grid.groups);
    case 'cyclic':
      return 1;
  }
}

/** Bytes that the planes take on a device. */
function planarBytes(weight: PlanarWeight): number {
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

/** A weight on a device. */
export interface DevicePlanes {
  readonly handle: NativeHandle;
  /** Of codes, scales and tables. */
  readonly byteLength: number;
  /** What reads it back. */
  readonly recipe: PlanesRecipe;
}

/**
 * A planar weight's memory on a device, in the form that its kernels decode fastest. @throws ERR_TYPE, ERR_DTYPE, ERR_SHAPE,
 * ERR_FORMAT, ERR_VALUE (parts that do not fit each other), ERR_OOM
 */
export function planesOnDevice(op: string, weight: PlanarWeight, device: Device): DevicePlanes {
  checkObject(op, 'planes', weight, 'a PlanarWeight');
  checkPlanarWeight(op, weight);
  const { rows, columns } = weight;
  // On the CPU, codes of more than four bits are decoded as fast in planes.
  const blockwise = device === 'cpu' && weight.bits > 4 ? undefined : blockwiseOf(weight);
  if (blockwise === undefined) {
    const recipe = recipeOf(weight, undefined);
    return { handle: planarHandle(op, weight, device), byteLength: planarBytes(weight), recipe };
  }
  const { format, blocksize, ...parts } = blockwise;
  const handle = native(op, (addon) =>
    addon.weightFromParts(device, format, rows, columns, blocksize, 1, parts),
  );
  const { codes, codebook, absmax } = parts;
  const byteLength = codes.length + codebook.byteLength + absmax.byteLength;
  return { handle, byteLength, recipe: recipeOf(weight, blockwise) };
}

function planarHandle(op: string, weight: PlanarWeight, device: Device): NativeHandle {
  const { rows, columns, bits, codes, levels, grid, scale, min, zero } = weight;
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
      break;
    case 'cyclic':
      layout.gridSpan = grid.period;
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

/** The planes of a weight, read back while the thread waits. @throws ERR_COMPUTE, ERR_DEVICE of what is queued before */
export function planesFromDevice(
  op: string,
  handle: NativeHandle,
  recipe: PlanesRecipe,
): PlanarWeight {
  const parts = new Map<string, Uint8Array<ArrayBuffer>>();
  for (const [name, bytes] of partsOf(recipe)) {
    const target = new Uint8Array(bytes);
    native(op, (addon) => addon.readSync(handle, name, target));
    parts.set(name, target);
  }
  return planesOf(recipe, parts);
}

/** The same without waiting. */
export async function readPlanes(
  op: string,
  handle: NativeHandle,
  recipe: PlanesRecipe,
): Promise<PlanarWeight> {
  const parts = [...partsOf(recipe).keys()].map(async (name) => {
    const bytes = await nativeAsync<ArrayBuffer>(op, (addon, done) =>
      addon.read(handle, name, 'f32', done),
    );
    return [name, new Uint8Array(bytes)] as const;
  });
  return planesOf(recipe, new Map(await Promise.all(parts)));
}
