/** LORA with its variants, and ADALORA. */
import { Matrix } from '../adapter-layer.js';
import { svd, triplets } from './linear-algebra.js';
import { covers, type Forward, type Loading, linear, type PeftMethod, refuse } from './loader.js';

const given = (value: unknown): boolean => value !== undefined && value !== null && value !== false;

/** Block i of the rows of `stored` over block i of the columns: [rows, blocks · cols]. */
function spreadRows(stored: Matrix, blocks: number): Matrix {
  const size = stored.rows / blocks;
  return Matrix.of(stored.rows, blocks * stored.cols, (i, j) =>
    Math.floor(j / stored.cols) === Math.floor(i / size) ? stored.at(i, j % stored.cols) : 0,
  );
}

/** Factors of a block-diagonal LoRA as whole matrices. */
function bdlora(load: Loading, module: string, r: number): { a: Matrix; b: Matrix } {
  const { N, K } = load.sizes(module);
  const config = load.config.use_bdlora as Readonly<Record<string, unknown>>;
  const blocks = config.nblocks as number;
  const names = (key: string) => (config[key] ?? []) as string[];
  const inA = covers(names('target_modules_bd_a'), module);
  const inB = covers(names('target_modules_bd_b'), module);
  if (inA && inB) refuse(`${module} is in both lists of use_bdlora`);
  if (!inA && !inB && config.match_strict !== false)
    refuse(`${module} is in no list of use_bdlora`);
  const a = load.matrix(module, 'lora_A.weight', r, inA ? K / blocks : K);
  const b = load.matrix(module, 'lora_B.weight', N, inB ? r / blocks : r);
  return { a: inA ? spreadRows(a, blocks) : a, b: inB ? spreadRows(b, blocks) : b };
}

export const lora: PeftMethod = (load, module) => {
  const { config } = load;
  const { weight, bias } = load.linear(module);
  const { N, K } = load.sizes(module);
  const r = load.own('r', 'rank_pattern', module);
  const alpha = load.own('lora_alpha', 'alpha_pattern', module);
  const scaling = alpha / (load.flag('use_rslora') ? Math.sqrt(r) : r);
  // Linear layers that are not of GPTQ have no pooled input: lora_A is over all of K, whatever use_qalora says.
  const { a, b } = given(config.use_bdlora)
    ? bdlora(load, module, r)
    : {
        a: load.matrix(module, 'lora_A.weight', r, K),
        b: load.matrix(module, 'lora_B.weight', N, r),
      };
  let delta = b.times(a).map((v) => v * scaling);
  let base = weight;
  let shift: ArrayLike<number> | undefined = bias;
  if (load.flag('lora_bias')) {
    const own = load.vector(module, 'lora_B.bias', [N]);
    shift = Float64Array.from(own, (v, n) => scaling * v + (bias?.[n] ?? 0));
  }
  if (given(config.kasa_config)) {
    const diagonal = load.vector(module, 'lora_diag', [r]);
    delta = b
      .scaleCols(diagonal)
      .times(a)
      .map((v) => v * scaling);
    // PEFT replaces the base weight when the adapter is made: the r smallest triplets go.
    base = triplets(svd(weight), 0, Math.min(N, K) - r);
  }
  if (given(config.monteclora_config)) {
    const { num_samples: n } = config.monteclora_config as { num_samples: number };
    const sampler = (name: string, shape: number[]) =>
      load.vector(module, `lora_monteclora_sampler.${name}`, shape);
    sampler('expert_weights', [n]);
    sampler('expert_weights_prior', [n]);
    sampler('gaussian_var_prior', [r, r]);
    sampler('std_prior', [r]);
  }
  if (given(config.velora_config)) {
    const { num_groups: groups } = config.velora_config as { num_groups: number };
    load.optional(module, 'lora_velora_embed', [Math.ceil(K / groups)]);
  }
  if (load.flag('use_dora')) {
    const magnitude = load.vector(module, 'lora_magnitude_vector', [N]);
    const whole = base.plus(delta);
    const factors = Float64Array.from({ length: N }, (_, n) => {
      const norm = Math.hypot(...whole.data.subarray(n * K, (n + 1) * K));
      return (magnitude[n] as number) / norm;
    });
    return (x) => linear(x, whole.scaleRows(factors), bias);
  }
  return (x) => linear(x, base.plus(delta), shift);
};

export const adalora: PeftMethod = (load, module) => {
  const { N, K } = load.sizes(module);
  const total = load.config.total_step;
  if (typeof total !== 'number' || total <= 0) {
    refuse('AdaLoRA does not work when total_step is None: supply a value above 0');
  }
  const [tinit, tfinal] = [load.config.tinit ?? 0, load.config.tfinal ?? 0] as [number, number];
  if (tinit >= (total as number) - tfinal) refuse('tinit and tfinal leave no budgeting phase');
  const first = load.number('init_r');
  const pattern = load.config.rank_pattern as
    | Readonly<Record<string, boolean[]>>
    | null
    | undefined;
  const flags = pattern?.[`${module}.lora_E`];
  if (pattern !== undefined && pattern !== null && flags !== undefined && flags.length !== first) {
    refuse(`rank_pattern of ${module} must have init_r flags`);
  }
  const r = flags?.filter(Boolean).length ?? first;
  const a = load.matrix(module, 'lora_A', r, K);
  const e = load.vector(module, 'lora_E', [r, 1]);
  const b = load.matrix(module, 'lora_B', N, r);
  const alpha = load.number('lora_alpha');
  const scaling = (alpha > 0 ? alpha : first) / (first + 1e-5);
  const { weight, bias } = load.linear(module);
  const delta = b.times(a.scaleRows(e)).map((v) => v * scaling);
  const forward: Forward = (x) => linear(x, weight.plus(delta), bias);
  return forward;
};
