import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import { Tensor } from '../../../core/tensor.js';
import { FeatureMap } from '../../../ops/feature-map.js';
import type { AdapterMaker } from '../../definition/maker.js';

/** A function of the position in a vector. */
type Wave = (at: number) => number;

/**
 * An update `Σ_f c_f · left_f ⊗ right_f` over fixed functions, which several f may share: the
 * effect of a coefficient in Fourier or wavelet space on the weight.
 */
export interface Spectral {
  /** Terms of each f: the real part of exp(i(a + b)) has two. */
  readonly terms: readonly {
    /** [N, U] */
    readonly left: Tensor;
    /** [V, K] */
    readonly right: Tensor;
    readonly sign: number;
  }[];
  /** Maps the V functions of the columns to the coefficients. */
  readonly pick: FeatureMap;
  /** Maps the coefficients to the U functions of the rows. */
  readonly add: FeatureMap;
}

/** The distinct values, and the index of each entry among them. */
function distinct(values: Int32Array): { unique: number[]; index: Int32Array } {
  const place = new Map<number, number>();
  const index = values.map((value) => {
    const known = place.get(value) ?? place.size;
    place.set(value, known);
    return known;
  });
  return { unique: [...place.keys()], index };
}

/**
 * The tables of an update, made once on the host.
 * @param rows and `columns`: the function's number along each side, for every coefficient
 * @param terms functions by number, one pair per term
 */
export function spectralOf(
  { N, K, device }: AdapterMaker<object>,
  rows: Int32Array,
  columns: Int32Array,
  terms: readonly { left: (id: number) => Wave; right: (id: number) => Wave; sign: number }[],
): Spectral {
  const { unique: us, index: u } = distinct(rows);
  const { unique: vs, index: v } = distinct(columns);
  const lists: number[][] = us.map(() => []);
  u.forEach((id, f) => {
    lists[id]?.push(f);
  });
  return {
    terms: terms.map(({ left, right, sign }) => {
      const l = new Float32Array(N * us.length);
      us.forEach((id, i) => {
        const wave = left(id);
        for (let n = 0; n < N; n++) l[n * us.length + i] = wave(n);
      });
      const r = new Float32Array(vs.length * K);
      vs.forEach((id, i) => {
        const wave = right(id);
        for (let k = 0; k < K; k++) r[i * K + k] = wave(k);
      });
      return {
        left: Tensor.from(l, [N, us.length], { device }),
        right: Tensor.from(r, [vs.length, K], { device }),
        sign,
      };
    }),
    pick: FeatureMap.gather(v, vs.length, { device }),
    add: new FeatureMap({ inFeatures: rows.length, outFeatures: us.length, lists, device }),
  };
}

/** `y + scale · x · ΔWᵀ` for coefficients c [n]. */
export function addSpectral(
  t: Tape,
  y: Value,
  x: Value,
  c: Value,
  { terms, pick, add }: Spectral,
  scale: number,
): Value {
  return terms.reduce((sum, { left, right, sign }) => {
    const seen = t.features(t.shrink(x, t.constant(right)), pick);
    const h = t.features(t.multiply(seen, c), add);
    return t.add(sum, t.matmul(h, t.constant(left)), 1, sign * scale);
  }, y);
}
