import { type RawDType, rawToFloat32 } from '../raw-tensor.js';
import { checkPlanarWeight } from './check.js';
import type { PlanarWeight, PlaneValues, ScalePlane, ZeroPlane } from './planar-weight.js';

const kRawDTypes: Readonly<Record<'f32' | 'f16' | 'bf16', RawDType>> = {
  f32: 'F32',
  f16: 'F16',
  bf16: 'BF16',
};

/** The numbers of a plane in f32. */
export function numbersOf(plane: PlaneValues | ZeroPlane): Float32Array {
  if (plane.dtype !== 'u8') {
    const { dtype, data } = plane;
    return rawToFloat32({ dtype: kRawDTypes[dtype], shape: [data.length], data });
  }
  if (!('table' in plane)) return Float32Array.from(plane.data);
  const values = new Float32Array(plane.data.length);
  for (let i = 0; i < values.length; i++) {
    values[i] = plane.table[plane.data[i] as number] as number;
  }
  return values;
}

/** The values of a plane's entries, each operation rounded to f32. */
export function entryValues({ values, outer, offset }: ScalePlane): Float32Array {
  const own = numbersOf(values);
  if (outer !== undefined) {
    const factors = numbersOf(outer.values);
    for (let i = 0; i < own.length; i++) {
      own[i] = (own[i] as number) * (factors[Math.floor(i / outer.span)] as number);
    }
  }
  if (offset !== undefined) {
    const added = Math.fround(offset);
    for (let i = 0; i < own.length; i++) own[i] = (own[i] as number) + added;
  }
  return own;
}

/** Calls `visit` with every run of elements of one entry, in ascending order. */
export function visitEntries(
  { rows, columns, grid }: Pick<PlanarWeight, 'rows' | 'columns' | 'grid'>,
  visit: (from: number, to: number, entry: number) => void,
): void {
  const elements = rows * columns;
  switch (grid.kind) {
    case 'tiles': {
      const pitch = Math.ceil(columns / grid.columns);
      for (let n = 0; n < rows; n++) {
        const row = n * columns;
        let entry = Math.floor(n / grid.rows) * pitch;
        for (let k = 0; k < columns; k += grid.columns) {
          visit(row + k, row + Math.min(k + grid.columns, columns), entry++);
        }
      }
      return;
    }
    case 'flat':
      for (let i = 0; i < elements; i += grid.span) {
        visit(i, Math.min(i + grid.span, elements), i / grid.span);
      }
      return;
    case 'cyclic':
      for (let i = 0; i < elements; i++) visit(i, i + 1, i % grid.period);
      return;
    case 'ordered':
      for (let i = 0; i < elements; i++) {
        const k = i % columns;
        const n = (i - k) / columns;
        visit(i, i + 1, n * grid.groups + (grid.group[k] as number));
      }
  }
}

/** The values of a weight that {@link checkPlanarWeight} has passed. */
export function decodePlanar(weight: PlanarWeight): Float32Array<ArrayBuffer> {
  const { codes, levels } = weight;
  const result = new Float32Array(weight.rows * weight.columns);
  const scales = entryValues(weight.scale);
  const zeros = weight.zero === undefined ? undefined : numbersOf(weight.zero);
  const mins = weight.min === undefined ? undefined : entryValues(weight.min);
  // A product or difference of two f32 in double, rounded on its way into an f32, is rounded as if at once.
  visitEntries(weight, (from, to, entry) => {
    const scale = scales[entry] as number;
    if (zeros !== undefined) {
      const zero = zeros[entry] as number;
      for (let i = from; i < to; i++) {
        result[i] = Math.fround((levels[codes[i] as number] as number) - zero) * scale;
      }
      return;
    }
    for (let i = from; i < to; i++) result[i] = (levels[codes[i] as number] as number) * scale;
    if (mins === undefined) return;
    const min = mins[entry] as number;
    for (let i = from; i < to; i++) result[i] = (result[i] as number) - min;
  });
  return result;
}

/**
 * The values of a planar weight, each operation rounded to f32:
 *
 *   w[n, k] = levels[c] · s, with zero-points (levels[c] - z) · s, with minima levels[c] · s - m
 *
 * for the code c of (n, k) and the scale s, zero-point z and minimum m of its entry. These are the bits of the library that a
 * layout comes from.
 *
 * @param weight from {@link readQuantizedLayer}
 * @returns [N, K], row by row, in new memory. NaN codes and scales give NaN
 * @throws `ERR_TYPE` · LowrankError `ERR_SHAPE` or `ERR_VALUE` if the parts of the weight do not fit each other
 * @example
 * const { weight } = readQuantizedLayer(layer.tensors, layer.config);
 * const w = Tensor.from(planarToFloat32(weight), [weight.rows, weight.columns]);
 */
export function planarToFloat32(weight: PlanarWeight): Float32Array<ArrayBuffer> {
  checkPlanarWeight('planarToFloat32', weight);
  return decodePlanar(weight);
}
