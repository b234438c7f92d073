// Laplace-LoRA against dense matrices in float64: curvature, evidence, predictive covariance.
import { afterEach, describe, expect, it } from 'vitest';
import {
  choiceLogits,
  type Device,
  type LabelledPass,
  LaplacePosterior,
  type LogitsPass,
  laplace,
  type ModelTape,
  memoryUsage,
  predictiveProbabilities,
  scope,
  synchronize,
  Tensor,
} from '../../lib/index.js';
import {
  randomValues,
  setValues,
  type TinyTrainer,
  tinyTrainer,
  valuesOf,
} from '../finetune/setup.js';

const [K, H, C, R] = [5, 6, 3, 2];
const [S1, S2] = [1.5, 0.75];

type Rows = number[][];

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
const FACTORS = {
  a1: rowsOf(randomValues(R * K, 3), K),
  b1: rowsOf(randomValues(H * R, 4), R),
  a2: rowsOf(randomValues(R * H, 5), H),
  b2: rowsOf(randomValues(C * R, 6), R),
};
type Name = keyof typeof FACTORS;
const NAMES: readonly Name[] = ['a1', 'b1', 'a2', 'b2'];

/** What is added to h or to the output of a layer, to differentiate by it. */
type Shift = Partial<Record<Name, Rows>>;

interface Forward {
  readonly logits: Rows;
  /** The inputs of each factor, one a row. */
  readonly inputs: Record<Name, Rows>;
}

/** Two layers with LoRA and tanh between them; logits are means over the T rows of an example. */
function forward(x: Rows, T: number, shift: Shift = {}): Forward {
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
function kronecker(x: Rows, T: number, name: Name): Rows {
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
function gaussNewton(x: Rows, T: number, name: Name): Rows {
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

interface Oracle {
  readonly evidence: (lambda: number) => number;
  readonly covariance: (x: Rows, T: number, n: number, lambda: number) => Rows;
}

function oracle(
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
function network(device: Device) {
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

const inputs = (examples: number, T: number, seed: number): Rows =>
  rowsOf(randomValues(examples * T * K, seed), K);

const near = (mine: number, expected: number, scale: number, what: string) =>
  expect(Math.abs(mine - expected), `${what}: ${mine}, ${expected}`).toBeLessThan(2e-4 * scale);

function compare(
  posterior: LaplacePosterior,
  own: Oracle,
  test: Rows,
  T: number,
  pass: LogitsPass,
) {
  for (const lambda of [0.01, 0.3, 1, 20]) {
    const evidence = own.evidence(lambda);
    near(
      posterior.logMarginalLikelihood(lambda),
      evidence,
      Math.abs(evidence),
      `evidence at ${lambda}`,
    );
    posterior.priorPrecision = lambda;
    const { examples, classes, logits, covariance } = posterior.predict(pass);
    expect([examples, classes]).toEqual([test.length / T, C]);
    for (let n = 0; n < examples; n++) {
      const expected = own.covariance(test, T, n, lambda);
      const scale = Math.max(...expected.map((row, c) => row[c] as number));
      for (let c = 0; c < C; c++) {
        near(logits[n * C + c] as number, forward(test, T).logits[n]?.[c] as number, 1, 'logit');
        for (let d = 0; d < C; d++) {
          near(
            covariance[(n * C + c) * C + d] as number,
            expected[c]?.[d] as number,
            scale,
            `${n} ${c} ${d} at ${lambda}`,
          );
        }
      }
    }
  }
}

describe.each(['cpu', 'reference'] as const)('laplace on %s', (device) => {
  it.each([
    ['an example a row', 1],
    ['examples of three rows', 3],
  ])('equals Kronecker products, determinants and solves: %s', async (_, T) => {
    const { factors, pass, dispose } = network(device);
    const batches = [inputs(4, T, 21), inputs(3, T, 22)] as const;
    const labels = [0, 2, 1, 1, 2, 0, 1];
    const posterior = await laplace(
      [
        { pass: pass(batches[0], T), labels: labels.slice(0, 4) },
        { pass: pass(batches[1], T), labels: Int32Array.from(labels.slice(4)) },
      ],
      { rank: H },
    );
    expect(posterior.examples).toBe(7);
    expect(posterior.parameters).toBe(
      Object.values(factors).reduce((sum, { size }) => sum + size, 0),
    );
    const all = batches.flat();
    const curvatures = Object.fromEntries(NAMES.map((name) => [name, kronecker(all, T, name)]));
    const test = inputs(2, T, 33);
    compare(posterior, oracle(curvatures, all, T, labels), test, T, pass(test, T));
    posterior.dispose();
    dispose();
  });

  it.each(NAMES)(
    'equals the Gauss-Newton matrix where a Kronecker product does: %s alone',
    async (name) => {
      // The same example several times: inputs and gradients do not vary together.
      const { factors, pass, dispose } = network(device);
      const one = inputs(1, 1, 40);
      const x = [one, one, one].flat();
      const labels = [2, 0, 2];
      const posterior = await laplace([{ pass: pass(x, 1), labels }], {
        rank: H,
        trained: [factors[name]],
      });
      const own = oracle({ [name]: gaussNewton(x, 1, name) }, x, 1, labels);
      const test = inputs(2, 1, 41);
      compare(posterior, own, test, 1, pass(test, 1));
      posterior.dispose();
      dispose();
    },
  );

  it('needs few directions where the data have few', async () => {
    const { pass, dispose } = network(device);
    const x = inputs(2, 1, 50);
    const labels = [1, 2];
    // Two examples: at most two directions of inputs; of gradients two an example and class.
    const posterior = await laplace([{ pass: pass(x, 1), labels }], { rank: 4 });
    const curvatures = Object.fromEntries(NAMES.map((name) => [name, kronecker(x, 1, name)]));
    const test = inputs(2, 1, 51);
    compare(posterior, oracle(curvatures, x, 1, labels), test, 1, pass(test, 1));
    posterior.dispose();
    dispose();
  });

  it('chooses the prior with the largest evidence', async () => {
    const { pass, dispose } = network(device);
    const x = inputs(6, 1, 60);
    const labels = forward(x, 1).logits.map((z) => z.indexOf(Math.max(...z)));
    const posterior = await laplace([{ pass: pass(x, 1), labels }], { rank: H });
    const best = posterior.fitPriorPrecision();
    expect(posterior.priorPrecision).toBe(best);
    const curvatures = Object.fromEntries(NAMES.map((name) => [name, kronecker(x, 1, name)]));
    const { evidence } = oracle(curvatures, x, 1, labels);
    const value = posterior.logMarginalLikelihood();
    for (const factor of [1e-3, 0.5, 0.9, 1.1, 2, 1e3]) {
      expect(posterior.logMarginalLikelihood(best * factor)).toBeLessThan(value);
      expect(evidence(best * factor)).toBeLessThan(evidence(best));
    }
    posterior.dispose();
    dispose();
  });
});

describe('predictiveProbabilities', () => {
  it('averages the softmax over draws', () => {
    // Two classes: the logistic function of a normal difference, by quadrature.
    const covariance = Float64Array.from([2, 0.5, 0.5, 1]);
    const logits = Float64Array.from([1.2, -0.3]);
    const [mean, sigma] = [1.5, Math.sqrt(2 + 1 - 2 * 0.5)];
    let expected = 0;
    for (let z = -8; z < 8; z += 1e-3) {
      const density = Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI);
      expected += (density / (1 + Math.exp(-(mean + sigma * z)))) * 1e-3;
    }
    const prediction = { examples: 1, classes: 2, logits, covariance };
    const [p = 0, q = 0] = predictiveProbabilities(prediction, { samples: 200_000, seed: 3 });
    expect(p + q).toBeCloseTo(1, 10);
    expect(Math.abs(p - expected)).toBeLessThan(5 * (0.25 / Math.sqrt(200_000)) * 2);
    expect(p).toBeLessThan(1 / (1 + Math.exp(-1.5)));
    const again = predictiveProbabilities(prediction, { samples: 100, seed: 3 });
    expect(predictiveProbabilities(prediction, { samples: 100, seed: 3 })).toEqual(again);
    const sure = { ...prediction, covariance: new Float64Array(4) };
    expect(predictiveProbabilities(sure, { samples: 3 })[0]).toBeCloseTo(
      1 / (1 + Math.exp(-1.5)),
      10,
    );
    // A singular covariance: both logits move together, and nothing changes.
    const together = { ...prediction, covariance: Float64Array.from([1, 1, 1, 1]) };
    expect(predictiveProbabilities(together, { samples: 50 })[0]).toBeCloseTo(
      1 / (1 + Math.exp(-1.5)),
      3,
    );
    expect(() => predictiveProbabilities(prediction, { samples: 0 })).toThrow(
      'samples must be an integer',
    );
    const broken = { ...prediction, covariance: Float64Array.from([Number.NaN, 0, 0, 1]) };
    expect(() => predictiveProbabilities(broken)).toThrow('the covariance must be finite');
  });
});

const made: TinyTrainer[] = [];
afterEach(() => {
  for (const each of made.splice(0)) each.dispose();
});

function decoderCase(method: Readonly<Record<string, unknown>> = {}) {
  const own = tinyTrainer({}, { format: 'nf4' }, { adapter: method });
  made.push(own);
  const { trainer } = own;
  setValues(
    trainer,
    randomValues(valuesOf(trainer).length, 11).map((value) => value / 4),
  );
  const { decoder, adapters, data } = trainer;
  const { T } = data.train;
  const adapted = { adapters: adapters.byModule };
  const logitsOf =
    (indices: number[], tokens: number[]): LogitsPass =>
    (tape) => {
      const { ids } = data.train.batch(indices);
      const { features } = decoder.forward(tape, { ids, B: indices.length, T }, adapted);
      const positions = indices.map((i) => (i % 2 === 0 ? T - 1 : 2));
      return choiceLogits(decoder, tape, features, { positions, tokens });
    };
  return { trainer, decoder, data, T, adapted, logitsOf };
}

describe('a language model', () => {
  it('gives the logits of its answers and their gradients', () => {
    const { trainer, decoder, data, T, adapted } = decoderCase();
    const [indices, tokens] = [
      [0, 1, 4],
      [3, 17, 5],
    ] as const;
    const positions = [T - 1, 2, 0];
    const weights = randomValues(9, 8);
    const { ids } = data.train.batch(indices);
    const { vocabSize } = decoder.config;
    scope(() => {
      const run = (few: boolean) =>
        trainer.trainer.rehearse((t) => {
          const { features } = decoder.forward(t, { ids, B: 3, T }, adapted);
          const chosen = few
            ? choiceLogits(decoder, t, features, { positions, tokens: [...tokens] })
            : decoder.logits(t, features);
          const size = few ? 9 : 3 * T * vocabSize;
          const mask = new Float32Array(size);
          for (let b = 0; b < 3; b++) {
            for (let c = 0; c < 3; c++) {
              const at = (b * T + (positions[b] as number)) * vocabSize + (tokens[c] as number);
              mask[few ? 3 * b + c : at] = weights[3 * b + c] as number;
            }
          }
          const flat = t.reshape(chosen, [1, size]);
          const picked = t.multiply(flat, t.own(Tensor.from(mask, [1, size], { device: 'cpu' })));
          return t.reshape(t.sum(picked, 1), [1]);
        });
      const [few, all] = [run(true), run(false)];
      near(few.loss.readSync()[0] as number, all.loss.readSync()[0] as number, 1, 'loss');
      few.gradients.forEach((gradient, p) => {
        const [a, b] = [gradient, all.gradients[p]].map((g) => (g as Tensor).readSync()) as [
          Float32Array,
          Float32Array,
        ];
        const scale = Math.max(...b.map(Math.abs));
        a.forEach((value, i) => {
          near(value, b[i] as number, scale, `gradient ${p}`);
        });
      });
    });
  });

  it('has a posterior, and frees what it made', async () => {
    const { logitsOf } = decoderCase();
    const tokens = [3, 17, 5];
    const passes: LabelledPass[] = [
      { pass: logitsOf([0, 1], tokens), labels: [0, 2] },
      { pass: logitsOf([2, 3, 4], tokens), labels: [1, 1, 0] },
    ];
    const use = async () => {
      using posterior = await laplace(passes, { rank: 4 });
      posterior.fitPriorPrecision();
      posterior.priorPrecision = 1;
      const { covariance, examples, classes } = posterior.predict(logitsOf([5, 6], tokens));
      expect([examples, classes, covariance.length]).toEqual([2, 3, 18]);
      for (const n of [0, 1]) {
        for (const c of [0, 1, 2]) {
          const at = (a: number, b: number) => covariance[n * 9 + 3 * a + b] as number;
          expect(at(c, c)).toBeGreaterThan(0);
          expect(at(c, (c + 1) % 3)).toBe(at((c + 1) % 3, c));
          expect(at(c, (c + 1) % 3) ** 2).toBeLessThanOrEqual(
            at(c, c) * at((c + 1) % 3, (c + 1) % 3),
          );
        }
      }
    };
    const live = async () => {
      await synchronize('cpu');
      return memoryUsage('cpu').liveTensors;
    };
    await use();
    const before = await live();
    await use();
    expect(await live()).toBe(before);
  });

  it('rejects what it cannot do, and works afterwards', async () => {
    const { logitsOf, decoder, adapted, data, T } = decoderCase();
    const tokens = [3, 17, 5];
    const pass = logitsOf([0, 1], tokens);
    const refused = (promise: Promise<unknown>, text: string) =>
      expect(promise).rejects.toThrow(text);
    await refused(laplace([]), 'passes must be at least one');
    await refused(laplace(undefined as never), 'passes must be an array');
    await refused(laplace([{ pass, labels: [0] }]), 'labels must be of 2 examples, got 1');
    await refused(
      laplace([{ pass, labels: [0, 3] }]),
      'labels[1] must be an integer from 0 to 2, got 3',
    );
    await refused(
      laplace([{ pass, labels: [0, 1] }], { priorPrecision: 0 }),
      'priorPrecision must be above 0',
    );
    await refused(laplace([{ pass, labels: [0, 1] }], { rank: 0 }), 'rank must be an integer');
    await refused(
      laplace([{ pass: (t) => t.own(Tensor.zeros([4])), labels: [0] }]),
      'the logits must be',
    );
    await refused(
      laplace([{ pass: (t) => t.own(Tensor.zeros([1, 2])), labels: [0] }]),
      'with trained factors',
    );
    const other = decoderCase({ method: 'dora' });
    await refused(
      laplace([{ pass: other.logitsOf([0], tokens), labels: [0] }]),
      'the trained tensors must be',
    );
    const choose = (choice: object) => () =>
      scope(() =>
        laplace([
          {
            labels: [0],
            pass: (tape) => {
              const { ids } = data.train.batch([0]);
              const { features } = decoder.forward(tape, { ids, B: 1, T }, adapted);
              return choiceLogits(decoder, tape, features, choice as never);
            },
          },
        ]),
      );
    await refused(
      choose({ positions: [T], tokens })(),
      `positions[0] must be an integer from 0 to ${T - 1}`,
    );
    await refused(choose({ positions: [0], tokens: [1e6] })(), 'tokens[0] must be an integer');
    await refused(choose({ positions: [], tokens })(), 'positions must be an array of 1 numbers');
    expect(() => new LaplacePosterior(undefined as never, 1)).toThrow('made by laplace');
    const posterior = await laplace([{ pass, labels: [0, 1] }]);
    expect(() => {
      posterior.priorPrecision = -1;
    }).toThrow('above 0, got -1');
    posterior.dispose();
    expect(() => posterior.predict(pass)).toThrow('this must be live');
  });
});
