/** Formulas in float64 of methods that route tokens to experts, or mix parts of themselves. */
import { type Formula, Matrix, type OracleLayer, parts, scaling } from './adapter-layer.js';

/** Rows [from, to) of a matrix. */
const rows = (m: Matrix, from: number, to: number): Matrix =>
  Matrix.of(to - from, m.cols, (i, j) => m.at(from + i, j));

const columns = (m: Matrix, from: number, to: number): Matrix =>
  Matrix.of(m.rows, to - from, (i, j) => m.at(i, from + j));

const input = (inputs: Readonly<Record<string, Matrix>>, name: string): Matrix => {
  const found = inputs[name];
  if (found === undefined) throw new Error(`no input ${name}`);
  return found;
};

/** Softmax of each row over its k largest; k = 0 keeps all. */
function softmaxTop(logits: Matrix, k: number): Matrix {
  return Matrix.of(logits.rows, logits.cols, (i, e) => {
    const row = Array.from({ length: logits.cols }, (_, j) => logits.at(i, j));
    const kept = largest(row, k === 0 ? row.length : k);
    if (!kept.includes(e)) return 0;
    const sum = kept.reduce((total, j) => total + Math.exp(row[j] as number), 0);
    return Math.exp(row[e] as number) / sum;
  });
}

const largest = (row: readonly number[], k: number): number[] =>
  row
    .map((_, j) => j)
    .sort((a, b) => (row[b] as number) - (row[a] as number) || a - b)
    .slice(0, k);

/** Σₑ gₑ · scaleₑ · (x · Aₑᵀ) · Bₑᵀ, experts one by one. */
function mixture(
  x: Matrix,
  gates: Matrix,
  experts: readonly { a: Matrix; b: Matrix; scale: number }[],
): Matrix {
  const N = experts[0]?.b.rows ?? 0;
  return experts.reduce(
    (sum, { a, b, scale }, e) => {
      const own = x.times(a.transposed()).times(b.transposed());
      return sum.plus(
        own.map((v, m) => v * gates.at(gates.rows === 1 ? 0 : m, e)),
        scale,
      );
    },
    Matrix.zeros(x.rows, N),
  );
}

/** Experts of given ranks and scalings, whose factors lie side by side. */
function expertsOf(layer: OracleLayer): { a: Matrix; b: Matrix; scale: number }[] {
  const [a, b] = parts(layer, 'loraA', 'loraB');
  const { ranks, scalings } = layer.config;
  let from = 0;
  return (ranks as number[]).map((r, e) => {
    const own = { a: rows(a, from, from + r), b: columns(b, from, from + r) };
    from += r;
    return { ...own, scale: (scalings as number[])[e] as number };
  });
}

/** Poly's mixed factors of one task, [K, r] and [r, N]. */
function polyFactors(layer: OracleLayer, task: (s: number) => number): { a: Matrix; b: Matrix } {
  const { N, K, config } = layer;
  const [loraA, loraB, logits] = parts(layer, 'loraA', 'loraB', 'logits');
  const { r, nTasks, nSkills, nSplits } = config;
  const weight = (q: number, s: number): number => {
    let sum = 0;
    for (let k = 0; k < nTasks; k++) {
      const open = (skill: number) => 1 / (1 + Math.exp(-logits.at(k, q * nSkills + skill)));
      let total = 0;
      for (let skill = 0; skill < nSkills; skill++) total += open(skill);
      sum += (task(k) * open(s)) / total;
    }
    return sum;
  };
  const [d, e] = [K / nSplits, N / nSplits];
  const a = Matrix.of(K, r, (k, j) => {
    const q = Math.floor(k / d);
    let sum = 0;
    for (let s = 0; s < nSkills; s++) {
      sum += weight(q, s) * (loraA.data[((q * nSkills + s) * d + (k % d)) * r + j] as number);
    }
    return sum;
  });
  const b = Matrix.of(r, N, (j, n) => {
    const q = Math.floor(n / e);
    let sum = 0;
    for (let s = 0; s < nSkills; s++) {
      sum += weight(q, s) * (loraB.data[((q * nSkills + s) * r + j) * e + (n % e)] as number);
    }
    return sum;
  });
  return { a, b };
}

export const routedOracle: Readonly<Record<string, Formula>> = {
  arrow: (layer) => {
    const [prototypes] = parts(layer, 'prototypes');
    const { topK, temperature } = layer.config;
    return {
      update: (x) => {
        const similarity = x.times(prototypes.transposed()).map(Math.abs);
        return mixture(
          x,
          softmaxTop(
            similarity.map((v) => v / temperature),
            topK,
          ),
          expertsOf(layer),
        );
      },
    };
  },
  dylora: (layer) => {
    const [a, b] = parts(layer, 'loraA', 'loraB');
    const { r, loraAlpha, rank } = layer.config;
    const kept = rank || r;
    const update = columns(b, 0, kept).times(rows(a, 0, kept));
    return { weight: layer.w.plus(update, loraAlpha / kept) };
  },
  hydralora: (layer) => {
    const [a, b, router] = parts(layer, 'loraA', 'loraB', 'router');
    const { experts, r, topK } = layer.config;
    return {
      update: (x) =>
        mixture(
          x,
          softmaxTop(x.times(router.transposed()), topK),
          Array.from({ length: experts }, (_, e) => ({
            a,
            b: columns(b, e * r, (e + 1) * r),
            scale: scaling(layer),
          })),
        ),
    };
  },
  kadaptation: (layer) => {
    const [u, v] = parts(layer, 'u', 'v');
    const { n, terms, leftRank, scale } = layer.config;
    const { left, leftA, leftB } = layer.p;
    // Entry (row, col) of the left factor of a term: stored whole, or as a product.
    const entry = (i: number, row: number, col: number): number => {
      if (left !== undefined) return left.data[(i * n + row) * n + col] as number;
      let sum = 0;
      for (let s = 0; s < leftRank; s++) {
        const a = leftA?.data[(i * n + row) * leftRank + s] as number;
        sum += a * (leftB?.data[(i * leftRank + s) * n + col] as number);
      }
      return sum;
    };
    const [height, width] = [layer.N / n, layer.K / n];
    return {
      weight: layer.w.map((value, row, col) => {
        let sum = 0;
        for (let i = 0; i < terms; i++) {
          const outer = entry(i, Math.floor(row / height), Math.floor(col / width));
          sum += outer * u.at(row % height, i) * v.at(i, col % width);
        }
        return value + scale * sum;
      }),
    };
  },
  lily: (layer) => {
    const [a, b, router] = parts(layer, 'loraA', 'loraB', 'router');
    const { experts, r } = layer.config;
    return {
      update: (x) => {
        const h = x.times(a.transposed());
        const gates = softmaxTop(h.times(router.transposed()), 0);
        const mean = Array.from({ length: experts }, (_, e) => {
          let sum = 0;
          for (let m = 0; m < gates.rows; m++) sum += gates.at(m, e);
          return sum / gates.rows;
        });
        const mixed = Matrix.of(r, b.cols, (j, n) =>
          mean.reduce((sum, g, e) => sum + g * b.at(e * r + j, n), 0),
        );
        return h.times(mixed).map((value) => value * layer.config.scaling);
      },
    };
  },
  loramoe: (layer) => {
    const [a, b, router] = parts(layer, 'loraA', 'loraB', 'router');
    const { experts, r, topK } = layer.config;
    return {
      update: (x) =>
        mixture(
          x,
          softmaxTop(x.times(router.transposed()), topK),
          Array.from({ length: experts }, (_, e) => ({
            a: rows(a, e * r, (e + 1) * r),
            b: columns(b, e * r, (e + 1) * r),
            scale: scaling(layer),
          })),
        ),
    };
  },
  multilora: (layer) => {
    const [a, b, scale] = parts(layer, 'loraA', 'loraB', 'scale');
    const { n, r } = layer.config;
    const { N } = layer;
    let weight = layer.w;
    for (let i = 0; i < n; i++) {
      const own = rows(b, i * N, (i + 1) * N).times(rows(a, i * r, (i + 1) * r));
      weight = weight.plus(own.scaleRows(rows(scale, i, i + 1).data));
    }
    return { weight };
  },
  poly: (layer) => ({
    update: (x, inputs) => {
      const tasks = input(inputs, 'tasks');
      const out = Array.from({ length: x.rows }, (_, m) => {
        const { a, b } = polyFactors(layer, (k) => tasks.at(m, k));
        return rows(x, m, m + 1)
          .times(a)
          .times(b);
      });
      return Matrix.of(x.rows, layer.N, (m, n) => (out[m] as Matrix).at(0, n) / layer.config.r);
    },
  }),
  'x-lora': (layer) => {
    const { topK, softmaxTopK, globalScaling } = layer.config;
    const experts = expertsOf(layer);
    return {
      update: (x, inputs) => {
        let gates = input(inputs, 'gates');
        if (topK > 0) {
          gates = softmaxTopK
            ? softmaxTop(gates, topK)
            : gates.map((v, m, e) => {
                const row = Array.from({ length: gates.cols }, (_, j) => gates.at(m, j));
                return largest(row, topK).includes(e) ? v : 0;
              });
        }
        return mixture(x, gates, experts).map((v) => v * globalScaling);
      },
    };
  },
};
