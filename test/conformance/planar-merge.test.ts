// Planar weights read back, and merged: each value gets the nearest code of its group, and scales stay where they reach.
import { describe, expect, it } from 'vitest';
import {
  adapters,
  type Device,
  dequantize,
  LoraAdapter,
  mergeLora,
  type PlanarWeight,
  planarToFloat32,
  QuantizedWeight,
  quantize,
  quantizePlanar,
  scope,
  Tensor,
  unmergeLora,
} from '../../lib/index.js';
import { exact, type Matrix, times } from '../oracle.js';
import { DEVICES, operand } from './operands.js';
import { entryOf, PLANAR_SPECS, planarCase } from './planar-cases.js';

const [N, K, R] = [48, 96, 4];

/** What a checkpoint holds of the formats: plain rounding of one weight. */
const FORMATS = ['fp8-e4m3', 'mxfp8-e5m2', 'mxfp6-e2m3', 'mxfp4', 'nvfp4', 'int4', 'int8'] as const;

function quantised(format: (typeof FORMATS)[number], w: Matrix): PlanarWeight {
  const raw = { dtype: 'F32', shape: [N, K], data: Float32Array.from(w.data) } as const;
  return quantizePlanar(raw, { format, ...(format.startsWith('int') ? { groupSize: 32 } : {}) });
}

/** Every value that a group of the weight can hold, by its definition, in f64. */
function valuesOf({ levels, grid, ...planes }: PlanarWeight): (i: number) => Float64Array {
  const codes = levels.length;
  const entry = entryOf(grid, K);
  const tables = new Map<number, Float64Array>();
  return (i) => {
    const at = entry(Math.floor(i / K), i % K);
    const known = tables.get(at);
    if (known !== undefined) return known;
    // One column for each code, all of the element's entry.
    const decoded = planarToFloat32({
      ...planes,
      levels,
      rows: codes,
      columns: 1,
      codes: Uint8Array.from({ length: codes }, (_, code) => code),
      grid: { kind: 'tiles', rows: codes, columns: 1 },
      ...onlyEntry(planes, at),
    });
    const table = Float64Array.from(decoded).filter(Number.isFinite);
    tables.set(at, table);
    return table;
  };
}

type Planes = Pick<PlanarWeight, 'scale' | 'zero' | 'min'>;

function onlyEntry({ scale, zero, min }: Planes, at: number): Planes {
  const pick = <T extends { readonly data: ArrayLike<number> }>(plane: T, i = at): T => {
    const { data } = plane as unknown as { data: Float32Array };
    return { ...plane, data: data.slice(i, i + 1) };
  };
  const scaleOf = (plane: Planes['scale']): Planes['scale'] => ({
    ...plane,
    values: pick(plane.values),
    ...(plane.outer === undefined
      ? {}
      : {
          outer: { values: pick(plane.outer.values, Math.floor(at / plane.outer.span)), span: 1 },
        }),
  });
  return {
    scale: scaleOf(scale),
    ...(zero === undefined ? {} : { zero: pick(zero) }),
    ...(min === undefined ? {} : { min: scaleOf(min) }),
  };
}

/** W + scaling · B · A in f64. */
function sum64(w: ArrayLike<number>, a: Matrix, b: Matrix, scaling: number): Float64Array {
  const delta = times(b, a);
  return Float64Array.from(w, (value, i) => value + scaling * (delta.data[i] as number));
}

function adapterOf(device: Device, std: number) {
  const a = operand(R, K, { seed: 5, device, std: 0.3 });
  const b = operand(N, R, { seed: 6, device, std });
  const parts = { loraA: a.tensor, loraB: b.tensor, scaling: 0.5 };
  return { parts, a: a.matrix, b: b.matrix };
}

const drawn = (seed: number) => operand(N, K, { seed, device: 'reference', std: 0.5 }).matrix;

describe.each(DEVICES)('%s', (device) => {
  it.each(PLANAR_SPECS)('$name is read back as it was', async (spec) => {
    const { planes } = planarCase(spec, 24, 96, 3);
    using w = QuantizedWeight.fromPlanes(planes, { device });
    const back = await w.toPlanes();
    expect(back).toEqual(planes);
    expect(Object.keys(back).sort()).toEqual(Object.keys(planes).sort());
    using moved = w.to({ device: 'reference' });
    expect(await moved.toPlanes()).toEqual(planes);
  });

  it('tiles of whole blocks, in each dtype of scales, are read back as they were', async () => {
    for (const dtype of ['F32', 'BF16', 'F16'] as const) {
      const data = dtype === 'F32' ? new Float32Array(N * K) : new Uint16Array(N * K);
      // Bits of numbers of every size, without infinities.
      for (let i = 0; i < data.length; i++) data[i] = dtype === 'F32' ? i + 1 : (i * 37) % 0x7800;
      const strategy = { strategy: 'block', blockSize: [8, 32] } as const;
      const raw = { dtype, shape: [N, K], data };
      const planes = quantizePlanar(raw, { format: 'fp8-e4m3', ...strategy });
      using w = QuantizedWeight.fromPlanes(planes, { device });
      expect(await w.toPlanes()).toEqual(planes);
    }
  });

  it('merges by probes too', () => {
    scope(() => {
      const w = QuantizedWeight.fromPlanes(quantised('mxfp4', drawn(1)), { device });
      const adapter = adapters.ia3.create({ inFeatures: K, outFeatures: N, device });
      adapter.parameters.scale?.write(new Float32Array(N).fill(2));
      // A power of two moves no code, or doubles a scale.
      const merged = adapter.merge(w).weight as QuantizedWeight;
      const [after, before] = [merged, w].map((each) =>
        dequantize(each, { dtype: 'f32' }).readSync(),
      );
      const off = Math.max(
        ...Array.from(after as Float32Array, (v, i) => {
          return Math.abs(v - 2 * ((before as Float32Array)[i] as number));
        }),
      );
      expect(off).toBeLessThan(0.3);
      expect(merged.format).toBe('planar');
    });
  });

  it.each(FORMATS)('%s merges to the nearest values of its groups', async (format) => {
    const planes = quantised(format, drawn(1));
    const before = planarToFloat32(planes);
    using w = QuantizedWeight.fromPlanes(planes, { device });
    const { parts, a, b } = adapterOf(device, 0.05);
    const { weight, lost } = mergeLora(w, parts);
    const after = await weight.toPlanes();
    const decoded = planarToFloat32(after);
    exact('decoded', dequantize(weight, { dtype: 'f32' }).readSync(), decoded);
    const wanted = sum64(before, a, b, 0.5);
    const near = valuesOf(after);
    let [error, update, moved] = [0, 0, 0];
    wanted.forEach((value, i) => {
      const off = Math.abs((decoded[i] as number) - value);
      const best = near(i).reduce((least, each) => Math.min(least, Math.abs(each - value)), 1e30);
      // The sum is rounded to f32, so that a value at the middle of two codes may take either.
      expect(off, `${i}`).toBeLessThan(best + 4e-6);
      error += off ** 2;
      update += (value - (before[i] as number)) ** 2;
      moved += ((decoded[i] as number) - (before[i] as number)) * (value - (before[i] as number));
    });
    expect(lost.rms / Math.sqrt(error / wanted.length)).toBeCloseTo(1, 4);
    expect(lost.deltaRms / Math.sqrt(update / wanted.length)).toBeCloseTo(1, 4);
    expect(lost.kept).toBeCloseTo(moved / update, 4);
    expect(after.scale.values.dtype).toBe(planes.scale.values.dtype);
    expect(await w.toPlanes()).toEqual(planes);
    weight.dispose();
  });

  it.each(PLANAR_SPECS)('$name keeps its scales where they reach', async (spec) => {
    const { planes, values } = planarCase(spec, N, K, 7);
    using w = QuantizedWeight.fromPlanes(planes, { device });
    const { parts } = adapterOf(device, 0);
    const { weight, lost } = mergeLora(w, parts);
    const after = await weight.toPlanes();
    expect({ ...after, codes: 0 }).toEqual({ ...planes, codes: 0 });
    // The code of 0 stands for -0 too.
    exact(
      'values',
      planarToFloat32(after).map((v) => v + 0),
      values.map((v) => v + 0),
    );
    expect(lost).toEqual({ rms: 0, max: 0, deltaRms: 0, kept: 1 });
    weight.dispose();
  });

  it('merges into a dense weight by an option', () => {
    scope(() => {
      const { parts, a, b } = adapterOf(device, 0.05);
      const w4 = quantize(operand(N, K, { seed: 1, device }).tensor, {
        format: 'nf4',
        blocksize: 32,
      });
      const planar = QuantizedWeight.fromPlanes(quantised('mxfp4', drawn(1)), { device });
      for (const w of [w4, planar]) {
        const before = dequantize(w, { dtype: 'f32' }).readSync();
        for (const dtype of ['bf16', 'f32'] as const) {
          const { weight, lost } = mergeLora(w, parts, { dtype });
          expect(Tensor.is(weight)).toBe(true);
          expect(weight.dtype).toBe(dtype);
          const unit = dtype === 'f32' ? 1e-6 : 2 ** -8;
          sum64(before, a, b, 0.5).forEach((value, i) => {
            const off = Math.abs((weight.readSync()[i] as number) - value);
            expect(off).toBeLessThan(Math.abs(value) * unit + 1e-6);
          });
          expect(lost.kept).toBeCloseTo(1, dtype === 'f32' ? 5 : 2);
        }
      }
      const dense = Tensor.zeros([N, K], { device });
      expect(() => mergeLora(dense as never, parts, { dtype: 'bf16' })).toThrow(
        /dtype must be left out/,
      );
    });
  });

  it('unmerges to what was there, and leaves out what is not finite', () => {
    scope(() => {
      const w = QuantizedWeight.fromPlanes(quantised('int8', drawn(1)), { device });
      const { parts } = adapterOf(device, 0.02);
      const { weight } = unmergeLora(mergeLora(w, parts).weight, parts);
      const [from, to] = [w, weight].map((each) => dequantize(each, { dtype: 'f32' }).readSync());
      (from as Float32Array).forEach((value, i) => {
        expect(Math.abs(value - ((to as Float32Array)[i] as number))).toBeLessThan(0.02);
      });
      const huge = new Float32Array(N * R).fill(3e38);
      const loraB = Tensor.from(huge, [N, R], { device });
      expect(() => mergeLora(w, { ...parts, loraB })).toThrow(
        expect.objectContaining({ code: 'ERR_NON_FINITE' }),
      );
    });
  });

  it('merges an adapter of LoraAdapter as its parts', async () => {
    using w = QuantizedWeight.fromPlanes(quantised('nvfp4', drawn(1)), { device });
    const { parts } = adapterOf(device, 0.05);
    const adapter = new LoraAdapter({ loraA: parts.loraA, loraB: parts.loraB, loraAlpha: R / 2 });
    const [one, other] = [mergeLora(w, adapter), mergeLora(w, parts)];
    expect(await one.weight.toPlanes()).toEqual(await other.weight.toPlanes());
    expect(one.lost).toEqual(other.lost);
  });
});
