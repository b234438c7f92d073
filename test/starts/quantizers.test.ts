// Starts that quantise in a way of their own, on one layer, against brute force in float64.
import { describe, expect, it } from 'vitest';
import {
  dequantize,
  InputSums,
  QuantizedWeight,
  quantize,
  quantizePlanar,
  scope,
  startLayer,
  Tensor,
} from '../../lib/index.js';
import { normalFloatLevels } from '../../lib/quantizers/normal-float.js';
import { decompose, importanceOf } from '../../lib/starts/parts/weighted-decomposition.js';
import { methodNamed } from '../../lib/train/adapter-set.js';
import { eigenvaluesOf } from './jacobi.js';
import { minus, norm, product, turned, updateOf, valuesOf, worst } from './setup.js';

const [N, K, r] = [48, 64, 4];
const device = 'cpu' as const;

/** A weight whose rows are not centred. */
const shiftedWeight = (): Tensor =>
  Tensor.from(
    Float32Array.from(
      Tensor.randn([N, K], { seed: 6, device }).readSync(),
      (v, at) => 0.1 * (v + 1.5 * Math.sin(Math.floor(at / K))),
    ),
    [N, K],
    { device },
  );

const nearest = (levels: ArrayLike<number>, v: number): number => {
  let best = 0;
  for (let c = 1; c < levels.length; c++) {
    const [old, now] = [levels[best] as number, levels[c] as number];
    if (Math.abs(now - v) < Math.abs(old - v)) best = c;
  }
  return best;
};

const entropyOf = (codes: readonly number[]): number => {
  const counts = new Map<number, number>();
  for (const code of codes) counts.set(code, (counts.get(code) ?? 0) + 1);
  return [...counts.values()].reduce(
    (sum, n) => sum - (n / codes.length) * Math.log2(n / codes.length),
    0,
  );
};

describe('icq', () => {
  it('has the levels of NF4, and of NF2', () => {
    scope(() => {
      const values = Tensor.from(
        Float32Array.from({ length: 64 }, (_, i) => (i - 31.5) / 31.5),
        [1, 64],
        { device },
      );
      const nf4 = new Set(
        dequantize(quantize(values, { format: 'nf4', blocksize: 64 }), { dtype: 'f32' }).readSync(),
      );
      const levels = normalFloatLevels(4);
      for (const level of nf4) {
        expect(Math.abs((levels[nearest(levels, level)] as number) - level)).toBeLessThan(2e-6);
      }
      expect(nf4.size).toBe(16);
      // Quantiles 0.0322917, 0.5, 0.73385415 and 0.9677083 over the last.
      const two = normalFloatLevels(2);
      expect([...two].map((v) => Number(v.toFixed(4)))).toEqual([-1, 0, 0.3379, 1]);
    });
  });

  it.each([
    { bits: 4, blocksize: 32, doubleQuant: false },
    { bits: 2, blocksize: 64, doubleQuant: false },
    { bits: 3, blocksize: 24, doubleQuant: true },
  ])('$bits bits: the shift of each block has the most entropy of all that are tried', (how) => {
    scope(() => {
      const w = shiftedWeight();
      const { weight } = startLayer(w, {
        start: 'icq',
        method: methodNamed('test', 'ir-qlora'),
        r,
        loraAlpha: 4,
        ...how,
        tries: 20,
      });
      const planes = QuantizedWeight.planesOf(weight as QuantizedWeight, 'test');
      const values = w.readSync();
      const levels = normalFloatLevels(how.bits);
      const width = 0.1 / 1.8481308; // range over the quantile of 0.9677083
      let [shifted, plain] = [0, 0];
      for (let begin = 0, block = 0; begin < values.length; begin += how.blocksize, block++) {
        const own = [...values.slice(begin, begin + how.blocksize)];
        const codes = [...planes.codes.slice(begin, begin + how.blocksize)];
        const sorted = [...own].sort((a, b) => a - b);
        const median = sorted[(own.length - 1) >> 1] as number;
        const reach = Math.max(...own.map((v) => Math.abs(v - median)));
        const codesAt = (shift: number) => {
          const absmax = Math.max(...own.map((v) => Math.abs(v - shift)));
          return own.map((v) => nearest(levels, (v - shift) / absmax));
        };
        const most = Math.max(
          ...Array.from({ length: 41 }, (_, i) =>
            entropyOf(codesAt(median + ((i - 20) / 20) * width * reach)),
          ),
        );
        // A stored shift of 8 bits is near the best one.
        expect(entropyOf(codes), `block ${block}`).toBeGreaterThan(
          most - (how.doubleQuant ? 0.3 : 1e-9),
        );
        shifted += entropyOf(codes);
        plain += entropyOf(codesAt(0));
      }
      expect(shifted).toBeGreaterThan(1.02 * plain);
      const back = valuesOf(weight);
      expect(norm(minus(valuesOf(w), back))).toBeLessThan(0.5 * norm(valuesOf(w)));
    });
  });

  it('leaves a smaller error than NF4 of the same blocks, where blocks are not centred', () => {
    scope(() => {
      const w = shiftedWeight();
      const made = startLayer(w, { start: 'icq', r, blocksize: 64 });
      const plain = quantize(w, { format: 'nf4', blocksize: 64 });
      const error = (weight: Parameters<typeof valuesOf>[0]) =>
        norm(minus(valuesOf(w), valuesOf(weight)));
      expect(error(made.weight)).toBeLessThan(0.8 * error(plain));
    });
  });
});

/** Inputs of differing size, and a weight of a few strong directions with noise. */
function layer(strength = 0.15) {
  const M = 300;
  const values = Tensor.randn([M, K], { seed: 5, device }).readSync();
  // Neighbouring features go together.
  const x = Float32Array.from(
    values,
    (v, at) => (v + (values[at + 1] ?? 0) + (values[at + 2] ?? 0)) / (1 + (at % K) / 20) + 0.1,
  );
  const inputs = new InputSums(K);
  inputs.add(Tensor.from(x, [M, K], { device }));
  const strong = product(
    Tensor.randn([N, 3], { seed: 7, device }).readSync(),
    Tensor.randn([3, K], { seed: 8, device }).readSync(),
    N,
    3,
    K,
  );
  const noise = Tensor.randn([N, K], { seed: 9, device }).readSync();
  const w = Tensor.from(
    Float32Array.from(noise, (v, at) => 0.1 * v + strength * (strong[at] as number)),
    [N, K],
    { device },
  );
  const outputError = (rest: Float64Array) => norm(product(x, turned(rest, N, K), M, K, N));
  return { w, inputs, outputError };
}

/** Two bits with a step for 32 values: much is lost. */
const twoBits = (w: Tensor) =>
  QuantizedWeight.fromPlanes(
    quantizePlanar({ dtype: 'F32', shape: w.shape, data: w.readSync() }, {
      format: 'int2',
      groupSize: 32,
      strategy: 'group',
      symmetric: false,
      layout: 'gptq',
    } as never),
    { device },
  );

const S = 2;

const rest = ({ w }: ReturnType<typeof layer>, made: ReturnType<typeof startLayer>) =>
  minus(minus(valuesOf(w), valuesOf(made.weight)), updateOf(made.adapter, S));

describe('srr', () => {
  const run = (known: ReturnType<typeof layer>, options: object = {}, start = 'srr') =>
    startLayer(known.w, {
      start,
      r,
      loraAlpha: S * r,
      inputs: known.inputs,
      format: twoBits,
      iterations: 0,
      ...options,
    });

  it('with nothing preserved it is QERA', () => {
    scope(() => {
      const known = layer();
      const [made, qera] = [run(known, { preserved: 0 }), run(known, {}, 'qera')];
      expect(worst(valuesOf(made.weight), valuesOf(qera.weight))).toBe(0);
      expect(worst(updateOf(made.adapter, S), updateOf(qera.adapter, S))).toBeLessThan(1e-5);
    });
  });

  it.each([0.15, 0.05, 0.02, 0])(
    'preserves the number of triplets of least loss by the paper’s criterion: %d',
    (strength) => {
      scope(() => {
        const known = layer(strength);
        const second = known.inputs.gram.map((v) => v / known.inputs.rows);
        /** Energies behind k triplets of m · L: eigenvalues of m · R · mᵀ. */
        const tails = (m: ArrayLike<number>) => {
          const seen = product(product(m, second, N, K, K), turned(m, N, K), N, K, N);
          const values = eigenvaluesOf(seen, N);
          const whole = values.reduce((sum, v) => sum + v, 0);
          return Array.from(
            { length: r + 1 },
            (_, k) => values.slice(k).reduce((sum, v) => sum + v, 0) / whole,
          );
        };
        const noise = Tensor.uniform([N, K], { seed: 1, low: -1, high: 1, device }).readSync();
        const [kept, repaired] = [tails(known.w.readSync()), tails(noise)];
        const losses = kept.map((tail, k) => tail * (repaired[r - k] as number));
        const best = losses.indexOf(Math.min(...losses));
        const [made, forced] = [run(known), run(known, { preserved: best })];
        expect(worst(updateOf(made.adapter, S), updateOf(forced.adapter, S))).toBe(0);
        if (strength < 0.1) return;
        const errors = Array.from({ length: r + 1 }, (_, preserved) =>
          known.outputError(rest(known, run(known, { preserved }))),
        );
        expect(Math.abs(errors.indexOf(Math.min(...errors)) - best)).toBeLessThanOrEqual(1);
        expect(errors[best]).toBeLessThan(0.8 * (errors[0] as number));
      });
    },
  );
});

describe('gptq-lora', () => {
  const run = (known: ReturnType<typeof layer>, options: object = {}) =>
    startLayer(known.w, {
      start: 'gptq-lora',
      r,
      loraAlpha: S * r,
      inputs: known.inputs,
      bits: 3,
      ...options,
    });

  it('has the codes of column by column elimination with the adapter’s directions as columns that are never rounded', () => {
    scope(() => {
      const known = layer();
      const made = run(known);
      const planes = QuantizedWeight.planesOf(made.weight as QuantizedWeight, 'test');
      const a = (made.adapter.parameters.loraA as Tensor).readSync();
      const h = known.inputs.gram.map((v) => v / known.inputs.rows);
      // [x, x · loraAᵀ]: the last columns stand for the adapter.
      const wide = K + r;
      const ha = product(h, turned(a, r, K), K, K, r);
      const aha = product(a, ha, r, K, r);
      const damp = (() => {
        let trace = 0;
        for (let i = 0; i < K; i++) trace += h[i * K + i] as number;
        for (let t = 0; t < r; t++) trace -= aha[t * r + t] as number;
        return (0.01 * trace) / K;
      })();
      const big = new Float64Array(wide * wide);
      for (let i = 0; i < wide; i++) {
        for (let j = 0; j < wide; j++) {
          const [p, q] = [i - K, j - K];
          big[i * wide + j] =
            i < K && j < K
              ? (h[i * K + j] as number) + (i === j ? damp : 0)
              : i < K
                ? (ha[i * r + q] as number)
                : j < K
                  ? (ha[j * r + p] as number)
                  : (aha[p * r + q] as number);
        }
      }
      const w = known.w.readSync();
      const { scale, zero } = planes;
      if (scale.values.dtype !== 'f32' || zero === undefined) throw new Error('planes');
      let differ = 0;
      for (let n = 0; n < N; n += 5) {
        let inverse = inverseOf(big, wide);
        const row = new Float64Array(wide);
        row.set(w.subarray(n * K, (n + 1) * K));
        for (let k = 0; k < K; k++) {
          const group = Math.floor((n * K + k) / 32);
          const s = scale.values.data[group] as number;
          const z = (zero.data as Uint8Array)[group] as number;
          const code = Math.min(7, Math.max(0, Math.round((row[k] as number) / s) + z));
          if (code !== planes.codes[n * K + k]) differ++;
          const pivot = inverse[k * wide + k] as number;
          const error = ((row[k] as number) - s * (code - z)) / pivot;
          for (let j = k + 1; j < wide; j++) {
            row[j] = (row[j] as number) - error * (inverse[k * wide + j] as number);
          }
          const next = inverse.slice();
          for (let i = 0; i < wide; i++) {
            for (let j = 0; j < wide; j++) {
              next[i * wide + j] =
                (inverse[i * wide + j] as number) -
                ((inverse[i * wide + k] as number) * (inverse[k * wide + j] as number)) / pivot;
            }
          }
          inverse = next;
        }
      }
      expect(differ).toBe(0);
    });
  });

  it('leaves a smaller error in the output than rounding, and than QERA over the rounded weight', () => {
    scope(() => {
      const known = layer();
      const made = run(known);
      const plain = (w: Tensor) =>
        QuantizedWeight.fromPlanes(
          quantizePlanar({ dtype: 'F32', shape: w.shape, data: w.readSync() }, {
            format: 'int3',
            groupSize: 32,
            strategy: 'group',
            symmetric: false,
          } as never),
          { device },
        );
      const qera = startLayer(known.w, {
        start: 'qera',
        r,
        loraAlpha: S * r,
        inputs: known.inputs,
        format: plain,
        iterations: 0,
      });
      const rounded = known.outputError(minus(valuesOf(known.w), valuesOf(qera.weight)));
      const [own, repaired] = [made, qera].map((each) => known.outputError(rest(known, each)));
      expect(repaired).toBeLessThan(rounded);
      expect(own).toBeLessThan(0.9 * (repaired as number));
      expect(() => run(known, { groupSize: 48 })).toThrow(
        /groupSize must be a divisor of the 64 features/,
      );
      expect(() => run(known, { bits: 9 })).toThrow(/bits must be an integer from 1 to 8, got 9/);
    });
  });
});

describe('lowra', () => {
  const run = (known: ReturnType<typeof layer>, options: object = {}) =>
    startLayer(known.w, { start: 'lowra', r, loraAlpha: S * r, ...options });

  it('leaves less of the weight out than two bits by rounding, and than half as many levels a row', () => {
    scope(() => {
      const known = layer();
      const loftq = startLayer(known.w, {
        ...{ start: 'loftq', r, loraAlpha: S * r, rounds: 1, format: twoBits },
      });
      const errors = [1, 1.5, 2, 3].map((budget) => norm(rest(known, run(known, { budget }))));
      expect(errors[2]).toBeLessThan(0.8 * norm(rest(known, loftq)));
      for (let i = 1; i < errors.length; i++)
        expect(errors[i]).toBeLessThan(errors[i - 1] as number);
      const turns = norm(rest(known, run(known, { budget: 2, rounds: 5 })));
      expect(turns).toBeLessThan(errors[2] as number);
    });
  });

  it('is stored in bytes, which products take, and refuses what does not fit', () => {
    scope(() => {
      const known = layer();
      const { adapter, weight } = run(known);
      expect(QuantizedWeight.is(weight) && weight.format).toBe('planar');
      const x = Tensor.randn([3, K], { seed: 4, device });
      const dense = Tensor.from(Float32Array.from(valuesOf(weight)), [N, K], { device });
      const [left, right] = [weight, dense].map((w) => adapter.forward(x, w).y.readSync());
      expect(worst(left as Float32Array, right as Float32Array)).toBeLessThan(1e-4);
      expect(() => run(known, { budget: 0.5 })).toThrow(/budget must be from 1 to 4, got 0.5/);
      expect(() => run(known, { blocksize: 48 })).toThrow(/blocksize must be a divisor of the 64/);
    });
  });
});

describe('the decomposition of lq-lora', () => {
  const format = { bits: 3, blocksize: 32, doubleQuant: false };
  const how = { r, scaling: S, seed: 1, iterations: 'exact' } as const;
  const updateAt = (made: ReturnType<typeof decompose>) =>
    product(made.loraB.readSync(), made.loraA.readSync(), N, r, K).map((v) => S * v);

  it('weights that are a product of rows and columns: the factors leave the least weighted rest', () => {
    scope(() => {
      const known = layer(0.05);
      const [rows, columns] = [N, K].map((count, i) =>
        Tensor.uniform([count], { seed: 20 + i, low: 0.05, high: 4, device }).readSync(),
      ) as [Float32Array, Float32Array];
      const fisher = Float32Array.from(
        { length: N * K },
        (_, at) => (rows[Math.floor(at / K)] as number) * (columns[at % K] as number),
      );
      const importance = importanceOf(Tensor.from(fisher, [N, K], { device }));
      const place = { w: known.w, N, K, device };
      const made = decompose(place, importance, format, { ...how, rounds: 1 });
      const left = minus(valuesOf(known.w), updateAt(made));
      const weigh = (m: ArrayLike<number>) =>
        Float64Array.from(m, (v, at) => v * Math.sqrt(fisher[at] as number));
      const whole = weigh(known.w.readSync());
      const values = eigenvaluesOf(product(whole, turned(whole, N, K), N, K, N), N);
      const least = values.slice(r).reduce((sum, v) => sum + v, 0);
      expect(Math.abs(norm(weigh(left)) ** 2 / least - 1)).toBeLessThan(1e-3);
      // What the factors leave is what the codes are of, and the cost is the weighted square of the rest.
      const rest = weigh(minus(left, valuesOf(made.base)));
      expect(Math.abs(norm(rest) ** 2 / made.cost - 1)).toBeLessThan(1e-4);
      const turns = decompose(place, importance, format, { ...how, rounds: 8 });
      expect(turns.cost).toBeLessThan(0.98 * made.cost);
    });
  });
});

/** By Gauss and Jordan. */
function inverseOf(a: Float64Array, n: number): Float64Array {
  const left = a.slice();
  const right = new Float64Array(n * n);
  for (let i = 0; i < n; i++) right[i * n + i] = 1;
  for (let k = 0; k < n; k++) {
    let pivot = k;
    for (let i = k + 1; i < n; i++) {
      if (Math.abs(left[i * n + k] as number) > Math.abs(left[pivot * n + k] as number)) pivot = i;
    }
    for (const m of [left, right]) {
      for (let j = 0; j < n; j++) {
        const [p, q] = [m[k * n + j] as number, m[pivot * n + j] as number];
        m[k * n + j] = q;
        m[pivot * n + j] = p;
      }
    }
    const d = left[k * n + k] as number;
    for (const m of [left, right])
      for (let j = 0; j < n; j++) m[k * n + j] = (m[k * n + j] as number) / d;
    for (let i = 0; i < n; i++) {
      if (i === k) continue;
      const f = left[i * n + k] as number;
      for (const m of [left, right]) {
        for (let j = 0; j < n; j++)
          m[i * n + j] = (m[i * n + j] as number) - f * (m[k * n + j] as number);
      }
    }
  }
  return right;
}
