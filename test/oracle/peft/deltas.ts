/** Methods that add a matrix to the weight of a layer by itself. */
import { activationOracle } from '../activations.js';
import { Matrix } from '../adapter-layer.js';
import { orthonormalColumns, svd, triplets } from './linear-algebra.js';
import { type Loading, linear, type PeftMethod, refuse, slice, withDelta } from './loader.js';

export const hira: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const r = load.own('r', 'rank_pattern', module);
  const product = load.matrix(module, 'hira_B', N, r).times(load.matrix(module, 'hira_A', r, K));
  const { weight } = load.linear(module);
  return withDelta(
    load,
    module,
    weight.map((w, i, j) => w * product.at(i, j)),
  );
};

export const loha: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const r = load.own('r', 'rank_pattern', module);
  const scale = load.own('alpha', 'alpha_pattern', module) / r;
  const half = (name: string) =>
    load.matrix(module, `${name}_a`, N, r).times(load.matrix(module, `${name}_b`, r, K));
  const [one, two] = [half('hada_w1'), half('hada_w2')];
  return withDelta(
    load,
    module,
    one.map((v, i, j) => scale * v * two.at(i, j)),
  );
};

/** Two factors of a size, as near to each other as can be, or with the smaller one at most `factor`. */
function factorization(size: number, factor: number): readonly [number, number] {
  if (factor > 0 && size % factor === 0) return [factor, size / factor];
  const limit = factor === -1 ? size : factor;
  let [m, n] = [1, size];
  const length = m + n;
  while (m < n) {
    let next = m + 1;
    while (size % next !== 0) next++;
    if (next + size / next > length || next > limit) break;
    [m, n] = [next, size / next];
  }
  return m > n ? [n, m] : [m, n];
}

export const lokr: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const r = load.own('r', 'rank_pattern', module);
  const scale = load.own('alpha', 'alpha_pattern', module) / r;
  const factor = load.number('decompose_factor');
  const [inM, inN] = factorization(K, factor);
  const [outL, outK] = factorization(N, factor);
  const factored = (name: string, rows: number, cols: number, whole: boolean) =>
    whole
      ? load.matrix(module, name, rows, cols)
      : load.matrix(module, `${name}_a`, rows, r).times(load.matrix(module, `${name}_b`, r, cols));
  const both = load.flag('decompose_both');
  const w1 = factored('lokr_w1', outL, inM, !(both && r < Math.max(outL, inM) / 2));
  const w2 = factored('lokr_w2', outK, inN, !(r < Math.max(outK, inN) / 2));
  const delta = Matrix.of(N, K, (i, j) => {
    const left = w1.at(Math.floor(i / outK), Math.floor(j / inN));
    return scale * left * w2.at(i % outK, j % inN);
  });
  return withDelta(load, module, delta);
};

export const delora: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const r = load.own('r', 'rank_pattern', module);
  const a = load.matrix(module, 'delora_A', r, K);
  const b = load.matrix(module, 'delora_B', N, r);
  const lambda = load.vector(module, 'delora_lambda', [1])[0] as number;
  const norms = load.vector(module, 'delora_w_norm', [K]);
  const factors = Float64Array.from({ length: r }, (_, i) => {
    const row = Math.hypot(...a.data.subarray(i * K, (i + 1) * K));
    const column = Math.hypot(...Array.from({ length: N }, (_n, n) => b.at(n, i)));
    return lambda / r / (Math.max(row, 1e-4) * Math.max(column, 1e-4));
  });
  return withDelta(load, module, b.scaleCols(factors).times(a).scaleCols(norms));
};

export const gralora: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const [r, k, hybrid] = [load.number('r'), load.number('gralora_k'), load.number('hybrid_r')];
  if (r % k !== 0) refuse(`r (${r}) must be divisible by gralora_k (${k})`);
  if (N % k !== 0 || K % k !== 0) refuse(`${N} and ${K} must be divisible by gralora_k (${k})`);
  const scale = load.number('alpha') / (r + hybrid);
  const [rows, cols] = [K / k, N / k];
  const a = load.vector(module, 'gralora_A', [k, rows, r]);
  const b = load.vector(module, 'gralora_B', [k, r, cols]);
  // Rank p of input block i goes to output block j = p / (r / k), as its rank i · r / k + p mod (r / k).
  const part = r / k;
  let delta = Matrix.of(N, K, (n, x) => {
    const [j, i] = [Math.floor(n / cols), Math.floor(x / rows)];
    let sum = 0;
    for (let s = 0; s < part; s++) {
      const left = a[(i * rows + (x % rows)) * r + j * part + s] as number;
      sum += left * (b[(j * r + i * part + s) * cols + (n % cols)] as number);
    }
    return scale * sum;
  });
  if (hybrid > 0) {
    const general = load
      .matrix(module, 'gralora_B_general.weight', N, hybrid)
      .times(load.matrix(module, 'gralora_A_general.weight', hybrid, K));
    delta = delta.plus(general, scale);
  }
  return withDelta(load, module, delta);
};

export const c3a: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const b = load.own('block_size', 'block_size_pattern', module);
  if (N % b !== 0 || K % b !== 0) refuse(`block_size ${b} must divide ${N} and ${K}`);
  const kernel = load.vector(module, 'c3a_kernel', [N / b, K / b, b]);
  const delta = Matrix.of(N, K, (n, k) => {
    const block = Math.floor(n / b) * (K / b) + Math.floor(k / b);
    return (kernel[block * b + ((k - n + N * K) % b)] as number) / K;
  });
  return withDelta(load, module, delta);
};

export const miss: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const r = load.number('r');
  const form = load.config.init_weights;
  const { weight } = load.linear(module);
  if (form === 'bat') {
    if (N % r !== 0 || K % r !== 0) refuse(`r (${r}) must divide ${N} and ${K}`);
    const d = load.vector(module, 'miss_block', [N / r, r, r]);
    const of = (q: number, i: number, j: number) => d[(q * r + i) * r + j] as number;
    const delta = Matrix.of(N, K, (n, k) => {
      const [q, first] = [Math.floor(n / r), k - (k % r)];
      let sum = of(q, n % r, k % r);
      for (let j = 0; j < r; j++) sum += weight.at(n, first + j) * of(q, j, k % r);
      return sum;
    });
    return withDelta(load, module, delta);
  }
  const width = form === 'mini' ? load.number('mini_r') : N;
  if (N % width !== 0) refuse(`mini_r ${width} must divide ${N}`);
  const block = load.matrix(module, 'miss_block', r, width);
  return withDelta(
    load,
    module,
    Matrix.of(N, K, (n, k) => block.at(k % r, n % width)),
  );
};

export const deft: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const r = Math.min(load.number('r'), N);
  const alpha = load.config.alpha;
  const scale = typeof alpha === 'number' && alpha !== 0 ? alpha / r : 1;
  const p = load.matrix(module, 'deft_P', N, r);
  const method = load.text('decomposition_method');
  const left = method === 'qr' ? orthonormalColumns(p) : p;
  const right = method === 'qr' ? left : p.map((v) => Math.max(v, 0));
  const { weight } = load.linear(module);
  let moved = right
    .transposed()
    .times(weight)
    .map((v) => -v);
  if (!load.flag('para')) moved = moved.plus(load.matrix(module, 'deft_R', r, K), scale);
  return withDelta(load, module, left.times(moved));
};

export const peanut: PeftMethod = (load, module) => {
  const { N } = load.sizes(module);
  const [r, depth] = [load.number('r'), load.number('depth')];
  const act = activationOracle[load.text('act_fn')] ?? (() => refuse('act_fn'));
  const { weight } = load.linear(module);
  const through = (h: Matrix, key: string, cols: number) =>
    h.times(load.matrix(module, key, r, cols).transposed()).map(act);
  let h = through(weight.transposed(), 'peanut_A.weight', N);
  const kept: Matrix[] = [];
  for (let i = 0; i < depth; i++) {
    kept.push(h);
    h = through(h, `peanut_encoders.${i}.weight`, r);
  }
  for (let i = 0; i < depth; i++) {
    h = through(h, `peanut_decoders.${i}.weight`, r).plus(kept[depth - 1 - i] as Matrix);
  }
  const out = h.times(load.matrix(module, 'peanut_B.weight', N, r).transposed());
  return withDelta(
    load,
    module,
    out.transposed().map((v) => v * load.number('scaling')),
  );
};

export const poly: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const [r, splits] = [load.number('r'), load.number('n_splits')];
  const [tasks, skills] = [load.number('n_tasks'), load.number('n_skills')];
  if (N % splits !== 0 || K % splits !== 0) refuse(`n_splits ${splits} must divide ${N} and ${K}`);
  const a = load.vector(module, 'poly_lora_A', [splits, skills, K / splits, r]);
  const b = load.vector(module, 'poly_lora_B', [splits, skills, r, N / splits]);
  const logits = load.vector(module, 'poly_router.module_logits', [tasks, splits * skills]);
  const shareOf = (task: number, q: number) => {
    const all = Array.from({ length: skills }, (_, s) => {
      return 1 / (1 + Math.exp(-(logits[(task * splits + q) * skills + s] as number)));
    });
    const total = all.reduce((sum, v) => sum + v, 1e-12);
    return all.map((v) => v / total);
  };
  const { weight, bias } = load.linear(module);
  return (x, { tasks: given }) => {
    const rows = Array.from({ length: x.rows }, (_, m) => {
      const row = Array.from({ length: tasks }, (_t, t) => given?.at(m, t) ?? 0);
      const shares = Array.from({ length: splits }, (_q, q) => shareOf(row.indexOf(1), q));
      const mix = (values: ArrayLike<number>, q: number, size: number, at: number) =>
        (shares[q] as number[]).reduce(
          (sum, share, s) => sum + share * (values[(q * skills + s) * size + at] as number),
          0,
        );
      const [left, right] = [K / splits, N / splits];
      const down = Matrix.of(K, r, (k, i) =>
        mix(a, Math.floor(k / left), left * r, (k % left) * r + i),
      );
      const up = Matrix.of(r, N, (i, n) =>
        mix(b, Math.floor(n / right), r * right, i * right + (n % right)),
      );
      const own = Matrix.of(1, K, (_i, k) => x.at(m, k));
      return linear(own, weight, bias).plus(own.times(down).times(up), 1 / r);
    });
    return Matrix.of(x.rows, N, (m, n) => (rows[m] as Matrix).at(0, n));
  };
};

/** The rest of the base weight, of its largest triplets, is PEFT's own decomposition. */
export const osf: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const rank = load.own('effective_rank', 'rank_pattern', module);
  const low = Math.min(N, K) - rank;
  const u = load.matrix(module, 'osf_svd_params.U_low', N, low);
  const s = load.vector(module, 'osf_svd_params.S_low', [low]);
  const v = load.matrix(module, 'osf_svd_params.V_low', low, K);
  const { weight, bias } = load.linear(module);
  const whole = triplets(svd(weight), 0, rank).plus(u.scaleCols(s).times(v));
  return (x) => linear(x, whole, bias);
};

/** Entries of the weight at [rows, columns]. */
function scattered(
  load: Loading,
  module: string,
  values: ArrayLike<number>,
  at: (i: number) => number,
) {
  const { N, K } = load.sizes(module);
  const delta = Matrix.zeros(N, K);
  for (let i = 0; i < values.length; i++) {
    if (!(at(i) >= 0 && at(i) < N * K)) refuse(`place ${at(i)} of ${N * K}`);
    delta.data[at(i)] = (delta.data[at(i)] as number) + (values[i] as number);
  }
  return withDelta(load, module, delta);
}

export const shira: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const count = load.number('r') * (N + K);
  if (count > N * K) refuse(`r leads to more values (${count}) than the layer has (${N * K})`);
  const places = load.vector(module, 'shira_indices', [2, count]);
  const values = load.vector(module, 'shira_weight', [count]);
  return scattered(
    load,
    module,
    values,
    (i) => (places[i] as number) * K + (places[count + i] as number),
  );
};

export const supertuning: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const count = Math.trunc(N * K * (1 - load.number('sparsity')));
  if (count < 1) refuse('sparsity leaves no entries');
  const places = load.vector(module, 'supertuning_indices', [count]);
  const values = load.vector(module, 'supertuning_values', [count]);
  return scattered(load, module, values, (i) => places[i] as number);
};

export const beft: PeftMethod = (load, module) => {
  const { N } = load.sizes(module);
  const own = slice(load.vector(module, 'beft_bias', [1, N]), 1, N, (_, n) => n).data;
  const { weight, bias } = load.linear(module);
  return (x) =>
    linear(
      x,
      weight,
      own.map((v, n) => v + (bias?.[n] ?? 0)),
    );
};
