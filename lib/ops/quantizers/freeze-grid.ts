import { fail, wrongType } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { readOptions } from '../../core/validate.js';
import { QuantizedWeight } from '../../quant/quantized-weight.js';
import { checkGrid, roundToGrid, type UniformGrid } from './uniform-grid.js';

const kGrid = { bits: true, first: true, scale: true, offset: true, zero: true } as const;

/** Zero-points that a kernel subtracts from codes as bytes. */
function bytesOf(op: string, zeros: Float32Array): Uint8Array {
  return Uint8Array.from(zeros, (zero, i) => {
    if (Number.isInteger(zero) && zero >= 0 && zero <= 255) return zero;
    return fail('ERR_VALUE', op, 'zero', 'integers from 0 to 255', `${zero} at ${i}`);
  });
}

/** Positive steps of f32. */
function stepsOf(op: string, scale: Tensor): Float32Array {
  const steps = scale.to({ dtype: 'f32' }).readSync();
  const bad = steps.findIndex((step) => !(step > 0 && Number.isFinite(step)));
  if (bad >= 0) fail('ERR_VALUE', op, 'scale', 'positive and finite', `${steps[bad]} at ${bad}`);
  return steps;
}

/** Finite numbers. */
function finiteOf(op: string, name: string, tensor: Tensor): Float32Array {
  const values = tensor.to({ dtype: 'f32' }).readSync();
  const bad = values.findIndex((value) => !Number.isFinite(value));
  if (bad >= 0) fail('ERR_NON_FINITE', op, name, 'finite', `${values[bad]} at ${bad}`);
  return values;
}

/**
 * The codes of a weight on a grid as a quantised weight, which the fused kernels take: the values of {@link fakeQuantize} for
 * the same tensors, bit for bit without offsets and with offsets to a rounding of f32.
 * @param w [N, K], the weight before rounding
 * @param grid as it was trained. `zero` [N, G], in place of an offset, has integers: then `w ≈ scale · (code − zero)`
 * @returns [N, K] on the device of w, with `bits` bits a weight in memory and groups of K / G
 * @throws ERR_TYPE · ERR_SHAPE · ERR_DEVICE · ERR_DISPOSED · ERR_VALUE for steps that are not positive, or an offset beside
 * zero-points · ERR_NON_FINITE · ERR_OOM
 * @example
 * const w3 = freezeGrid(w, { bits: 3, scale, offset });
 * const y = matmul(x, w3);
 */
export function freezeGrid(
  w: Tensor,
  grid: UniformGrid & { readonly zero?: Tensor },
): QuantizedWeight {
  const op = 'freezeGrid';
  if (grid === null || typeof grid !== 'object') throw wrongType(op, 'grid', 'an object', grid);
  const given = readOptions(op, grid, kGrid) as typeof grid;
  const { zero, offset, scale, bits } = given;
  if (zero !== undefined && offset !== undefined) {
    fail('ERR_VALUE', op, 'grid', 'of an offset or of zero-points', 'both');
  }
  const plain = { ...given, ...(zero === undefined ? {} : { offset: zero }) };
  const { first, shape, groups } = checkGrid(op, w, plain);
  return scope(() => {
    const steps = stepsOf(op, scale);
    finiteOf(op, 'w', w);
    const byte = zero === undefined ? undefined : bytesOf(op, finiteOf(op, 'zero', zero));
    const offsets =
      byte !== undefined
        ? Float32Array.from(byte, (z, i) => -Math.fround(z * (steps[i] as number)))
        : offset === undefined
          ? undefined
          : finiteOf(op, 'offset', offset);
    const shifted =
      offsets === undefined
        ? {}
        : { offset: Tensor.from(offsets, scale.shape, { device: w.device }) };
    const { codes } = roundToGrid(op, w, { ...given, ...shifted });
    const [rows, columns] = shape;
    const data = Uint8Array.from(codes.readSync(), (code) => code - first);
    return QuantizedWeight.fromPlanes(
      {
        rows,
        columns,
        bits,
        codes: data,
        levels: Float32Array.from({ length: 2 ** bits }, (_, i) => first + i),
        grid: { kind: 'tiles', rows: 1, columns: groups[1] },
        scale: { values: { dtype: 'f32', data: steps } },
        ...(byte === undefined ? {} : { zero: { dtype: 'u8', data: byte } as const }),
        ...(byte === undefined && offsets !== undefined
          ? { min: { values: { dtype: 'f32', data: offsets.map((b) => -b) } as const } }
          : {}),
      },
      { device: w.device },
    );
  });
}
