/** Formulas in float64 of the methods that cut their features into blocks. */
import { type Formula, Matrix, type OracleLayer, parts, scaling } from './adapter-layer.js';

/** Adds to w the update whose entry (n, k) is given. */
const added = ({ w }: OracleLayer, update: (n: number, k: number) => number) => ({
  weight: w.map((v, n, k) => v + update(n, k)),
});

const sum = (count: number, term: (i: number) => number): number => {
  let total = 0;
  for (let i = 0; i < count; i++) total += term(i);
  return total;
};

const melora: Formula = (layer) => {
  const { N, K, config } = layer;
  const [a, b] = parts(layer, 'loraA', 'loraB');
  const { r, minis } = config;
  const [width, height] = [K / minis, N / minis];
  return added(layer, (n, k) => {
    const g = Math.floor(n / height);
    if (g !== Math.floor(k / width)) return 0;
    return scaling(layer) * sum(r, (i) => b.at(n, i) * a.at(g * r + i, k % width));
  });
};

const gralora: Formula = (layer) => {
  const { N, K, config, p } = layer;
  const [a, b] = parts(layer, 'graA', 'graB');
  const { r, k: cut, hybridR, loraAlpha } = config;
  const [width, height, part] = [K / cut, N / cut, r / cut];
  const { generalA, generalB } = p;
  return added(layer, (n, k) => {
    const j = Math.floor(n / height);
    const i = Math.floor(k / width);
    const fine = sum(part, (s) => a.at(k, j * part + s) * b.at(j * r + i * part + s, n % height));
    const general = sum(hybridR, (s) => (generalB?.at(n, s) ?? 0) * (generalA?.at(s, k) ?? 0));
    return (loraAlpha / (r + hybridR)) * (fine + general);
  });
};

const bdlora: Formula = (layer) => {
  const { N, K, config } = layer;
  const [a, b] = parts(layer, 'loraA', 'loraB');
  const { r, blocks, side } = config;
  return added(layer, (n, k) => {
    const total = sum(r, (i) => {
      if (side === 'none') return b.at(n, i) * a.at(i, k);
      const g = Math.floor(i / (r / blocks));
      if (side === 'a') {
        return Math.floor(k / (K / blocks)) === g ? b.at(n, i) * a.at(i, k % (K / blocks)) : 0;
      }
      return Math.floor(n / (N / blocks)) === g ? b.at(n, i % (r / blocks)) * a.at(i, k) : 0;
    });
    return scaling(layer) * total;
  });
};

const mora: Formula = (layer) => {
  const { K, w, config } = layer;
  const [matrix] = parts(layer, 'matrix');
  const side = matrix.rows;
  const blocks = Math.ceil(K / side);
  if (config.kind === 'sharing') {
    // x, and its beginning behind it up to whole blocks, of which the sum goes through the matrix.
    const weight = w.map((v) => v);
    for (let n = 0; n < w.rows; n++) {
      for (let at = 0; at < blocks * side; at++) {
        const k = at < K ? at : at - K;
        weight.data[n * K + k] = weight.at(n, k) + matrix.at(n % side, at % side);
      }
    }
    return { weight };
  }
  const half = side / 2;
  const weight = w.map((v) => v);
  for (let n = 0; n < w.rows; n++) {
    const out = n % (blocks * side);
    const b = Math.floor(out / side);
    for (let l = 0; l < side; l++) {
      // What feature l of the block becomes: itself by the cosine, its partner by the sine.
      const angle = b * 10000 ** ((-2 * (l % half)) / side);
      const partner = l < half ? l + half : l - half;
      const own = matrix.at(out % side, l) * Math.cos(angle);
      const other = matrix.at(out % side, partner) * Math.sin(angle) * (l < half ? 1 : -1);
      const k = (b * side + l) % K;
      weight.data[n * K + k] = weight.at(n, k) + own + other;
    }
  }
  return { weight };
};

const miss: Formula = (layer) => {
  const { N, w, config } = layer;
  const [d] = parts(layer, 'missD');
  const { r, form, miniR } = config;
  if (form === 'bat') {
    return added(layer, (n, k) => {
      const first = Math.floor(n / r) * r;
      const run = Math.floor(k / r) * r;
      const through = sum(r, (i) => w.at(n, run + i) * d.at(first + i, k % r));
      return through + d.at(n, k % r);
    });
  }
  const width = form === 'mini' ? miniR : N;
  return added(layer, (n, k) => d.at(k % r, n % width));
};

const qalora: Formula = (layer) => {
  const { K, config } = layer;
  const [a, b] = parts(layer, 'loraA', 'loraB');
  const { r, groupSize, pool } = config;
  // What the mean of a group is multiplied by.
  const times = { groups: K / groupSize, mean: 1, size: groupSize }[pool as 'mean'];
  const scale = (scaling(layer) * times) / groupSize;
  return added(
    layer,
    (n, k) => scale * sum(r, (i) => b.at(n, i) * a.at(i, Math.floor(k / groupSize))),
  );
};

const irQlora: Formula = (layer) => {
  const { N, K, config } = layer;
  const [a, b, scaleA, scaleB] = parts(layer, 'loraA', 'loraB', 'scaleA', 'scaleB');
  const { r } = config;
  const first = (i: number, k: number): number =>
    a.at(i, k) + (Math.floor(k / (K / r)) === i ? (scaleA.at(0, 0) * r) / K : 0);
  const second = (n: number, i: number): number =>
    b.at(n, i) + (Math.floor(n / (N / r)) === i ? scaleB.at(0, 0) : 0);
  return added(layer, (n, k) => scaling(layer) * sum(r, (i) => second(n, i) * first(i, k)));
};

/** Entry (n, k) of a Kronecker product. */
const kron =
  (left: Matrix, right: Matrix) =>
  (n: number, k: number): number =>
    left.at(Math.floor(n / right.rows), Math.floor(k / right.cols)) *
    right.at(n % right.rows, k % right.cols);

const lokr: Formula = (layer) => {
  const { p, config } = layer;
  const factor = (name: string): Matrix =>
    p[name] ?? (p[`${name}A`] as Matrix).times(p[`${name}B`] as Matrix);
  const taps = (config.kernel as number[]).reduce((product, size) => product * size, 1);
  // w2 by row, channel and tap; of a Tucker product entry by entry.
  const second = (): Matrix => {
    const { t2, w2A, w2B } = p as Record<string, Matrix>;
    if (t2 !== undefined && w2A !== undefined && w2B !== undefined) {
      return Matrix.of(w2A.cols, w2B.cols * taps, (n, col) => {
        const [c, tap] = [Math.floor(col / taps), col % taps];
        return sum(config.r, (i) =>
          sum(config.r, (j) => {
            const core = t2.data[(i * config.r + j) * taps + tap] as number;
            return core * w2A.at(i, n) * w2B.at(j, c);
          }),
        );
      });
    }
    const w2 = factor('w2');
    const rows = layer.N / (factor('w1') as Matrix).rows;
    return new Matrix(rows, (w2.rows * w2.cols) / rows, w2.data);
  };
  const entry = kron(factor('w1'), second());
  return added(layer, (n, k) => (config.loraAlpha / config.r) * entry(n, k));
};

const krona: Formula = (layer) => {
  const entry = kron(...parts(layer, 'kronA', 'kronB'));
  return added(layer, (n, k) => layer.config.scale * entry(n, k));
};

const c3a: Formula = (layer) => {
  const { K, config } = layer;
  const [kernel] = parts(layer, 'kernel');
  const b = config.blockSize;
  return added(layer, (n, k) => {
    const block = Math.floor(n / b) * (K / b) + Math.floor(k / b);
    return kernel.at(block, ((k % b) - (n % b) + b) % b) / K;
  });
};

export const blockOracle: Readonly<Record<string, Formula>> = {
  bdlora,
  c3a,
  gralora,
  'ir-qlora': irQlora,
  krona,
  lokr,
  melora,
  miss,
  mora,
  qalora,
};
