// Rounding to trained levels, against float64: values, and gradients by finite differences with rounding held.
import { describe, expect, it } from 'vitest';
import {
  adamwStep,
  dequantize,
  fakeQuantizeLevels,
  freezeLevels,
  multiplyAdd,
  quantize,
  scope,
  Tape,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';

const [N, K, G, n] = [4, 24, 3, 5];
const B = K / G;

describe.each(DEVICES)('fakeQuantizeLevels on %s', (device) => {
  const drawn = (count: number, seed: number) =>
    Tensor.randn([count], { seed, device }).readSync().slice();
  const tensor = (data: Float32Array, shape: readonly number[]) =>
    Tensor.from(data, shape, { device });

  it.each([1, N])('levels of %i rows: values and gradients', (rows) => {
    scope(() => {
      const [w, dy] = [drawn(N * K, 1), drawn(N * K, 2)];
      const levels = drawn(rows * n, 3);
      const scale = drawn(N * G, 4).map((v) => 0.6 + 0.1 * v);
      const t = new Tape();
      const values = [tensor(w, [N, K]), tensor(levels, [rows, n]), tensor(scale, [N, G])].map(
        (each) => t.variable(each),
      );
      const [wv, lv, sv] = values as [(typeof values)[0], (typeof values)[0], (typeof values)[0]];
      const y = fakeQuantizeLevels(t, wv, { levels: lv, scale: sv });
      const found = t.gradients('test', y, tensor(dy, [N, K]), [wv, lv, sv]);
      const [dw, dl, ds] = found.map((each) => (each as Tensor).readSync());
      const got = y.tensor.readSync();
      const sums = { l: new Float64Array(rows * n), s: new Float64Array(N * G) };
      let outside = 0;
      w.forEach((value, i) => {
        const g = Math.floor(i / B);
        const first = rows === 1 ? 0 : Math.floor(i / K) * n;
        const own = [...levels.slice(first, first + n)];
        const s = scale[g] as number;
        const v = value / s;
        const best = own.reduce(
          (b, l, c) => (Math.abs(l - v) < Math.abs((own[b] as number) - v) ? c : b),
          0,
        );
        const level = own[best] as number;
        expect(Math.abs((got[i] as number) - s * level)).toBeLessThan(1e-6);
        const inside = v > Math.min(...own) && v < Math.max(...own);
        if (!inside) outside++;
        // Held: y = w' + s' · (level' − v) between the levels, s' · level' beyond.
        const held = (dw_: number, dl_: number, ds_: number) =>
          inside ? value + dw_ + (s + ds_) * (level + dl_ - v) : (s + ds_) * (level + dl_);
        const step = 1e-6;
        const slope = (a: number, b: number, c: number) =>
          ((held(a, b, c) - held(-a, -b, -c)) / (2 * step)) * (dy[i] as number);
        expect(Math.abs((dw?.[i] as number) - slope(step, 0, 0))).toBeLessThan(1e-6);
        sums.l[first + best] = (sums.l[first + best] as number) + slope(0, step, 0);
        sums.s[g] = (sums.s[g] as number) + slope(0, 0, step);
      });
      expect(outside).toBeGreaterThan(2);
      sums.l.forEach((value, i) => {
        expect(Math.abs((dl?.[i] as number) - value), `level ${i}`).toBeLessThan(1e-5);
      });
      sums.s.forEach((value, i) => {
        expect(Math.abs((ds?.[i] as number) - value), `scale ${i}`).toBeLessThan(1e-5);
      });
    });
  });

  it('trained levels leave less out than those of nf4, and freeze bit for bit', () => {
    scope(() => {
      // A weight whose values are not normal: nf4 wastes levels.
      const data = drawn(64 * 64, 7).map((v) => Math.sign(v) * Math.abs(v) ** 3);
      const w = tensor(data, [64, 64]);
      const nf4 = dequantize(quantize(w, { format: 'nf4', blocksize: 64 }), { dtype: 'f32' });
      const absmax = Float32Array.from({ length: 64 }, (_, row) =>
        Math.max(...data.slice(row * 64, row * 64 + 64).map(Math.abs)),
      );
      const scale = tensor(absmax, [64, 1]);
      const levels = tensor(
        Float32Array.from({ length: 16 }, (_, i) => (i - 7.5) / 7.5),
        [1, 16],
      );
      const [m, v] = [Tensor.zeros([1, 16], { device }), Tensor.zeros([1, 16], { device })];
      const errorOf = (y: Tensor) =>
        Math.hypot(...multiplyAdd({ a: y, c: w, beta: -1 }).readSync());
      const run = (t: Tape, own: ReturnType<Tape['variable']>) =>
        fakeQuantizeLevels(t, t.constant(w), { levels: own, scale: t.constant(scale) });
      for (let step = 1; step <= 200; step++) {
        scope(() => {
          const t = new Tape();
          const own = t.variable(levels);
          const y = run(t, own);
          const dy = multiplyAdd({ a: y.tensor, c: w, beta: -1 });
          const found = t.gradients('levels', y, dy, [own]) as readonly Tensor[];
          adamwStep([levels], found, [m], [v], { lr: 0.01, step, weightDecay: 0 });
        });
      }
      const t = new Tape({ recording: false });
      const y = run(t, t.constant(levels)).tensor;
      expect(errorOf(y)).toBeLessThan(0.85 * errorOf(nf4));
      const frozen = freezeLevels(w, { levels, scale });
      expect(dequantize(frozen, { dtype: 'f32' }).readSync()).toEqual(y.readSync());
    });
  });
});

describe('bad input', () => {
  it('says what levels and scales must be', () => {
    scope(() => {
      const device = 'cpu' as const;
      const w = Tensor.zeros([4, 12], { device });
      const ones = (shape: readonly number[]) =>
        Tensor.from(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(1), shape, { device });
      const t = new Tape();
      const run = (options: object) => fakeQuantizeLevels(t, t.constant(w), options as never);
      expect(() => run({})).toThrow(/levels must be given, got none/);
      expect(() => run({ levels: t.own(ones([2, 4])) })).toThrow(
        /levels must be of shape \[1, n\] or \[4, n\] with n from 2 to 256, got \[2, 4\]/,
      );
      expect(() => run({ levels: t.own(ones([1, 1])) })).toThrow(/n from 2 to 256/);
      const levels = ones([1, 4]);
      expect(() => run({ levels: t.constant(levels), scale: t.own(ones([4, 5])) })).toThrow(
        /scale must be of shape \[4, G\] with G a divisor of K \(12\), got \[4, 5\]/,
      );
      expect(() => run({ levels })).toThrow(/levels must be a Value/);
      expect(() => freezeLevels(w, { levels: ones([4, 4]) })).toThrow(/one table for all rows/);
      expect(() => freezeLevels(w, { levels, scale: Tensor.zeros([4, 1], { device }) })).toThrow(
        /scale must be positive, got 0 at 0/,
      );
      expect(freezeLevels(w, { levels }).shape).toEqual([4, 12]);
    });
  });
});
