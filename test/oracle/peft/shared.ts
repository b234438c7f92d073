/** Methods of which layers share tensors, or whose tensors are drawn from seeds. */
import { TorchRandom } from '../../../lib/checkpoint/random/torch-random.js';
import { Matrix } from '../adapter-layer.js';
import { solveRight } from './linear-algebra.js';
import { type Loading, linear, type PeftMethod, refuse, slice, withDelta } from './loader.js';

export const vera: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const r = load.number('r');
  const all = load.largest();
  if (load.config.save_projection === false) refuse('not of a seed here');
  const a = load.shared('vera_A', [r, all.K]);
  const b = load.shared('vera_B', [all.N, r]);
  const d = load.vector(module, 'vera_lambda_d', [r]);
  const scale = load.vector(module, 'vera_lambda_b', [N]);
  const left = slice(a, r, K, (i, j) => i * all.K + j).scaleRows(d);
  const right = slice(b, N, r, (i, j) => i * r + j).scaleRows(scale);
  return withDelta(load, module, right.times(left));
};

export const pvera: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const r = load.number('r');
  const all = load.largest();
  // The second half of A is of the variance, which is not drawn in evaluation.
  if (load.flag('sample_at_inference')) throw new Error('sampled');
  const a = load.shared('pvera_A', [2 * r, all.K]);
  const b = load.shared('pvera_B', [all.N, r]);
  const d = load.vector(module, 'pvera_lambda_d', [2 * r]);
  const scale = load.vector(module, 'pvera_lambda_b', [N]);
  const left = slice(a, r, K, (i, j) => i * all.K + j).scaleRows(d);
  const right = slice(b, N, r, (i, j) => i * r + j).scaleRows(scale);
  return withDelta(load, module, right.times(left));
};

export const randlora: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const r = load.number('r');
  const all = load.largest();
  const [min, max] = [Math.min(all.N, all.K), Math.max(all.N, all.K)];
  const allBases = Math.ceil(min / r);
  const a = load.shared('randlora_A', [r, 1, min]);
  const b = load.shared('randlora_B', [max, allBases, r]);
  load.optional(module, 'randlora_A', [r, 1, min]);
  load.optional(module, 'randlora_B', [max, allBases, r]);
  const [small, large] = [Math.min(N, K), Math.max(N, K)];
  const bases = Math.ceil(small / r);
  const lambda = load.matrix(module, 'randlora_lambda', r, bases);
  const gamma = load.matrix(module, 'randlora_gamma', bases, small);
  // Both are flattened in the order in which they are stored, and equal numbers are paired.
  const left = Matrix.of(r * bases, small, (p, j) => {
    const [i, base] = [Math.floor(p / bases), p % bases];
    return lambda.at(i, base) * (a[i * min + j] as number) * gamma.at(base, j);
  });
  const right = Matrix.of(large, r * bases, (row, p) => {
    const [base, i] = [Math.floor(p / r), p % r];
    return b[(row * allBases + base) * r + i] as number;
  });
  const product = right.times(left).map((v) => (v * load.number('randlora_alpha')) / r);
  return withDelta(load, module, small === K ? product : product.transposed());
};

/** Layers of one role share V: the role is the last two parts of a name that has a number before them. */
export function frodCategory(module: string): string {
  const parts = module.split('.');
  const [before = '', last = ''] = parts.slice(-2);
  if (parts.length === 1 || /^\d+$/.test(before)) return parts.at(-1) as string;
  if (`${before}_${last}` === 'output_dense' && parts.at(-3) === 'attention')
    return 'attention_output';
  return `${before}_${last}`;
}

/**
 * U follows from V and the base weight. PEFT takes the V that it has decomposed of the base weights itself, before the file
 * is read: U here is of the file's V, which is the same where the file's V is PEFT's.
 */
export const frod: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const { weight, bias } = load.linear(module);
  const category = frodCategory(module);
  for (const other of load.targets().filter((name) => frodCategory(name) === category)) {
    if (load.sizes(other).K !== K) refuse(`layers of ${category} must have one width`);
  }
  const rate = load.number('sparse_rate');
  const count = Math.max(1, Math.min(Math.trunc(K * K * rate), K * K - K));
  const v = new Matrix(K, K, Float64Array.from(load.shared(`frod_V.${category}`, [K, K])));
  const places = load.shared(`frod_s_indices.${category}`, [2, count]);
  const size = load.shared(`frod_s_size.${category}`, [2]);
  if (String(Array.from(size)) !== String([K, K])) refuse('frod_s_size');
  const lambda = load.vector(module, 'frod_lambda_l', [K]);
  const values = load.vector(module, 'frod_lambda_s_values', [count]);
  const core = Matrix.zeros(K, K);
  for (let k = 0; k < K; k++) core.data[k * K + k] = lambda[k] as number;
  for (let i = 0; i < count; i++) {
    const at = (places[i] as number) * K + (places[count + i] as number);
    core.data[at] = (core.data[at] as number) + (values[i] as number);
  }
  const b = solveRight(weight, v.transposed());
  const norms = Float64Array.from({ length: K }, (_, k) =>
    Math.hypot(...Array.from({ length: N }, (_n, n) => b.at(n, k))),
  );
  const u = b.scaleCols(norms.map((norm) => (norm > 1e-8 ? 1 / norm : 0)));
  return (x) => linear(x, u.times(core).times(v.transposed()), bias);
};

export const unilora: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const r = load.number('r');
  const theta = load.shared('unilora_theta_d', [load.number('theta_d_length')]);
  if (!load.flag('save_indices'))
    throw new Error('tables that follow from a seed are not drawn here');
  const factor = (name: string, rows: number, cols: number) => {
    const places = load.vector(module, `unilora_indices_${name}`, [rows, cols]);
    const scales = load.vector(module, `unilora_scales_${name}`, [rows, cols]);
    return Matrix.of(rows, cols, (i, j) => {
      const at = i * cols + j;
      return (theta[places[at] as number] as number) * (scales[at] as number);
    });
  };
  return withDelta(load, module, factor('B', N, r).times(factor('A', r, K)));
};

export const vblora: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const r = load.number('r');
  const [h, b, k] = [load.number('num_vectors'), load.number('vector_length'), load.number('topk')];
  if (N % b !== 0 || K % b !== 0) refuse(`vector_length ${b} must divide ${N} and ${K}`);
  const bank = load.shared('vblora_vector_bank', [h, b]);
  const mixed = (logits: ArrayLike<number>, row: number) => {
    const own = Array.from({ length: h }, (_, j) => logits[row * h + j] as number);
    const top = own.map((_, j) => j).sort((i, j) => (own[j] as number) - (own[i] as number));
    const chosen = top.slice(0, k);
    const e = chosen.map((j) =>
      Math.exp((own[j] as number) - (own[chosen[0] as number] as number)),
    );
    const total = e.reduce((sum, v) => sum + v, 0);
    return Float64Array.from({ length: b }, (_, t) =>
      chosen.reduce(
        (sum, j, i) => sum + ((e[i] as number) / total) * (bank[j * b + t] as number),
        0,
      ),
    );
  };
  const [columns, rows] = [K / b, N / b];
  const logitsA = load.vector(module, 'vblora_logits_A', [r, columns, h]);
  const logitsB = load.vector(module, 'vblora_logits_B', [rows, r, h]);
  const partsA = Array.from({ length: r * columns }, (_, row) => mixed(logitsA, row));
  const partsB = Array.from({ length: rows * r }, (_, row) => mixed(logitsB, row));
  const at = (part: Float64Array | undefined, i: number) => (part as Float64Array)[i] as number;
  const a = Matrix.of(r, K, (i, j) => at(partsA[i * columns + Math.floor(j / b)], j % b));
  const right = Matrix.of(N, r, (n, i) => at(partsB[Math.floor(n / b) * r + i], n % b));
  return withDelta(load, module, right.times(a));
};

export const tinylora: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const r = Math.min(load.number('r'), N, K);
  const u = load.number('u');
  const targets = load.targets();
  const groups = Math.max(1, Math.round(targets.length * (1 - load.number('weight_tying'))));
  const size = Math.max(1, Math.floor(targets.length / groups));
  const group = Math.min(Math.floor(targets.indexOf(module) / size), groups - 1);
  const v = load.shared(`tinylora_v.${group}`, [u]);
  const p = load.vector(module, 'tinylora_P', [u, r, r]);
  const core = Matrix.of(r, r, (i, j) => {
    let sum = 0;
    for (let k = 0; k < u; k++) sum += (v[k] as number) * (p[(k * r + i) * r + j] as number);
    return sum;
  });
  const a = load.matrix(module, 'tinylora_A', r, K);
  const b = load.matrix(module, 'tinylora_B', N, r);
  return withDelta(load, module, b.times(core).times(a));
};

/** Which layers share lily_B (and lily_A): those of one name in target_modules, and of one shape. */
function lilyGroup(load: Loading, module: string): string {
  const { N, K } = load.sizes(module);
  const targets = load.config.target_modules;
  const names = typeof targets === 'string' ? [targets] : (targets as string[]);
  const suffixes =
    typeof targets === 'string' ? names : names.filter((name) => module.endsWith(name));
  return `${suffixes.at(-1)} ${N} ${K}`;
}

export const lily: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const [r, experts] = [load.number('r'), load.number('num_B')];
  if (load.number('stride_A') !== 1) throw new Error('lily_A that layers share is not here');
  load.matrix(module, 'lily_B.weight', experts * r, N);
  // One module under several names: what is loaded last stays.
  const group = load.targets().filter((name) => lilyGroup(load, name) === lilyGroup(load, module));
  const b = load.matrix(group.at(-1) as string, 'lily_B.weight', experts * r, N);
  const a = load.matrix(module, 'lily_A.weight', r, K);
  const router = load.matrix(module, 'lily_router.weight', experts, r);
  const { weight, bias } = load.linear(module);
  return (x) => {
    const h = x.times(a.transposed());
    const logits = h.times(router.transposed());
    const mean = new Float64Array(experts);
    for (let m = 0; m < x.rows; m++) {
      const e = Array.from({ length: experts }, (_, j) => Math.exp(logits.at(m, j)));
      const total = e.reduce((sum, v) => sum + v, 0);
      e.forEach((v, j) => {
        mean[j] = (mean[j] as number) + v / total / x.rows;
      });
    }
    const combined = Matrix.of(r, N, (i, n) =>
      mean.reduce((sum, share, e) => sum + share * b.at(e * r + i, n), 0),
    );
    return linear(x, weight, bias).plus(h.times(combined), load.number('scaling'));
  };
};

/** Some of N · K places, in torch's order. */
function places(load: Loading, module: string, count: number): Int32Array {
  const { N, K } = load.sizes(module);
  if (count <= 0 || count > N * K) refuse(`n_frequency ${count} of ${N * K}`);
  return new TorchRandom(load.number('random_loc_seed')).permutation(N * K).slice(0, count);
}

export const fourierft: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const count = load.own('n_frequency', 'n_frequency_pattern', module);
  const spectrum = load.vector(module, 'fourierft_spectrum', [count]);
  const scale = load.number('scaling') / (N * K);
  const at = places(load, module, count);
  const delta = Matrix.of(N, K, (n, k) => {
    let sum = 0;
    at.forEach((place, f) => {
      const turns = (Math.floor(place / K) * n) / N + ((place % K) * k) / K;
      sum += (spectrum[f] as number) * Math.cos(2 * Math.PI * turns);
    });
    return scale * sum;
  });
  return withDelta(load, module, delta);
};

const [root3, root7] = [Math.sqrt(3), Math.sqrt(7)];
const kDb2 = [1 + root3, 3 + root3, 3 - root3, 1 - root3].map((v) => v / (4 * Math.SQRT2));

/** Low-pass filters that have a closed form. PEFT's recorded case has the first. */
const kFilters: Readonly<Record<string, readonly number[]>> = {
  db1: [Math.SQRT1_2, Math.SQRT1_2],
  db2: kDb2,
  sym2: kDb2,
  coif1: [1 - root7, 5 + root7, 14 + 2 * root7, 14 - 2 * root7, 1 - root7, root7 - 3].map(
    (v) => v / (16 * Math.SQRT2),
  ),
};

/** One level of the inverse transform of a line of coefficients: [size, count], count even, of which the middle is kept. */
function synthesis(low: readonly number[], size: number, count: number): Matrix {
  const length = low.length;
  const start = length - 2 + Math.floor((count - length + 2 - size) / 2);
  return Matrix.of(size, count, (at, j) => {
    const tap = at + start - 2 * (j % (count / 2));
    if (tap < 0 || tap >= length) return 0;
    // The first half are sums, the second differences.
    return j < count / 2 ? (low[tap] as number) : (-1) ** tap * (low[length - 1 - tap] as number);
  });
}

export const waveft: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const count = load.own('n_frequency', 'n_frequency_pattern', module);
  const spectrum = load.vector(module, 'waveft_spectrum', [count]);
  if (load.flag('proportional_parameters')) throw new Error('other counts are not here');
  const scale = load.number('scaling');
  const at = places(load, module, count);
  if (!load.flag('use_idwt')) {
    const delta = Matrix.zeros(N, K);
    at.forEach((place, f) => {
      delta.data[place] = scale * (spectrum[f] as number);
    });
    return withDelta(load, module, delta);
  }
  const low = kFilters[load.text('wavelet_family')];
  if (low === undefined) throw new Error('a wavelet that is not here');
  const padded = (size: number) => size + low.length - 2 + ((size + low.length) % 2);
  const [H, W] = [padded(N), padded(K)];
  const [top, left] = [Math.floor((H - N) / 2), Math.floor((W - K) / 2)];
  // The quarter on the right has the differences of rows, the one below those of columns.
  const dense = Matrix.zeros(H, W);
  at.forEach((place, f) => {
    const [i, j] = [Math.floor(place / K) + top, (place % K) + left];
    const [row, column] = [
      (i % (H / 2)) + (j < W / 2 ? 0 : H / 2),
      (j % (W / 2)) + (i < H / 2 ? 0 : W / 2),
    ];
    dense.data[row * W + column] = spectrum[f] as number;
  });
  const delta = synthesis(low, N, H)
    .times(dense)
    .times(synthesis(low, K, W).transposed());
  return withDelta(
    load,
    module,
    delta.map((v) => scale * v),
  );
};
