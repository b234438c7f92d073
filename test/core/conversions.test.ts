// bf16 and f16 exhaustively: every pattern decoded and encoded, every rounding tie and its neighbours.
import { describe, expect, it } from 'vitest';
import { scope, Tensor } from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { decodeBits, encodeBits, exact, roundTo } from '../oracle.js';

const PATTERNS = Uint16Array.from({ length: 0x10000 }, (_, i) => i);
const CASES = DEVICES.flatMap((device) =>
  (['bf16', 'f16'] as const).map((dtype) => ({ device, dtype })),
);
/** Bits of the fraction. */
const FRACTION = { bf16: 7, f16: 10 } as const;

const f32Bits = (values: Float32Array): Uint32Array => new Uint32Array(values.buffer);
const fromF32Bits = (bits: number): number =>
  new Float32Array(Uint32Array.of(bits).buffer)[0] as number;

describe.each(CASES)('$dtype on $device', ({ device, dtype }) => {
  const isNaNPattern = (bits: number): boolean => Number.isNaN(decodeBits(dtype, bits));

  it('all 65,536 patterns decode exactly and come back', async () => {
    await scope(async () => {
      const t = Tensor.from(PATTERNS, [256, 256], { dtype, device });
      const values = await t.read();
      const expected = Float64Array.from(PATTERNS, (bits) => decodeBits(dtype, bits));
      exact('decoded', values, expected);
      exact('kept', await t.readBits(), PATTERNS);
      exact('cast to f32', await t.to({ dtype: 'f32' }).read(), expected);
      // f32 and back: NaN stays a NaN of the same sign, everything else is the same pattern.
      const back = await t.to({ dtype: 'f32' }).to({ dtype }).readBits();
      back.forEach((bits, i) => {
        if (!isNaNPattern(i)) expect(bits).toBe(i);
        else expect([isNaNPattern(bits), bits >> 15]).toEqual([true, i >> 15]);
      });
      // Values in through JavaScript numbers.
      const again = await Tensor.from(expected, [65536], { dtype, device }).readBits();
      again.forEach((bits, i) => {
        if (isNaNPattern(i)) expect(isNaNPattern(bits)).toBe(true);
        else expect(bits).toBe(i);
      });
    });
  });

  it('every tie goes to the even neighbour, everything beside it to the nearer', async () => {
    await scope(async () => {
      const inputs: number[] = [];
      for (let bits = 0; bits < 0x8000; bits++) {
        const low = decodeBits(dtype, bits);
        const high = decodeBits(dtype, bits + 1);
        if (!Number.isFinite(low)) break;
        // Past the largest finite value the next step is where infinity would be.
        const step = Number.isFinite(high) ? high - low : low - decodeBits(dtype, bits - 1);
        const middle = low + step / 2;
        const below = fromF32Bits((f32Bits(Float32Array.of(middle))[0] as number) - 1);
        const above = fromF32Bits((f32Bits(Float32Array.of(middle))[0] as number) + 1);
        for (const value of [middle, below, above, low + step / 4]) inputs.push(value, -value);
      }
      const values = Float32Array.from(inputs);
      const expected = Uint16Array.from(values, (value) => encodeBits(dtype, value));
      const direct = Tensor.from(values, [values.length], { dtype, device });
      exact('from f32', await direct.readBits(), expected);
      const cast = Tensor.from(values, [values.length], { device }).to({ dtype });
      exact('cast', await cast.readBits(), expected);
      exact(
        'values',
        await cast.read(),
        Float64Array.from(values, (v) => roundTo(dtype, v)),
      );
    });
  });

  it('doubles are rounded once, not by way of f32', async () => {
    await scope(async () => {
      // Just above a tie by less than f32 can hold: f32 first would make a tie of it.
      const inputs: number[] = [];
      for (let bits = 0x0400; bits < 0x7000; bits += 37) {
        const low = decodeBits(dtype, bits);
        const middle = low + (decodeBits(dtype, bits + 1) - low) / 2;
        inputs.push(middle * (1 + 2 ** -40), middle * (1 - 2 ** -40), -middle * (1 + 2 ** -50));
      }
      const expected = Uint16Array.from(inputs, (value) => encodeBits(dtype, value));
      const t = Tensor.from(inputs, [inputs.length], { dtype, device });
      exact('bits', await t.readBits(), expected);
      const viaF32 = inputs.filter((v, i) => encodeBits(dtype, Math.fround(v)) !== expected[i]);
      expect(viaF32.length).toBeGreaterThan(100);
    });
  });

  it('denormals, overflow, signed zeros, NaN payloads', async () => {
    await scope(async () => {
      const smallest = decodeBits(dtype, 1);
      const largest = decodeBits(dtype, 0x7fff - 2 ** FRACTION[dtype]);
      const cases: readonly (readonly [number, number])[] = [
        [smallest, 1],
        [smallest / 2, 0],
        [smallest * 0.51, 1],
        [-smallest / 2, 0x8000],
        [smallest * 1.5, 2],
        [smallest * 2.5, 2],
        [largest, 0x7fff - 2 ** FRACTION[dtype]],
        [largest * (1 + 2 ** -12), encodeBits(dtype, largest * (1 + 2 ** -12))],
        [3.4028234e38, 0x8000 - 2 ** FRACTION[dtype]],
        [-3.4028234e38, 0x10000 - 2 ** FRACTION[dtype]],
        [0, 0],
        [-0, 0x8000],
        [Number.POSITIVE_INFINITY, 0x8000 - 2 ** FRACTION[dtype]],
      ];
      const data = Float32Array.from(cases, ([value]) => value);
      const bits = await Tensor.from(data, [data.length], { dtype, device }).readBits();
      exact(
        'bits',
        bits,
        cases.map(([, pattern]) => pattern),
      );
      // Quiet and signalling NaNs of both signs, with payloads only in the bits that are cut off.
      const nans = Uint32Array.of(0x7fc00000, 0x7f800001, 0xff800001, 0xffffffff, 0x7f80ffff);
      const t = Tensor.from(new Float32Array(nans.buffer), [5], { dtype, device });
      const narrow = await t.readBits();
      narrow.forEach((pattern, i) => {
        expect(isNaNPattern(pattern), nans[i]?.toString(16)).toBe(true);
        expect(pattern >> 15).toBe((nans[i] as number) >>> 31);
      });
    });
  });
});

describe.each(DEVICES)('f32 on %s', (device) => {
  it('keeps every bit', async () => {
    const bits = Uint32Array.from({ length: 4096 }, (_, i) => Math.imul(i, 0x9e3779b1) >>> 0);
    const values = new Float32Array(bits.buffer);
    using t = Tensor.from(values, [4096], { device });
    exact('bits', f32Bits(await t.read()), bits);
    exact('cast', f32Bits(await t.to({ dtype: 'f32' }).read()), bits);
  });
});
