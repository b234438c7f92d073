// Rounding to a grid with straight-through gradients, against float64: values, and gradients by finite differences of the
// smoothed formula, in which what rounding added to a code stays as it was.
import { describe, expect, it } from 'vitest';
import {
  dequantize,
  fakeQuantize,
  freezeGrid,
  matmul,
  QuantizedWeight,
  scope,
  Tape,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';

const [N, K, G] = [5, 24, 3];
const B = K / G;

const drawn = (count: number, seed: number, device: Tensor['device']): Float32Array =>
  Tensor.randn([count], { seed, device }).readSync();

/** Groups of different size, with some elements beyond the ends of the codes. */
function layer(device: Tensor['device'], bits: number, first: number) {
  const last = first + 2 ** bits - 1;
  const w = drawn(N * K, 1, device).map((v, i) => v * (1 + (Math.floor(i / B) % 4)));
  const scale = drawn(N * G, 2, device).map((v, g) => {
    const width = 1 + (g % 4);
    return (width * (2.2 + 0.2 * v)) / (last - first);
  });
  const middle = (first + last) / 2;
  const offset = drawn(N * G, 3, device).map((v, g) => 0.1 * v - (scale[g] as number) * middle);
  return { w, scale, offset, dy: drawn(N * K, 4, device), first, last };
}

type Layer = ReturnType<typeof layer>;

const roundEven = (x: number): number => {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
};

/** `scale · (clip(v) + held) + offset`, with `held` what rounding added; null to compute it. */
function smooth(
  { first, last, scale: s0, offset: b0 }: Layer,
  w: number,
  g: number,
  held: number | null,
  { ds = 0, db = 0 } = {},
): { y: number; v: number; code: number; held: number } {
  const s = (s0[g] as number) + ds;
  const b = (b0[g] as number) + db;
  const v = (w - b) / s;
  const clipped = Math.min(Math.max(v, first), last);
  const kept = held ?? roundEven(clipped) - clipped;
  return { y: s * (clipped + kept) + b, v, code: clipped + kept, held: kept };
}

function recorded(
  device: Tensor['device'],
  made: Layer,
  bits: number,
  clippedBy: 'value' | 'code',
) {
  const tensor = (data: Float32Array, shape: readonly number[]) =>
    Tensor.from(data, shape, { device });
  const tape = new Tape();
  const w = tape.variable(tensor(made.w, [N, K]));
  const scale = tape.variable(tensor(made.scale, [N, G]));
  const offset = tape.variable(tensor(made.offset, [N, G]));
  const y = fakeQuantize(tape, w, { bits, first: made.first, scale, offset, clippedBy });
  const found = tape.gradients('test', y, tensor(made.dy, [N, K]), [w, scale, offset]);
  const [dw, ds, db] = found.map((each) => (each as Tensor).readSync());
  return { y: y.tensor.readSync(), dw, ds, db } as Record<'y' | 'dw' | 'ds' | 'db', Float32Array>;
}

describe.each(DEVICES)('fakeQuantize on %s', (device) => {
  it.each([
    [1, 0],
    [2, -2],
    [3, -4],
    [4, 0],
    [8, -128],
  ])('%i bits from %i: values and gradients', (bits, first) => {
    scope(() => {
      const made = layer(device, bits, first);
      const got = recorded(device, made, bits, 'value');
      const [ds, db] = [new Float64Array(N * G), new Float64Array(N * G)];
      let clipped = 0;
      made.w.forEach((w, i) => {
        const g = Math.floor(i / B);
        const at = smooth(made, w, g, null);
        expect(Math.abs((got.y[i] as number) - at.y), `y ${i}`).toBeLessThan(2e-5);
        const step = 1e-6;
        const slope = (change: { dw?: number; ds?: number; db?: number }) => {
          const side = (sign: number) => {
            const { dw = 0, ds: a = 0, db: b = 0 } = change;
            return smooth(made, w + sign * dw, g, at.held, { ds: sign * a, db: sign * b }).y;
          };
          return ((side(1) - side(-1)) / (2 * step)) * (made.dy[i] as number);
        };
        if (at.v <= first || at.v >= made.last) clipped++;
        expect(Math.abs((got.dw[i] as number) - slope({ dw: step })), `dw ${i}`).toBeLessThan(1e-6);
        ds[g] = (ds[g] as number) + slope({ ds: step });
        db[g] = (db[g] as number) + slope({ db: step });
      });
      expect(clipped).toBeGreaterThan(3);
      expect(clipped).toBeLessThan(N * K * 0.8);
      const most = (1 << bits) * 1e-5;
      ds.forEach((value, g) => {
        expect(Math.abs((got.ds[g] as number) - value), `ds ${g}`).toBeLessThan(most);
        expect(Math.abs((got.db[g] as number) - (db[g] as number)), `db ${g}`).toBeLessThan(1e-5);
      });
    });
  });

  it('clippedBy code: the end codes are on the grid', () => {
    scope(() => {
      const made = layer(device, 2, -2);
      const [byValue, byCode] = [
        recorded(device, made, 2, 'value'),
        recorded(device, made, 2, 'code'),
      ];
      expect(byCode.y).toEqual(byValue.y);
      let differ = 0;
      made.w.forEach((w, i) => {
        const { v } = smooth(made, w, Math.floor(i / B), null);
        const code = roundEven(v);
        const on = code >= -2 && code <= 1;
        expect(byCode.dw[i], String(v)).toBeCloseTo(on ? (made.dy[i] as number) : 0, 12);
        if (byCode.dw[i] !== byValue.dw[i]) differ++;
      });
      expect(differ).toBeGreaterThan(2);
    });
  });

  it('ties round to the even code, and NaN stays', () => {
    scope(() => {
      const values = Float32Array.from([0.5, 1.5, -0.5, -1.5, 2.5, Number.NaN, 9, -9]);
      const tape = new Tape({ recording: false });
      const w = tape.own(Tensor.from(values, [1, 8], { device }));
      const scale = tape.own(Tensor.from(new Float32Array([1]), [1, 1], { device }));
      const y = fakeQuantize(tape, w, { bits: 3, scale }).tensor.readSync();
      expect([...y].map((v) => (v === 0 ? 0 : v))).toEqual([0, 2, 0, -2, 2, Number.NaN, 3, -4]);
    });
  });

  it('freezeGrid: the same values in a weight that the kernels take', () => {
    scope(() => {
      for (const [bits, first] of [
        [2, -2],
        [3, 0],
        [4, -8],
      ] as const) {
        const made = layer(device, bits, first);
        const tensor = (data: Float32Array, shape: readonly number[]) =>
          Tensor.from(data, shape, { device });
        const w = tensor(made.w, [N, K]);
        const [scale, offset] = [tensor(made.scale, [N, G]), tensor(made.offset, [N, G])];
        const tape = new Tape({ recording: false });
        const grid = { bits, first, scale, offset };
        const y = fakeQuantize(tape, tape.own(w), {
          ...grid,
          scale: tape.own(scale),
          offset: tape.own(offset),
        });
        const frozen = freezeGrid(w, grid);
        expect(QuantizedWeight.is(frozen)).toBe(true);
        expect(frozen.byteLength).toBeLessThan(N * K * 4);
        const [a, b] = [y.tensor.readSync(), dequantize(frozen, { dtype: 'f32' }).readSync()];
        a.forEach((value, i) => {
          expect(Math.abs(value - (b[i] as number))).toBeLessThanOrEqual(1e-6);
        });
        const plain = freezeGrid(w, { bits, first, scale });
        const unshifted = fakeQuantize(tape, tape.own(w), { bits, first, scale: tape.own(scale) });
        expect(dequantize(plain, { dtype: 'f32' }).readSync()).toEqual(unshifted.tensor.readSync());
        const x = tensor(drawn(3 * K, 9, device), [3, K]);
        const [left, right] = [matmul(x, frozen).readSync(), matmul(x, y.tensor).readSync()];
        left.forEach((value, i) => {
          expect(Math.abs(value - (right[i] as number))).toBeLessThan(1e-4);
        });
      }
    });
  });

  it('freezeGrid with zero-points: scale · (code − zero)', () => {
    scope(() => {
      const made = layer(device, 4, 0);
      const tensor = (data: Float32Array) => Tensor.from(data, [N, G], { device });
      const w = Tensor.from(made.w, [N, K], { device });
      const zero = made.offset.map((b, g) =>
        Math.min(15, Math.max(0, roundEven(-b / (made.scale[g] as number)))),
      );
      const frozen = freezeGrid(w, {
        bits: 4,
        first: 0,
        scale: tensor(made.scale),
        zero: tensor(zero),
      });
      const values = dequantize(frozen, { dtype: 'f32' }).readSync();
      made.w.forEach((v, i) => {
        const [s, z] = [made.scale[Math.floor(i / B)] as number, zero[Math.floor(i / B)] as number];
        const nearest = s * (Math.min(15, Math.max(0, roundEven(v / s + z))) - z);
        expect(Math.abs((values[i] as number) - nearest)).toBeLessThan(1e-5);
      });
    });
  });
});

describe('bad input', () => {
  const w = Tensor.zeros([4, 12], { device: 'cpu' });
  const scale = Tensor.from(new Float32Array(8).fill(1), [4, 2], { device: 'cpu' });
  const run = (options: object): unknown => {
    const t = new Tape();
    const given = { bits: 3, scale: t.own(scale), ...options };
    return fakeQuantize(t, t.own(w), given as Parameters<typeof fakeQuantize>[2]);
  };
  const value = (tensor: Tensor) => new Tape().own(tensor);

  it.each([
    [{ bits: 0 }, 'ERR_VALUE', /bits must be .*1 to 8.* got 0/],
    [{ bits: 2.5 }, 'ERR_VALUE', /bits must be an integer/],
    [{ scale: undefined }, 'ERR_VALUE', /scale must be given, got none/],
    [{ scale }, 'ERR_TYPE', /scale must be a Value/],
    [
      { scale: value(Tensor.zeros([4, 5])) },
      'ERR_SHAPE',
      /scale must be of shape \[4, G\] with G a divisor of K \(12\), got \[4, 5\]/,
    ],
    [
      { offset: value(Tensor.zeros([4, 1])) },
      'ERR_SHAPE',
      /offset must be of shape \[4, 2\], got \[4, 1\]/,
    ],
    [{ clippedBy: 'codes' }, 'ERR_VALUE', /clippedBy must be value or code, got "codes"/],
    [{ first: 1.5 }, 'ERR_VALUE', /first must be an integer/],
    [{ step: scale }, 'ERR_VALUE', /step/],
  ])('fakeQuantize %#', (options, code, message) => {
    expect(() => run(options)).toThrow(
      expect.objectContaining({ code, message: expect.stringMatching(message) }),
    );
    expect(run({})).toBeDefined();
  });

  it('freezeGrid', () => {
    const grid = { bits: 3, scale };
    const zero = Tensor.from(new Float32Array(8).fill(0.5), [4, 2], { device: 'cpu' });
    for (const [given, code, message] of [
      [
        { ...grid, scale: Tensor.zeros([4, 2]) },
        'ERR_VALUE',
        /scale must be positive and finite, got 0 at 0/,
      ],
      [{ ...grid, zero }, 'ERR_VALUE', /zero must be integers from 0 to 255, got 0.5 at 0/],
      [
        { ...grid, zero, offset: zero },
        'ERR_VALUE',
        /grid must be of an offset or of zero-points, got both/,
      ],
      [{ ...grid, bits: 9 }, 'ERR_VALUE', /bits/],
      [null, 'ERR_TYPE', /grid must be an object/],
    ] as const) {
      expect(() => freezeGrid(w, given as typeof grid)).toThrow(
        expect.objectContaining({ code, message: expect.stringMatching(message) }),
      );
    }
    const broken = Tensor.from(new Float32Array(48).fill(Number.NaN), [4, 12], { device: 'cpu' });
    expect(() => freezeGrid(broken, grid)).toThrow(/w must be finite, got NaN at 0/);
    expect(freezeGrid(w, grid).shape).toEqual([4, 12]);
  });
});
