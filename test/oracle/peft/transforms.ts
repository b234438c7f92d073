/** Methods that turn, scale or replace what goes into a layer or comes out of it. */
import { Matrix } from '../adapter-layer.js';
import { blockDiagonal, cayley, cayleySeries, skewOf, solveRight, svd } from './linear-algebra.js';
import { type Loading, linear, type PeftMethod, refuse, withDelta } from './loader.js';

/** The nearest divisor of a width, where a number of blocks or a block's size is none. */
function divisorNear(width: number, wanted: number): number {
  if (wanted >= width) return width;
  let [higher, lower] = [wanted, wanted];
  while (higher <= width && width % higher !== 0) higher++;
  while (lower > 1 && width % lower !== 0) lower--;
  return wanted - lower <= higher - wanted ? lower : higher;
}

export const oft: PeftMethod = (load, module) => {
  const { K } = load.sizes(module);
  const [r, given] = [load.number('r'), load.number('oft_block_size')];
  if ((r === 0) === (given === 0)) refuse('either r or oft_block_size');
  const size = r === 0 ? divisorNear(K, given) : K / divisorNear(K, r);
  const blocks = K / size;
  const entries = (size * (size - 1)) / 2;
  const own = load.flag('block_share') ? 1 : blocks;
  const weight = load.vector(module, 'oft_R.weight', [own, entries]);
  const rotations = Array.from({ length: own }, (_, i) => {
    let q = skewOf(weight, i * entries, size);
    if (load.flag('coft')) {
      const limit = load.number('eps') / Math.sqrt(own);
      const norm = Math.hypot(...q.data);
      if (norm > limit) q = q.map((v) => (v * limit) / norm);
    }
    if (load.config.use_cayley_neumann === false) return cayley(q);
    return cayleySeries(q, load.number('num_cayley_neumann_terms'));
  });
  const all = Array.from({ length: blocks }, (_, i) => rotations[i % own] as Matrix);
  const turn = blockDiagonal(all);
  const { weight: w, bias } = load.linear(module);
  return (x) => linear(x.times(turn), w, bias);
};

/** Of one butterfly factor, whatever the config says: PEFT has more where it can build its CUDA extension alone. */
export const boft: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const [given, count] = [load.number('boft_block_size'), load.number('boft_block_num')];
  if ((given === 0) === (count === 0)) refuse('either boft_block_size or boft_block_num');
  const size = given === 0 ? K / count : given;
  if (K % size !== 0 || !Number.isInteger(size)) refuse(`blocks of ${size} in ${K}`);
  const blocks = K / size;
  const r = load.vector(module, 'boft_R', [1, blocks, size, size]);
  const s = load.vector(module, 'boft_s', [N, 1]);
  const rotations = Array.from({ length: blocks }, (_, i) => {
    const at = (row: number, col: number) => r[(i * size + row) * size + col] as number;
    const skew = Matrix.of(size, size, (a, b) => (at(a, b) - at(b, a)) / 2);
    const eye = Matrix.identity(size);
    return solveRight(eye.plus(skew, -1), eye.plus(skew));
  });
  const { weight, bias } = load.linear(module);
  const turned = blockDiagonal(rotations).times(weight.transposed()).transposed().scaleRows(s);
  return (x) => linear(x, turned, bias);
};

export const hra: PeftMethod = (load, module) => {
  const { K } = load.sizes(module);
  const r = load.number('r');
  const u = load.matrix(module, 'hra_u', K, r);
  const column = (i: number) => Float64Array.from({ length: K }, (_, k) => u.at(k, i));
  const unit = (v: Float64Array) => v.map((value) => value / Math.hypot(...v));
  let columns: Float64Array[] = Array.from({ length: r }, (_, i) => column(i));
  if (load.flag('apply_GS')) {
    const done: Float64Array[] = [];
    for (const each of columns) {
      let rest: Float64Array = each;
      for (const other of done) {
        const share = rest.reduce((sum, v, k) => sum + v * (other[k] as number), 0);
        rest = rest.map((v, k) => v - share * (other[k] as number));
      }
      done.push(unit(rest));
    }
    columns = done;
  } else {
    columns = columns.map(unit);
  }
  let turn = Matrix.identity(K);
  for (const each of columns) {
    const reflection = Matrix.of(K, K, (i, j) => {
      return (i === j ? 1 : 0) - 2 * (each[i] as number) * (each[j] as number);
    });
    turn = turn.times(reflection);
  }
  const { weight, bias } = load.linear(module);
  return (x) => linear(x, weight.times(turn), bias);
};

export const ia3: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const names = load.config.feedforward_modules;
  const targets = load.config.target_modules;
  if (Array.isArray(names) && Array.isArray(targets)) {
    if (names.some((name) => !targets.includes(name))) {
      refuse('feedforward_modules should be a subset of target_modules');
    }
  }
  const forward =
    typeof names === 'string'
      ? new RegExp(`^(?:${names})$`).test(module)
      : ((names ?? []) as string[]).some((name) => module.endsWith(name));
  const { weight, bias } = load.linear(module);
  if (forward) {
    const scale = load.vector(module, 'ia3_l', [1, K]);
    return (x) => linear(x.scaleCols(scale), weight, bias);
  }
  const scale = load.vector(module, 'ia3_l', [N, 1]);
  return (x) => linear(x, weight, bias).scaleCols(scale);
};

export const road: PeftMethod = (load, module) => {
  const { N } = load.sizes(module);
  const size = load.number('group_size');
  const variant = load.text('variant');
  if (N % size !== 0) refuse(`out_features ${N} must be divisible by group_size ${size}`);
  const counts: Readonly<Record<string, number>> = { road_1: N / 2, road_2: N, road_4: 2 * N };
  const count = counts[variant] ?? refuse(variant);
  const theta = load.vector(module, 'road_theta', [count]);
  const alpha = load.vector(module, 'road_alpha', [count]);
  // Where the values of output n are: of its own (0) and of its partner (1).
  const at = (n: number, which: 0 | 1): number => {
    const [group, inside] = [Math.floor(n / size), n % size];
    if (variant === 'road_1') return group * (size / 2) + (inside % (size / 2));
    return variant === 'road_2' ? n : group * 2 * size + which * size + inside;
  };
  const { weight, bias } = load.linear(module);
  return (x) => {
    const y = linear(x, weight, bias);
    return y.map((v, m, n) => {
      const first = n % size < size / 2;
      const partner = y.at(m, first ? n + size / 2 : n - size / 2);
      const [own, other] = [at(n, 0), at(n, 1)];
      const across = (alpha[other] as number) * Math.sin(theta[other] as number) * partner;
      return (
        (alpha[own] as number) * Math.cos(theta[own] as number) * v + (first ? -across : across)
      );
    });
  };
};

/** A layer without a bias has neither C nor D and E: PEFT makes none. */
export const glora: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const r = load.number('r');
  const { weight, bias } = load.linear(module);
  const path = (name: string, form: string, rows: number, cols: number): Matrix => {
    const key = `glora_${name}`;
    if (form === 'none') return Matrix.zeros(rows, cols);
    if (form === 'lora') {
      const down = load.matrix(module, `${key}.Xd`, rows, r);
      return down.times(load.matrix(module, `${key}.Xu`, r, cols));
    }
    const shape = form === 'constant' ? [1] : name === 'D' || name === 'E' ? [rows] : [rows, 1];
    const x = load.vector(module, `${key}.X`, shape);
    return Matrix.of(rows, cols, (i) => x[form === 'constant' ? 0 : i] as number);
  };
  const ab = load.text('config_A_B');
  const [a, b] = [path('A', ab, N, K), path('B', ab, N, K)];
  const moved = weight.map((w, i, j) => w + w * a.at(i, j) + b.at(i, j));
  if (bias === undefined) return (x) => linear(x, moved);
  const de = load.text('config_D_E');
  const c = weight.times(path('C', load.text('config_C'), K, 1));
  const [d, e] = [path('D', de, N, 1), path('E', de, N, 1)];
  const shift = bias.map((v, n) => v + v * d.at(n, 0) + e.at(n, 0) + c.at(n, 0));
  return (x) => linear(x, moved, shift);
};

/**
 * A and B are of PEFT's own decomposition of the base weight, whose signs the rotation goes with. They are taken from
 * `factors` where those are given: as if PEFT's signs were theirs.
 */
export const psoftWith =
  (factors: (load: Loading, module: string) => { a: Matrix; b: Matrix } | undefined): PeftMethod =>
  (load, module) => {
    const { N, K } = load.sizes(module);
    const r = load.number('r');
    if (r > Math.min(N, K)) refuse(`r ${r} of ${N} to ${K}`);
    const scaling = load.number('psoft_alpha') / r;
    const entries = (r * (r - 1)) / 2;
    const orthogonal = load.flag('psoft_orth');
    const stored = load.vector(module, 'psoft_R.weight', orthogonal ? [entries] : [r, r]);
    let turn = new Matrix(r, r, new Float64Array(r * r));
    if (orthogonal) {
      let q = skewOf(stored, 0, r);
      const eps = load.config.cayley_neumann_eps;
      if (load.flag('use_cayley_neumann')) {
        const norm = Math.hypot(...q.data);
        if (typeof eps === 'number' && norm > eps) q = q.map((v) => (v * eps) / norm);
        turn = cayleySeries(q, load.number('num_cayley_neumann_terms'));
      } else {
        turn = cayley(q.map((v) => -v));
      }
    } else {
      turn = new Matrix(r, r, Float64Array.from(stored));
    }
    if (load.flag('psoft_mag_b'))
      turn = turn.scaleRows(load.vector(module, 'psoft_R.vector_b', [r]));
    if (load.flag('psoft_mag_a'))
      turn = turn.scaleCols(load.vector(module, 'psoft_R.vector_a', [r]));
    const { weight } = load.linear(module);
    const given = factors(load, module);
    if (given !== undefined) {
      const delta = given.b.times(turn.plus(Matrix.identity(r), -1)).times(given.a);
      return withDelta(
        load,
        module,
        delta.map((v) => v * scaling),
      );
    }
    const whole = svd(weight);
    const a = Matrix.of(r, K, (i, k) => whole.vt.at(i, k));
    const b = Matrix.of(N, r, (n, i) => (whole.u.at(n, i) * (whole.s[i] as number)) / scaling);
    const delta = b.times(turn.plus(Matrix.identity(r), -1)).times(a);
    return withDelta(
      load,
      module,
      delta.map((v) => v * scaling),
    );
  };

/** Rows of an embedding's table [V, D]; x has a 1 in each row, at the id. */
export const trainableTokens: PeftMethod = (load, module) => {
  const { weight: table } = load.linear(module);
  const ids = load.config.token_indices as number[];
  const rows = load.matrix(module, 'trainable_tokens_delta', ids.length, table.cols);
  const changed = table.map((v, id, d) => (ids.includes(id) ? rows.at(ids.indexOf(id), d) : v));
  return (x) => x.times(changed);
};

/** A norm's own weight and bias. */
export const lnTuning: PeftMethod = (load, module) => {
  const { weight, bias } = load.linear(module);
  const K = weight.cols;
  const scale = load.vector(module, 'ln_tuning_layers.weight', [K]);
  const shift = bias === undefined ? undefined : load.vector(module, 'ln_tuning_layers.bias', [K]);
  return (x) => {
    return Matrix.of(x.rows, K, (m, k) => {
      const row = x.data.subarray(m * K, (m + 1) * K);
      const mean = row.reduce((sum, v) => sum + v, 0) / K;
      const variance = row.reduce((sum, v) => sum + (v - mean) ** 2, 0) / K;
      const normed = (x.at(m, k) - mean) / Math.sqrt(variance + 1e-5);
      return normed * (scale[k] as number) + (shift?.[k] ?? 0);
    });
  };
};
