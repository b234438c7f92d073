/** A small network with LoRA, its curvature and what follows from it as dense matrices in float64. */
import { type Device, type LogitsPass, type ModelTape, Tensor } from '../../lib/index.js';
import { randomValues } from '../finetune/setup.js';

export const [K, H, C, R] = [5, 6, 3, 2];
const [S1, S2] = [1.5, 0.75];

export type Rows = number[][];

const rowsOf = (values: ArrayLike<number>, cols: number): Rows =>
  Array.from({ length: values.length / cols }, (_, i) =>
    Array.from({ length: cols }, (_, j) => values[i * cols + j] as number),
  );
const dot = (a: readonly number[], b: readonly number[]) =>
  a.reduce((sum, v, i) => sum + v * (b[i] as number), 0);
/** x · wᵀ */
const times = (x: Rows, w: Rows): Rows => x.map((row) => w.map((other) => dot(row, other)));

/** Frozen weights [H, K] and [C, H], and the factors of both layers. */
const W = [rowsOf(randomValues(H * K, 1), K), rowsOf(randomValues(C * H, 2), H)] as const;
export const FACTORS = {
  a1: rowsOf(randomValues(R * K, 3), K),
  b1: rowsOf(randomValues(H * R, 4), R),
  a2: rowsOf(randomValues(R * H, 5), H),
  b2: rowsOf(randomValues(C * R, 6), R),
};
export type Name = keyof typeof FACTORS;
export const NAMES: readonly Name[] = ['a1', 'b1', 'a2', 'b2'];

/** What is added to h or to the output of a layer, to differentiate by it. */
type Shift = Partial<Record<Name, Rows>>;

interface Forward {
  readonly logits: Rows;
  /** The inputs of each factor, one a row. */
  readonly inputs: Record<Name, Rows>;
}

/** Two layers with LoRA and tanh between them; logits are means over the T rows of an example. */
export function forward(x: Rows, T: number, shift: Shift = {}): Forward {
  const plus = (rows: Rows, name: Name) =>
    rows.map((row, m) => row.map((v, i) => v + (shift[name]?.[m]?.[i] ?? 0)));
  const layer = (input: Rows, w: Rows, a: Name, b: Name, scaling: number) => {
    const h = plus(times(input, FACTORS[a]), a);
    const added = times(h, FACTORS[b]);
    const y = times(input, w).map((row, m) =>
      row.map((v, i) => v + scaling * (added[m]?.[i] as number)),
    );
    return { h, y: plus(y, b) };
  };
  const one = layer(x, W[0], 'a1', 'b1', S1);
  const middle = one.y.map((row) => row.map(Math.tanh));
  const two = layer(middle, W[1], 'a2', 'b2', S2);
  const logits = Array.from({ length: x.length / T }, (_, n) =>
    Array.from({ length: C }, (_, c) => {
      let sum = 0;
      for (let t = 0; t < T; t++) sum += two.y[n * T + t]?.[c] as number;
      return sum / T;
    }),
  );
  return { logits, inputs: { a1: x, b1: one.h, a2: middle, b2: two.h } };
}

const softmax = (z: readonly number[]) => {
  const sizes = z.map((v) => Math.exp(v - Math.max(...z)));
  const sum = sizes.reduce((a, b) => a + b, 0);
  return sizes.map((v) => v / sum);
};

/** By row m and class c the gradient of an example's logit by what a factor gives, by differences in float64. */
function gradients(x: Rows, T: number, name: Name): Rows[] {
  const outputs = outputsOf(name);
  return x.map((_, m) => {
    const n = Math.floor(m / T);
    const found: Rows = Array.from({ length: C }, () => new Array<number>(outputs).fill(0));
    for (let i = 0; i < outputs; i++) {
      const at = (change: number) => {
        const rows = x.map((_, k) =>
          Array.from({ length: outputs }, (_, j) => (k === m && j === i ? change : 0)),
        );
        return forward(x, T, { [name]: rows }).logits[n] as number[];
      };
      const [up, down] = [at(1e-5), at(-1e-5)];
      for (let c = 0; c < C; c++) {
        (found[c] as number[])[i] = ((up[c] as number) - (down[c] as number)) / 2e-5;
      }
    }
    return found;
  });
}

const outputsOf = (name: Name) => (name.startsWith('a') ? R : name === 'b1' ? H : C);

const scalingOf = (name: Name) => (name === 'b1' ? S1 : name === 'b2' ? S2 : 1);

/** Jacobian of an example's logits by one factor, [C][outputs · inputs], output by output. */
function jacobian(x: Rows, T: number, n: number, name: Name): Rows {
  const { inputs } = forward(x, T);
  const g = gradients(x, T, name);
  return Array.from({ length: C }, (_, c) => {
    const outputs = outputsOf(name);
    const cols = (inputs[name][0] as number[]).length;
    const made = new Array<number>(outputs * cols).fill(0);
    for (let m = n * T; m < (n + 1) * T; m++) {
      for (let i = 0; i < outputs; i++) {
        for (let j = 0; j < cols; j++) {
          made[i * cols + j] =
            (made[i * cols + j] as number) +
            scalingOf(name) * (g[m]?.[c]?.[i] as number) * (inputs[name][m]?.[j] as number);
        }
      }
    }
    return made;
  });
}

const outer = (rows: Rows): Rows => {
  const n = (rows[0] as number[]).length;
  return Array.from({ length: n }, (_, i) =>
    Array.from({ length: n }, (_, j) =>
      rows.reduce((sum, row) => sum + (row[i] as number) * (row[j] as number), 0),
    ),
  );
};

/** The Kronecker-factored curvature of one factor as a dense matrix. */
export function kronecker(x: Rows, T: number, name: Name): Rows {
  const { inputs, logits } = forward(x, T);
  const g = gradients(x, T, name);
  // Σ over rows and classes of √p_c (g_c − Σ p_d g_d)
  const rooted = g.flatMap((classes, m) => {
    const p = softmax(logits[Math.floor(m / T)] as number[]);
    const mean = (classes[0] as number[]).map((_, i) =>
      classes.reduce((sum, row, d) => sum + (p[d] as number) * (row[i] as number), 0),
    );
    return classes.map((row, c) =>
      row.map((v, i) => scalingOf(name) * Math.sqrt(p[c] as number) * (v - (mean[i] as number))),
    );
  });
  const [a, b] = [outer(inputs[name]), outer(rooted)];
  const cols = a.length;
  return Array.from({ length: b.length * cols }, (_, i) =>
    Array.from({ length: b.length * cols }, (_, j) => {
      const [ib, ia] = [Math.floor(i / cols), i % cols];
      const [jb, ja] = [Math.floor(j / cols), j % cols];
      return ((b[ib]?.[jb] as number) * (a[ia]?.[ja] as number)) / x.length;
    }),
  );
}

/** The generalised Gauss-Newton matrix of one factor, Σ Jᵀ (diag(p) − p pᵀ) J. */
export function gaussNewton(x: Rows, T: number, name: Name): Rows {
  const { logits } = forward(x, T);
  const all = logits.flatMap((z, n) => {
    const p = softmax(z);
    const j = jacobian(x, T, n, name);
    const mean = (j[0] as number[]).map((_, i) =>
      j.reduce((s, row, d) => s + (p[d] as number) * (row[i] as number), 0),
    );
    return j.map((row, c) =>
      row.map((v, i) => Math.sqrt(p[c] as number) * (v - (mean[i] as number))),
    );
  });
  return outer(all);
}

/** Cholesky's factor of a + λI. */
function root(a: Rows, lambda: number): Rows {
  const l = a.map((row) => row.map(() => 0));
  for (let j = 0; j < a.length; j++) {
    for (let i = j; i < a.length; i++) {
      let sum = (a[i]?.[j] as number) + (i === j ? lambda : 0);
      for (let k = 0; k < j; k++) sum -= (l[i]?.[k] as number) * (l[j]?.[k] as number);
      (l[i] as number[])[j] = i === j ? Math.sqrt(sum) : sum / (l[j]?.[j] as number);
    }
  }
  return l;
}

export interface Oracle {
  readonly evidence: (lambda: number) => number;
  readonly covariance: (x: Rows, T: number, n: number, lambda: number) => Rows;
}

export function oracle(
  curvatures: Partial<Record<Name, Rows>>,
  x: Rows,
  T: number,
  labels: readonly number[],
): Oracle {
  const names = Object.keys(curvatures) as Name[];
  const { logits } = forward(x, T);
  const likelihood = labels.reduce(
    (sum, label, n) => sum + Math.log(softmax(logits[n] as number[])[label] as number),
    0,
  );
  const theta = names.flatMap((name) => FACTORS[name].flat());
  return {
    evidence: (lambda) => {
      const determinant = names.reduce((sum, name) => {
        const l = root(curvatures[name] as Rows, lambda);
        return sum + 2 * l.reduce((s, row, i) => s + Math.log(row[i] as number), 0);
      }, 0);
      return (
        likelihood -
        (lambda / 2) * dot(theta, theta) +
        (theta.length / 2) * Math.log(lambda) -
        determinant / 2
      );
    },
    covariance: (test, rows, n, lambda) => {
      const made = Array.from({ length: C }, () => new Array<number>(C).fill(0));
      for (const name of names) {
        const l = root(curvatures[name] as Rows, lambda);
        const j = jacobian(test, rows, n, name);
        const solved = j.map((row) => {
          const z: number[] = [];
          for (let i = 0; i < row.length; i++) {
            let sum = row[i] as number;
            for (let k = 0; k < i; k++) sum -= (l[i]?.[k] as number) * (z[k] as number);
            z.push(sum / (l[i]?.[i] as number));
          }
          return z;
        });
        for (let c = 0; c < C; c++) {
          for (let d = 0; d < C; d++) {
            (made[c] as number[])[d] =
              (made[c]?.[d] as number) + dot(solved[c] as number[], solved[d] as number[]);
          }
        }
      }
      return made;
    },
  };
}

/** The same network on a tape. */
export function network(device: Device) {
  const tensor = (rows: Rows) =>
    Tensor.from(Float32Array.from(rows.flat()), [rows.length, (rows[0] as number[]).length], {
      device,
    });
  const w = W.map(tensor);
  const factors = Object.fromEntries(NAMES.map((name) => [name, tensor(FACTORS[name])])) as Record<
    Name,
    Tensor
  >;
  const pass =
    (x: Rows, T: number): LogitsPass =>
    (t: ModelTape) => {
      const layer = (
        input: ReturnType<ModelTape['own']>,
        at: 0 | 1,
        a: Name,
        b: Name,
        scaling: number,
      ) => {
        const h = t.shrink(input, t.variable(factors[a]));
        return t.expand(input, w[at] as Tensor, h, t.variable(factors[b]), { scaling });
      };
      const middle = t.map(layer(t.own(tensor(x)), 0, 'a1', 'b1', S1), 'tanh');
      const y = layer(middle, 1, 'a2', 'b2', S2);
      const n = x.length / T;
      // The mean over T rows: [n, n · T] · y.
      const mean = Array.from({ length: n }, (_, i) =>
        Array.from({ length: n * T }, (_, m) => (Math.floor(m / T) === i ? 1 / T : 0)),
      );
      return t.product(t.own(tensor(mean)), y);
    };
  const dispose = () => {
    for (const each of [...w, ...Object.values(factors)]) each.dispose();
  };
  return { factors, pass, dispose };
}

export const inputs = (examples: number, T: number, seed: number): Rows =>
  rowsOf(randomValues(examples * T * K, seed), K);
