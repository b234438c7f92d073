// Decompositions as numpy and torch gave them in float64, within the recorded bounds.
import { describe, expect, it } from 'vitest';
import {
  cholesky,
  qr,
  scope,
  solveTriangular,
  svd,
  symmetricEigen,
  Tensor,
} from '../../lib/index.js';
import { DEVICES } from '../conformance/operands.js';
import { type GoldenCase, loadCase } from './case-file.js';
import { tensorOf } from './library.js';
import { RuleBook } from './rules.js';

/** Σ over j of a[j, i] · b[j, k]: [n, m] of rows [p, n] and [p, m]. */
function outer(a: ArrayLike<number>, b: ArrayLike<number>, p: number, n: number, m: number) {
  const out = new Float64Array(n * m);
  for (let j = 0; j < p; j++) {
    for (let i = 0; i < n; i++) {
      const x = a[j * n + i] as number;
      for (let k = 0; k < m; k++) {
        out[i * m + k] = (out[i * m + k] as number) + x * (b[j * m + k] as number);
      }
    }
  }
  return out;
}

/** a · b of [n, n]. */
const product = (a: ArrayLike<number>, b: ArrayLike<number>, n: number) =>
  outer(turned(a, n, n), b, n, n, n);

interface Side {
  readonly values: Float64Array;
  readonly rows: Float64Array;
}

/** [m, n] as [n, m]. */
const turned = (a: ArrayLike<number>, n: number, m: number) =>
  Float64Array.from({ length: n * m }, (_, at) => a[(at % n) * m + Math.floor(at / n)] as number);

async function replay(id: string, run: (golden: GoldenCase, rules: RuleBook) => Promise<void>) {
  await scope(async () => {
    const golden = loadCase(id);
    const rules = new RuleBook(golden);
    await run(golden, rules);
    rules.finish();
  });
}

describe.each(DEVICES)('on %s', (device) => {
  const matrix = (golden: GoldenCase): Tensor => tensorOf(golden.tensor('in.a'), device);

  it.each(['linalg/svd_40x28', 'linalg/svd_graded', 'linalg/svd_rank_deficient'])('%s', (id) =>
    replay(id, async (golden, rules) => {
      const a = matrix(golden);
      const [N = 0, K = 0] = a.shape;
      const k = golden.params.k as number;
      rules.check('out.s', svd(a).s);
      const { u, s, v } = svd(a, { r: k });
      const [left, right] = [turned(await u.read(), N, k), await v.read()];
      const scaled = Float64Array.from(
        left,
        (value, at) => value * (s[Math.floor(at / N)] as number),
      );
      rules.check('out.low_rank', outer(scaled, right, k, N, K));
      rules.check('out.left_projector', outer(left, left, k, N, N));
      rules.check('out.right_projector', outer(right, right, k, K, K));
    }),
  );

  it('linalg/eigh_singular', () =>
    replay('linalg/eigh_singular', async (golden, rules) => {
      const { values, vectors } = symmetricEigen(matrix(golden));
      rules.check('out.values', values);
      const n = values.length;
      const rows = await vectors.read();
      const scaled = Float64Array.from(
        rows,
        (x, at) => x * Math.sqrt(Math.max(0, values[Math.floor(at / n)] as number)),
      );
      rules.check('out.sqrt', outer(rows, scaled, n, n, n));
    }));

  it('linalg/qr_tall', () =>
    replay('linalg/qr_tall', async (golden, rules) => {
      const { q, r } = qr(matrix(golden));
      rules.check('out.q', await q.read());
      rules.check('out.r', await r.read());
    }));

  it('linalg/cholesky_16', () =>
    replay('linalg/cholesky_16', async (golden, rules) => {
      const a = matrix(golden);
      const l = cholesky(a);
      rules.check('out.l', await l.read());
      const [n = 0] = a.shape;
      const identity = Float32Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0));
      const half = solveTriangular(l, Tensor.from(identity, [n, n], { device }));
      const inverse = await solveTriangular(l, half, { transposed: true }).read();
      const unit = product(await a.read(), inverse, n);
      for (const [i, value] of unit.entries()) expect(value).toBeCloseTo(identity[i] as number, 4);
    }));

  it('linalg/sylvester_6, from two symmetric eigenproblems', () =>
    replay('linalg/sylvester_6', async (golden, rules) => {
      const n = 6;
      const parts = [0, 1, 2].map((i) => golden.numbers('in.a').slice(i * n * n, (i + 1) * n * n));
      const [left, right] = parts.slice(0, 2).map((part) => {
        const a = Tensor.from(Float32Array.from(part), [n, n], { device });
        const { values, vectors } = symmetricEigen(a);
        return { values, rows: Float64Array.from(vectors.readSync()) };
      }) as [Side, Side];
      const c = parts[2] as Float64Array;
      // left.rows · c · right.rowsᵀ, divided by the sums of values, and turned back.
      const mid = product(product(left.rows, c, n), turned(right.rows, n, n), n);
      const x = mid.map(
        (value, at) =>
          value / ((left.values[Math.floor(at / n)] as number) + (right.values[at % n] as number)),
      );
      rules.check('out.x', product(outer(left.rows, x, n, n, n), right.rows, n));
    }));
});
