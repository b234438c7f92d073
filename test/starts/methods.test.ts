// Every start of the library on one layer, by what its paper says of it, in float64.
import { describe, expect, it } from 'vitest';
import {
  type Adapter,
  InputSums,
  quantize,
  scope,
  startLayer,
  startMethods,
  svd,
  Tensor,
} from '../../lib/index.js';
import { methodNamed } from '../../lib/train/adapter-set.js';
import { minus, norm, product, turned, updateOf, valuesOf, worst } from './setup.js';

const [N, K, r, M] = [48, 64, 4, 200];
const S = 2;
const NF4 = { format: 'nf4' } as const;
const device = 'cpu' as const;

/** Inputs whose directions differ in size, and a weight with a spectrum. */
function layer() {
  const x = Tensor.from(
    Float32Array.from(
      Tensor.randn([M, K], { seed: 5, device }).readSync(),
      (v, at) => v / (1 + (at % K) / 4) + 0.1,
    ),
    [M, K],
    { device },
  );
  const inputs = new InputSums(K);
  for (const [begin, end] of [
    [0, 120],
    [120, M],
  ] as const) {
    inputs.add(Tensor.from(x.readSync().slice(begin * K, end * K), [end - begin, K], { device }));
  }
  const w = Tensor.from(
    Float32Array.from(
      Tensor.randn([N, K], { seed: 6, device }).readSync(),
      (v, at) => (0.3 * v) / (1 + (at % 7)),
    ),
    [N, K],
    { device },
  );
  return { w, x, inputs, dw: Tensor.randn([N, K], { seed: 7, std: 0.01, device }) };
}

type Known = ReturnType<typeof layer>;

function run(start: string, { w, inputs, dw }: Known, options: object = {}) {
  const { adapters: fits = ['lora'] } = startMethods.find((each) => each.start === start) ?? {};
  const method = methodNamed('test', fits[0] as string);
  const { defaults } = method.definition;
  const sizes = {
    ...('r' in defaults && method.method !== 'adamss' ? { r } : {}),
    ...('loraAlpha' in defaults && method.method !== 'adamss' ? { loraAlpha: S * r } : {}),
  };
  return startLayer(w, { start, method, format: NF4, inputs, dw, ...sizes, ...options });
}

/** ‖x · (w − base − update)ᵀ‖ */
const outputError = ({ w, x }: Known, base: Float64Array, update: Float64Array) =>
  norm(product(x.readSync(), turned(minus(minus(valuesOf(w), base), update), N, K), M, K, N));

describe('starts that take triplets out of the base', () => {
  it.each(['pissa', 'milora', 'olora', 'federa', 'corda', 'lora-ga'])(
    '%s: base and adapter are the weight, to the format',
    (start) => {
      scope(() => {
        const known = layer();
        const dense = run(start, known, { format: { format: 'none' } });
        const whole = (made: typeof dense) =>
          valuesOf(made.weight).map((v, i) => v + (updateOf(made.adapter, S)[i] as number));
        expect(worst(whole(dense), valuesOf(known.w))).toBeLessThan(1e-5);
        // What is quantised is the residual: its own codes, and no others.
        const residual = Tensor.from(
          Float32Array.from(minus(valuesOf(known.w), updateOf(dense.adapter, S))),
          [N, K],
          { device },
        );
        const made = run(start, known);
        expect(worst(valuesOf(made.weight), valuesOf(quantize(residual, NF4)))).toBeLessThan(1e-5);
        expect(norm(updateOf(made.adapter, S))).toBeGreaterThan(1e-3);
      });
    },
  );

  it('pissa leaves less to quantise than the weight, and so a smaller error', () => {
    scope(() => {
      const known = layer();
      const made = run('pissa', known);
      const error = norm(
        minus(minus(valuesOf(known.w), valuesOf(made.weight)), updateOf(made.adapter, S)),
      );
      const plain = norm(minus(valuesOf(known.w), valuesOf(quantize(known.w, NF4))));
      expect(error).toBeLessThan(0.97 * plain);
    });
  });

  it('milora takes the least, pissa the most: any other update of their rank lies between', () => {
    scope(() => {
      const known = layer();
      const [most, least, other] = ['pissa', 'milora', 'olora'].map((start) =>
        norm(updateOf(run(start, known).adapter, S)),
      ) as [number, number, number];
      expect(least).toBeLessThan(0.2 * most);
      // OLoRA's factors are not divided by the scaling.
      expect(other / S).toBeLessThan(most);
    });
  });

  it('goat: the mean of the experts is what the base lacks', () => {
    scope(() => {
      const known = layer();
      const made = run('goat', known, { format: { format: 'none' }, experts: 3 });
      const whole = updateOf(made.adapter, S / 3);
      expect(
        worst(
          valuesOf(made.weight).map((v, i) => v + (whole[i] as number)),
          valuesOf(known.w),
        ),
      ).toBeLessThan(1e-5);
      // Each expert has a segment of its own.
      const a = (made.adapter.parameters.loraA as Tensor).readSync();
      for (let i = 0; i < 3 * r; i++) {
        for (let j = 0; j < i; j++) {
          let dot = 0;
          for (let k = 0; k < K; k++) dot += (a[i * K + k] as number) * (a[j * K + k] as number);
          expect(Math.abs(dot)).toBeLessThan(1e-5);
        }
      }
    });
  });
});

describe('starts that repair a quantised weight', () => {
  it('loftq: the error of the weight falls with every round', () => {
    scope(() => {
      const known = layer();
      const errors = [1, 2, 3, 4, 5].map((rounds) => {
        const made = run('loftq', known, { rounds, iterations: 0 });
        return norm(
          minus(minus(valuesOf(known.w), valuesOf(made.weight)), updateOf(made.adapter, S)),
        );
      });
      for (let i = 1; i < errors.length; i++)
        expect(errors[i]).toBeLessThan(errors[i - 1] as number);
      const plain = norm(minus(valuesOf(known.w), valuesOf(quantize(known.w, NF4))));
      expect(errors[0]).toBeLessThan(plain);
    });
  });

  it.each(['qera', 'cloq'])(
    '%s: the error of the output is below that of a plain SVD of the error',
    (start) => {
      scope(() => {
        const known = layer();
        const plain = run('loftq', known, { rounds: 1, iterations: 0 });
        const made = run(start, known, { iterations: 0 });
        const base = valuesOf(made.weight);
        expect(worst(base, valuesOf(plain.weight))).toBe(0);
        const without = outputError(known, base, new Float64Array(N * K));
        const bySvd = outputError(known, base, updateOf(plain.adapter, S));
        const error = outputError(known, base, updateOf(made.adapter, S));
        expect(bySvd).toBeLessThan(without);
        expect(error).toBeLessThan(0.9 * bySvd);
      });
    },
  );
});

describe('starts from data that leave the base', () => {
  const kept = (made: { weight: unknown }, { w }: Known) =>
    expect(worst(valuesOf(made.weight as Tensor), valuesOf(quantize(w, NF4)))).toBe(0);

  it('lora-one: the first update is along the negative gradient, of its best rank', () => {
    scope(() => {
      const known = layer();
      const made = run('lora-one', known, { iterations: 0 });
      kept(made, known);
      const update = updateOf(made.adapter, S);
      const dw = valuesOf(known.dw);
      const along = update.reduce((sum, v, i) => sum + v * (dw[i] as number), 0);
      expect(along).toBeLessThan(0);
      // γ · S₁ / s times the update is the projection of −dW: what is left is orthogonal to it.
      const scale = -along / norm(update) ** 2;
      const rest = dw.map((v, i) => v + scale * (update[i] as number));
      expect(Math.abs(rest.reduce((sum, v, i) => sum + v * (update[i] as number), 0))).toBeLessThan(
        1e-9,
      );
    });
  });

  it('gora: the update is the projection of −dW on loraA, as large as a step of gamma', () => {
    scope(() => {
      const known = layer();
      const made = run('gora', known);
      kept(made, known);
      const update = updateOf(made.adapter, S);
      const a = Float64Array.from((made.adapter.parameters.loraA as Tensor).readSync());
      const factor = 0.05 * Math.sqrt(K / r);
      // dW + update / factor is orthogonal to every row of A.
      const rest = valuesOf(known.dw).map((v, i) => v + (update[i] as number) / factor);
      expect(norm(product(rest, turned(a, r, K), N, K, r))).toBeLessThan(
        1e-5 * norm(rest) * norm(a),
      );
    });
  });

  it('lora-sb: the core in the space of Adam’s first step', () => {
    scope(() => {
      const known = layer();
      const made = run('lora-sb', known, { rate: 0.01, iterations: 0 });
      kept(made, known);
      const update = updateOf(made.adapter, S);
      const step = valuesOf(known.dw).map((v) => -0.01 * Math.sign(v));
      const rest = minus(step, update);
      const signs = Tensor.from(Float32Array.from(step), [N, K], { device });
      expect(norm(rest)).toBeCloseTo(norm(svd(signs).s.slice(r)), 5);
      expect(Object.keys(made.adapter.parameters)).toEqual(['core']);
    });
  });

  it('inflora: no direction of its rank holds more of the inputs than loraA', () => {
    scope(() => {
      const known = layer();
      const held = (start: string) => {
        const made = run(start, known);
        kept(made, known);
        const a = Float64Array.from((made.adapter.parameters.loraA as Tensor).readSync());
        return norm(product(known.x.readSync(), turned(a, r, K), M, K, r)) / norm(a);
      };
      expect(held('inflora')).toBeGreaterThan(held('eva'));
      const drawn = run('gora', known).adapter.parameters.loraA as Tensor;
      const a = Float64Array.from(drawn.readSync());
      expect(held('inflora')).toBeGreaterThan(
        2 * (norm(product(known.x.readSync(), turned(a, r, K), M, K, r)) / norm(a)),
      );
    });
  });

  it('eva with whiten: rows are divided by the root of their singular value', () => {
    scope(() => {
      const known = layer();
      const rows = (options: object) =>
        Float64Array.from(
          (run('eva', known, options).adapter.parameters.loraA as Tensor).readSync(),
        );
      const [plain, white] = [rows({}), rows({ whiten: true })];
      const x = Float64Array.from(known.x.readSync());
      const mean = Float64Array.from(
        { length: K },
        (_, k) => x.reduce((sum, v, at) => (at % K === k ? sum + v : sum), 0) / M,
      );
      const centred = x.map((v, at) => v - (mean[at % K] as number));
      for (let i = 0; i < r; i++) {
        const v = plain.slice(i * K, (i + 1) * K);
        const value = norm(product(centred, v, M, K, 1));
        expect(
          worst(
            white.slice(i * K, (i + 1) * K),
            v.map((e) => e / Math.sqrt(value)),
          ),
        ).toBeLessThan(1e-5);
      }
    });
  });
});

describe('starts of methods', () => {
  it.each([
    ['kasa', { r, loraAlpha: 8 }],
    ['lora-xs', { r, loraAlpha: 8 }],
    ['adamss', { r: 4, subspaces: 2 }],
    ['osf', { rank: 8 }],
  ] as const)(
    '%s: the tensors that the method makes of the dense weight, over the quantised one',
    (start, settings) => {
      scope(() => {
        const known = layer();
        const made = startLayer(known.w, {
          start,
          method: methodNamed('test', start),
          format: NF4,
          seed: 4,
          ...settings,
        });
        const own = methodNamed('test', start).create({
          inFeatures: K,
          outFeatures: N,
          weight: known.w,
          seed: 4,
          ...settings,
        }) as Adapter;
        const all = (a: Adapter) =>
          Object.entries({ ...a.parameters, ...a.buffers }).map(([name, t]) => [
            name,
            [...t.readSync()],
          ]);
        expect(all(made.adapter)).toEqual(all(own));
        expect(made.adapter.indexes).toEqual(own.indexes);
        expect(made.weight.byteLength).toBeLessThan(N * K);
      });
    },
  );

  it('mica: loraB has the directions that the weight uses least', () => {
    scope(() => {
      const known = layer();
      const { adapter } = run('mica', known);
      expect(norm((adapter.parameters.loraA as Tensor).readSync())).toBe(0);
      const b = Float64Array.from((adapter.parameters.loraB as Tensor).readSync());
      const used = norm(product(turned(b, N, r), valuesOf(known.w), r, N, K));
      expect(used).toBeLessThan(0.2 * norm(valuesOf(known.w)));
    });
  });
});

describe('starts that choose entries', () => {
  it('pafi: every chosen entry is at most as large as every other', () => {
    scope(() => {
      const known = layer();
      const { adapter } = run('pafi', known);
      const { indices } = adapter.indexes as { indices: Int32Array };
      const half = indices.length / 2;
      expect(half).toBe(r * (N + K));
      const sizes = Array.from(valuesOf(known.w), Math.abs);
      const chosen = new Set(
        Array.from(
          { length: half },
          (_, i) => (indices[i] as number) * K + (indices[half + i] as number),
        ),
      );
      expect(chosen.size).toBe(half);
      const inside = Math.max(...[...chosen].map((at) => sizes[at] as number));
      const outside = Math.min(...sizes.filter((_, at) => !chosen.has(at)));
      expect(inside).toBeLessThanOrEqual(outside);
      const entries = [...chosen];
      expect(entries).toEqual([...entries].sort((a, b) => a - b));
      expect((adapter.parameters.weight as Tensor).readSync().every((v) => v === 0)).toBe(true);
    });
  });

  it.each([
    ['random', 1],
    ['largest', 2],
    ['smallest', 4],
  ] as const)('s2ft (%s, groups of %i): B is the change of the chosen columns', (by, group) => {
    scope(() => {
      const known = layer();
      const { adapter } = run('s2ft', known, { by, group });
      const a = (adapter.parameters.loraA as Tensor).readSync();
      const columns = Array.from({ length: r }, (_, i) =>
        Array.from(a.subarray(i * K, (i + 1) * K)).flatMap((v, k) => (v === 0 ? [] : [k])),
      );
      expect(columns.every((own) => own.length === 1)).toBe(true);
      const flat = columns.flat();
      expect(new Set(flat).size).toBe(r);
      expect(flat).toEqual([...flat].sort((x, y) => x - y));
      for (let i = 0; i < r; i++) {
        expect(a[i * K + (flat[i] as number)]).toBe(1 / S);
        expect((flat[i] as number) % group).toBe(i % group);
      }
      const b = Tensor.randn([N, r], { seed: 3, device });
      (adapter.parameters.loraB as Tensor).write(b.readSync());
      const update = updateOf(adapter, S);
      const values = b.readSync();
      const expected = Float64Array.from({ length: N * K }, (_, at) => {
        const i = flat.indexOf(at % K);
        return i < 0 ? 0 : (values[Math.floor(at / K) * r + i] as number);
      });
      expect(worst(update, expected)).toBeLessThan(1e-6);
      const w = valuesOf(known.w);
      const sizeOf = (g: number) =>
        Array.from({ length: N * group }, (_, at) => {
          const [n, k] = [Math.floor(at / group), g * group + (at % group)];
          return (w[n * K + k] as number) ** 2;
        }).reduce((x, y) => x + y, 0);
      const sizes = Array.from({ length: K / group }, (_, g) => sizeOf(g));
      const mine = flat.filter((_, i) => i % group === 0).map((k) => sizes[k / group] as number);
      const sorted = [...sizes].sort((x, y) => x - y);
      if (by === 'largest') expect(Math.min(...mine)).toBe(sorted.at(-mine.length));
      if (by === 'smallest') expect(Math.max(...mine)).toBe(sorted[mine.length - 1]);
    });
  });

  it('s2ft refuses a rank that is no multiple of its groups', () => {
    scope(() => {
      expect(() => run('s2ft', layer(), { group: 3 })).toThrow(/a multiple of group \(3\)/);
      expect(() => run('s2ft', layer(), { by: 'any' })).toThrow(
        /by must be one of random, largest, smallest/,
      );
    });
  });
});
