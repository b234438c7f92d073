/** The published formulas of the methods whose update is a function of the weight, or dense. */
import { activationOracle } from './activations.js';
import { type Formula, Matrix, type OracleLayer, parts } from './adapter-layer.js';

const hadamard = (a: Matrix, b: Matrix): Matrix => a.map((v, i, j) => v * b.at(i, j));

/** A table of the layer. */
function table({ indexes }: OracleLayer, name: string): Int32Array {
  const found = indexes[name];
  if (found === undefined) throw new Error(`no table ${name}`);
  return found;
}

/** The coefficients at their places in an [N, K] of zeros. */
function scattered(layer: OracleLayer, places: ArrayLike<number>, values: Matrix): Matrix {
  const full = Matrix.zeros(layer.N, layer.K);
  Array.from(places).forEach((place, i) => {
    full.data[place] = (full.data[place] as number) + (values.data[i] as number);
  });
  return full;
}

/** The first columns of H₁ H₂ …, of the reflections that take p to an upper triangle. */
function householderBasis(p: Matrix): Matrix {
  const { rows: N, cols: r } = p;
  let rest = p;
  let product = Matrix.identity(N);
  for (let k = 0; k < r; k++) {
    const x = Matrix.of(N, 1, (i) => (i < k ? 0 : rest.at(i, k)));
    const norm = Math.sqrt(x.data.reduce((sum, v) => sum + v * v, 0));
    const v = x.map((value, i) => (i === k ? value + Math.sign(value) * norm : value));
    const length = v.data.reduce((sum, value) => sum + value * value, 0);
    const reflect = Matrix.identity(N).plus(v.times(v.transposed()), -2 / length);
    rest = reflect.times(rest);
    product = product.times(reflect);
  }
  return Matrix.of(N, r, (i, j) => product.at(i, j));
}

const [root3, root7] = [Math.sqrt(3), Math.sqrt(7)];
const db2 = [1 + root3, 3 + root3, 3 - root3, 1 - root3].map((v) => v / (4 * Math.SQRT2));
/** Low-pass filters that have a closed form. */
const lowPass: Readonly<Record<string, readonly number[]>> = {
  db1: [Math.SQRT1_2, Math.SQRT1_2],
  db2,
  sym2: db2,
  coif1: [1 - root7, 5 + root7, 14 + 2 * root7, 14 - 2 * root7, 1 - root7, -3 + root7].map(
    (v) => v / (16 * Math.SQRT2),
  ),
};

/**
 * One level of the inverse transform of coefficients [N, K], as the peer has it: padded by the filter's length less two and to
 * even sides, cut into quarters, each spread by its filters, cut at both ends.
 */
function inverseWavelet(coefficients: Matrix, name: string): Matrix {
  const low = lowPass[name];
  if (low === undefined) throw new Error(`no filter of ${name}`);
  const L = low.length;
  const high = low.map((_, i) => (-1) ** i * (low[L - 1 - i] as number));
  const { rows: N, cols: K } = coefficients;
  const even = (size: number): number => size + (size % 2);
  const [rows, cols] = [even(N + L - 2), even(K + L - 2)];
  const [top, left] = [Math.floor((rows - N) / 2), Math.floor((cols - K) / 2)];
  const whole = Matrix.zeros(rows + L - 2, cols + L - 2);
  for (let n = 0; n < N; n++) {
    for (let k = 0; k < K; k++) {
      const value = coefficients.at(n, k);
      if (value === 0) continue;
      const [lower, right] = [n + top >= rows / 2, k + left >= cols / 2];
      const [i, j] = [(n + top) % (rows / 2), (k + left) % (cols / 2)];
      // The quarters on the right are differences of rows, those below of columns.
      const [down, across] = [right ? high : low, lower ? high : low];
      for (let p = 0; p < L; p++) {
        for (let q = 0; q < L; q++) {
          const at = (2 * i + p) * whole.cols + 2 * j + q;
          const part = value * (down[p] as number) * (across[q] as number);
          whole.data[at] = (whole.data[at] as number) + part;
        }
      }
    }
  }
  return Matrix.of(N, K, (n, k) => whole.at(n + L - 2, k + L - 2));
}

/** VB-LoRA: rows of the bank, weighted by a softmax of the chosen logits. */
function mixtures(logits: Matrix, bank: Matrix, top: Int32Array, k: number): Matrix {
  const rows = top.length / k;
  return Matrix.of(rows, bank.cols, (row, col) => {
    const chosen = [...top.slice(row * k, (row + 1) * k)];
    const e = chosen.map((j) => Math.exp(logits.data[row * bank.rows + j] as number));
    const sum = e.reduce((a, b) => a + b, 0);
    return chosen.reduce((v, j, i) => v + ((e[i] as number) / sum) * bank.at(j, col), 0);
  });
}

/** What DEFT puts in; PaRa nothing. */
const putIn = ({ p, K, config }: OracleLayer): Matrix =>
  p.inject?.map((v) => v * config.scaling) ?? Matrix.zeros(config.r, K);

export const denseOracle: Readonly<Record<string, Formula>> = {
  adamss: (layer) => {
    const { N, K, config } = layer;
    const [a, b, basis] = parts(layer, 'a', 'b', 'basis');
    const subspace = table(layer, 'subspace');
    const q = config.subspaceRank as number;
    const core = Matrix.of(N, a.cols, (n, k) => {
      let sum = 0;
      for (let j = 0; j < q; j++) sum += b.at(n, j) * a.at((subspace[n] as number) * q + j, k);
      return sum;
    });
    const weight = layer.w.plus(core.times(basis));
    if (!config.withBias) return { weight };
    const shift = core.times(parts(layer, 'basisBias')[0].transposed());
    return {
      weight: Matrix.of(N, K, (n, k) => weight.at(n, k)),
      bias: layer.bias.map((v, n) => v + shift.at(n, 0)),
    };
  },
  deft: (layer) => {
    const [p] = parts(layer, 'p');
    const taken = p
      .map((v) => Math.max(v, 0))
      .transposed()
      .times(layer.w);
    return { weight: layer.w.plus(p.times(putIn(layer).plus(taken, -1))) };
  },
  glora: ({ w, N, K, bias, p }) => {
    // A path is a product, a value a row, one value, or nothing.
    const path = (name: 'a' | 'b' | 'c', rows: number, cols: number): Matrix => {
      const [left, right, x] = [p[`${name}D`], p[`${name}U`], p[`${name}X`]];
      if (left !== undefined && right !== undefined) return left.times(right);
      return Matrix.of(rows, cols, (i) => x?.data[x.data.length > 1 ? i : 0] ?? 0);
    };
    const vector = (name: 'd' | 'e', n: number): number => {
      const values = p[name]?.data ?? [0];
      return values[values.length > 1 ? n : 0] as number;
    };
    const weight = w.plus(hadamard(w, path('a', N, K))).plus(path('b', N, K));
    const shift = w.times(path('c', K, 1));
    const shifted = Float64Array.from({ length: N }, (_, n) => {
      const b = bias[n] as number;
      return b + b * vector('d', n) + vector('e', n) + shift.at(n, 0);
    });
    return { weight, bias: shifted };
  },
  hira: (layer) => {
    const [a, b] = parts(layer, 'hiraA', 'hiraB');
    return { weight: layer.w.plus(hadamard(layer.w, b.times(a))) };
  },
  loha: (layer) => {
    const [a1, b1, a2, b2] = parts(layer, 'w1A', 'w1B', 'w2A', 'w2B');
    const { loraAlpha, r, kernel } = layer.config;
    const taps = (kernel as number[]).reduce((product, size) => product * size, 1);
    if (taps > 1) {
      // Entry by entry, channel c and tap k of a column.
      const sum = (core: Matrix, a: Matrix, b: Matrix, n: number, c: number, k: number) => {
        let total = 0;
        for (let i = 0; i < r; i++) {
          for (let j = 0; j < r; j++) {
            total += (core.data[(i * r + j) * taps + k] as number) * a.at(i, n) * b.at(j, c);
          }
        }
        return total;
      };
      const [t1, t2] = parts(layer, 't1', 't2');
      const weight = layer.w.map((v, n, col) => {
        const [c, k] = [Math.floor(col / taps), col % taps];
        return v + (loraAlpha / r) * sum(t1, a1, b1, n, c, k) * sum(t2, a2, b2, n, c, k);
      });
      return { weight };
    }
    return { weight: layer.w.plus(hadamard(a1.times(b1), a2.times(b2)), loraAlpha / r) };
  },
  osf: (layer) => {
    const [uLow, sLow, vLow] = parts(layer, 'uLow', 'sLow', 'vLow');
    const [uHigh, sHigh, vHigh] = parts(layer, 'uHigh', 'sHigh', 'vHigh');
    const low = uLow.scaleCols(sLow.data).times(vLow);
    return { weight: uHigh.scaleCols(sHigh.data).times(vHigh).plus(low) };
  },
  peanut: (layer) => {
    const [a, b] = parts(layer, 'a', 'b');
    const { r, depth, activation } = layer.config;
    const f = activationOracle[activation as string] as (v: number) => number;
    // As the paper has it: columns of w go through the network as rows.
    const through = (rows: Matrix, stack: Matrix | undefined, i: number): Matrix => {
      const own = Matrix.of(r, r, (row, col) => stack?.data[(i * r + row) * r + col] as number);
      return rows.times(own.transposed()).map(f);
    };
    let hidden = layer.w.transposed().times(a.transposed()).map(f);
    const before = [hidden];
    for (let i = 0; i < depth; i++) {
      hidden = through(hidden, layer.p.encoders, i);
      before.push(hidden);
    }
    for (let i = 0; i < depth; i++) {
      hidden = through(hidden, layer.p.decoders, i).plus(before[depth - 1 - i] as Matrix);
    }
    const update = hidden.times(b.transposed()).transposed();
    return { weight: layer.w.plus(update, layer.config.scaling) };
  },
  'deft-qr': (layer) => {
    const [p] = parts(layer, 'p');
    const q = householderBasis(p);
    return { weight: layer.w.plus(q.times(putIn(layer).plus(q.transposed().times(layer.w), -1))) };
  },
  fourierft: (layer) => {
    const { N, K, w, config } = layer;
    const spectrum = scattered(layer, table(layer, 'places'), parts(layer, 'spectrum')[0]);
    const size = { backward: N * K, ortho: Math.sqrt(N * K), forward: 1 }[config.norm as 'ortho'];
    const real = Matrix.of(N, K, (n, k) => {
      let sum = 0;
      for (let u = 0; u < N; u++) {
        for (let v = 0; v < K; v++) {
          const c = spectrum.at(u, v);
          if (c !== 0) sum += c * Math.cos(2 * Math.PI * ((u * n) / N + (v * k) / K));
        }
      }
      return sum / size;
    });
    return { weight: w.plus(real, config.scaling) };
  },
  frod: (layer) => {
    const { K } = layer;
    const [lambda, values, v, u] = parts(layer, 'lambda', 'values', 'v', 'u');
    const indices = table(layer, 'indices');
    const half = indices.length / 2;
    const core = Matrix.of(K, K, (i, j) => (i === j ? (lambda.data[i] as number) : 0));
    for (let e = 0; e < half; e++) {
      const place = (indices[e] as number) * K + (indices[half + e] as number);
      core.data[place] = (core.data[place] as number) + (values.data[e] as number);
    }
    return { weight: u.times(core).times(v.transposed()) };
  },
  pvera: (layer) => {
    const [a, b, lambdaB, lambdaD] = parts(layer, 'veraA', 'veraB', 'lambdaB', 'lambdaD');
    const mean = Matrix.of(a.rows / 2, a.cols, (i, j) => a.at(i, j) * (lambdaD.data[i] as number));
    return { weight: layer.w.plus(b.scaleRows(lambdaB.data).times(mean)) };
  },
  shira: (layer) => {
    const indices = table(layer, 'indices');
    const half = indices.length / 2;
    const places = Array.from(
      { length: half },
      (_, i) => (indices[i] as number) * layer.K + (indices[half + i] as number),
    );
    return { weight: layer.w.plus(scattered(layer, places, parts(layer, 'weight')[0])) };
  },
  supertuning: (layer) => ({
    weight: layer.w.plus(scattered(layer, table(layer, 'entries'), parts(layer, 'values')[0])),
  }),
  unilora: (layer) => {
    const [theta, scalesA, scalesB] = parts(layer, 'theta', 'scalesA', 'scalesB');
    const gathered = (name: string, scales: Matrix) =>
      scales.map((v, i, j) => {
        const place = table(layer, name)[i * scales.cols + j] as number;
        return v * (theta.data[place] as number);
      });
    const [a, b] = [gathered('indexesA', scalesA), gathered('indexesB', scalesB)];
    return { weight: layer.w.plus(b.times(a)) };
  },
  velora: (layer) => {
    const [a, b] = parts(layer, 'loraA', 'loraB');
    return { weight: layer.w.plus(b.times(a), layer.config.loraAlpha / layer.config.r) };
  },
  vblora: (layer) => {
    const { r, vectorLength, topK } = layer.config;
    const [logitsA, logitsB, bank] = parts(layer, 'logitsA', 'logitsB', 'bank');
    const a = mixtures(logitsA, bank, table(layer, 'topA'), topK);
    const b = mixtures(logitsB, bank, table(layer, 'topB'), topK);
    const perRow = layer.K / vectorLength;
    const whole = (i: number, k: number) =>
      a.at(i * perRow + Math.floor(k / vectorLength), k % vectorLength);
    const update = Matrix.of(layer.N, layer.K, (n, k) => {
      let sum = 0;
      for (let i = 0; i < r; i++) {
        sum += b.at(Math.floor(n / vectorLength) * r + i, n % vectorLength) * whole(i, k);
      }
      return sum;
    });
    return { weight: layer.w.plus(update) };
  },
  'trainable-tokens': (layer) => {
    const [rows] = parts(layer, 'rows');
    const tokens = layer.config.tokens as number[];
    const weight = layer.w.map((v, n, k) =>
      tokens.includes(k) ? rows.at(tokens.indexOf(k), n) : v,
    );
    return { weight };
  },
  waveft: (layer) => {
    const { w, config } = layer;
    const spectrum = scattered(layer, table(layer, 'places'), parts(layer, 'spectrum')[0]);
    if (!config.transform) return { weight: w.plus(spectrum, config.scaling) };
    return { weight: w.plus(inverseWavelet(spectrum, config.wavelet), config.scaling) };
  },
};
