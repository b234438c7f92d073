import { denseUpdate } from '../../../autograd/dense-update.js';
import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import { Tensor } from '../../../core/tensor.js';
import type { BaseWeight } from '../../../ops/base-weight.js';
import { blockMatmul } from '../../../ops/block-matmul.js';
import { denseRows, rowStep } from '../../../ops/dense-rows.js';
import { FeatureMap } from '../../../ops/feature-map.js';
import { defineAdapter } from '../../definition/method.js';

const kForms: readonly string[] = ['plain', 'bat', 'mini'];

/** The least common multiple. */
function commonMultiple(a: number, b: number): number {
  let [x, y] = [a, b];
  while (y !== 0) [x, y] = [y, x % y];
  return (a / x) * b;
}

/**
 * `x · (w · D)ᵀ` of the Bat form: row block q of w times D_q, within every column block. The product is
 * as large as w. It is made tile by tile from rows of w ({@link denseUpdate}).
 * @param blocks D, [N / r, r, r]
 */
function throughBlocks(t: Tape, x: Value, w: BaseWeight, blocks: Value): Value {
  const [N = 0, K = 0] = w.shape;
  const [, r = 0] = blocks.shape;
  const { device } = w;
  return denseUpdate(t, x, {
    N,
    step: commonMultiple(r, rowStep(w)),
    rows: { d: t.reshape(blocks, [N, r]) },
    tile: (tape, { d }, begin, end) => {
      const count = (end - begin) / r;
      // Products with identities put the row blocks side by side: [r, count, ...].
      const eyes = Float32Array.from({ length: r * count * r }, (_, at) =>
        Math.floor(at / (count * r)) === at % r ? 1 : 0,
      );
      const pick = Tensor.from(eyes, [r, count, r], { device });
      const dense = denseRows(w, begin, end).reshape([count, K, r]);
      const runs = tape.own(blockMatmul(pick, dense));
      const turned = tape.blockProduct(tape.own(pick), tape.reshape(d, [count, r, r]));
      return tape.reshape(tape.blockTransposeProduct(runs, turned), [end - begin, K]);
    },
  });
}

/**
 * Matrix shard sharing: one block missD [r, N] for every r input features,
 * `y = x·wᵀ + (Σ_i x_i)·missD`, where x_i are the runs of r features of x, the last padded with zeros.
 * Forms: `plain`; `mini`, in which missD [r, miniR] is repeated over the outputs; and `bat`, in which each
 * r × r block of w is also multiplied by the block of its rows, `w_qp + w_qp·D_q + D_q` with missD [N / r,
 * r, r]. Bat makes an update of the size of w in every pass, in tiles, and has no dropout.
 */
export const miss = defineAdapter({
  method: 'miss',
  reference:
    'Kang and Yin, MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure, 2024, arXiv:2409.15371',
  defaults: { r: 64, form: 'plain', miniR: 1, dropout: 0 },
  trained: ['missD'],
  shapes: ({ N, config: { r, form, miniR } }) => ({
    missD: form === 'bat' ? [N / r, r, r] : [r, form === 'mini' ? miniR : N],
  }),
  check: ({ N, K, config: { r, form, miniR } }) => {
    if (!kForms.includes(form)) return ['form', `one of ${kForms.join(', ')}`, `"${form}"`];
    if (!(r > 0)) return ['r', 'above 0', String(r)];
    if (form === 'mini' && !(miniR > 0 && N % miniR === 0)) {
      return ['miniR', `a divisor of N (${N})`, String(miniR)];
    }
    if (form === 'bat' && (N % r !== 0 || K % r !== 0)) {
      return ['r', `a divisor of K (${K}) and of N (${N})`, String(r)];
    }
    return undefined;
  },
  init: (make) => ({ missD: make.zeros('missD') }),
  prepare: ({ N, K, config: { r, form, miniR }, device }) => {
    const lists = Array.from({ length: r }, (_, j) =>
      Array.from({ length: Math.max(0, Math.ceil((K - j) / r)) }, (_, i) => j + i * r),
    );
    const sums = new FeatureMap({ inFeatures: K, outFeatures: r, lists, device });
    if (form === 'mini') {
      return { sums, spread: FeatureMap.repeat(miniR, N / miniR, 'outer', { device }) };
    }
    return { sums };
  },
  forward: (t, { x, w, bias, p, config, state, N }) => {
    const { r, form, dropout } = config;
    const seen = form === 'bat' ? x : t.dropout(x, dropout);
    const h = t.features(seen, state.sums, { dtype: 'f32' });
    if (form !== 'bat') {
      const spread = state.spread === undefined ? p.missD : t.features(p.missD, state.spread);
      return t.expand(x, w, h, t.transpose(spread), { bias });
    }
    const y = t.expand(x, w, h, t.reshape(p.missD, [N, r]), { bias });
    return t.add(y, throughBlocks(t, x, w, p.missD));
  },
  peft: {
    type: 'MISS',
    tensors: { missD: 'miss_block' },
    read: (config) => ({
      r: Number(config.r ?? 64),
      form: typeof config.init_weights === 'string' ? config.init_weights : 'plain',
      miniR: Number(config.mini_r ?? 1),
      dropout: Number(config.miss_dropout ?? 0),
    }),
    write: ({ r, form, miniR, dropout }) => ({
      r,
      init_weights: form === 'plain' ? true : form,
      mini_r: miniR,
      miss_dropout: dropout,
    }),
  },
});
