import { roundToBf16, TorchRandom } from '../../../checkpoint/random/torch-random.js';
import { Tensor } from '../../../core/tensor.js';
import { leadingPart } from '../../definition/leading-part.js';
import { defineAdapter } from '../../definition/method.js';

const basesOf = (N: number, K: number, r: number): number => Math.ceil(Math.min(N, K) / r);

/** Standard deviation of a sample. */
function deviationOf(values: Float32Array): number {
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  return Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (values.length - 1));
}

/** -1, 0 and 1: the lowest and the highest 1 / (2 · sparsity) of [0, 1), and the values in between. */
function signs(values: Float32Array, sparsity: number): Float32Array {
  const [low, high] = [Math.fround(1 / (2 * sparsity)), Math.fround(1 - 1 / (2 * sparsity))];
  const found = values.map((v) => (v < low ? -1 : v > high ? 1 : 0));
  const deviation = Math.fround(deviationOf(found));
  return found.map((v) => v / deviation);
}

/**
 * The random bases [r, 1, small] and [large, bases, r] of the largest layers, from PEFT's seed: sparse ones, or uniformly
 * distributed ones in bf16, divided by their standard deviation. (Older versions drew them in f16 if there was no GPU.)
 */
function projections(
  config: Readonly<Record<string, unknown>>,
  small: number,
  large: number,
  r: number,
): { readonly left: Float32Array; readonly right: Float32Array } {
  const random = new TorchRandom(Number(config.projection_prng_key ?? 0));
  const bases = basesOf(small, large, r);
  if (config.very_sparse === true || config.sparse === true) {
    const sparsity = config.very_sparse === true ? Math.sqrt(small) : 3;
    const left = random.uniform([r, 1, small]);
    return {
      left: signs(left, sparsity),
      right: signs(random.uniform([large, bases, r]), sparsity),
    };
  }
  const normed = (values: Float32Array): Float32Array => {
    const deviation = roundToBf16(deviationOf(values));
    return values.map((v) => roundToBf16(v / deviation));
  };
  const left = random.kaimingUniform([r, 1, small], Math.sqrt(5), 'bf16');
  const right = new Float32Array(large * bases * r);
  for (let b = 0; b < bases; b++) {
    const base = random.kaimingUniform([large, 1, r], Math.sqrt(5), 'bf16');
    base.forEach((value, i) => {
      right[(Math.floor(i / r) * bases + b) * r + (i % r)] = value;
    });
  }
  return { left: normed(left), right: normed(right) };
}

/**
 * A full-rank update as a sum over random bases, with two trained diagonals: `ΔW = loraAlpha / r · Σ_b
 * right_b · diag(lambda_b) · left · diag(gamma_b)` (transposed if N < K), with left [r, min(N, K)] and
 * right_b [max(N, K), r] frozen and shared by all layers.
 *
 * PEFT numbers the r · bases columns of `right` base by base and those of `left` rank by rank, and
 * pairs equal numbers. So does this library, to agree with its checkpoints.
 */
export const randlora = defineAdapter({
  method: 'randlora',
  reference:
    'Albert et al., RandLoRA: Full-rank parameter-efficient fine-tuning of large models, 2025, arXiv:2502.00987',
  defaults: { r: 32, loraAlpha: 640, dropout: 0 },
  trained: ['lambda', 'gamma'],
  frozen: ['left', 'right'],
  shapes: ({ N, K, config: { r } }) => {
    const bases = basesOf(N, K, r);
    return {
      lambda: [r, bases],
      gamma: [bases, Math.min(N, K)],
      left: [r, 1, Math.min(N, K)],
      right: [Math.max(N, K), bases, r],
    };
  },
  init: (make) => ({
    lambda: make.zeros('lambda'),
    gamma: make.full('gamma', 1 / Math.max(...make.shapes.gamma)),
    left: make.normal('left', 1 / Math.sqrt(Math.min(make.N, make.K))),
    right: make.normal('right', 1 / Math.sqrt(Math.max(make.N, make.K))),
  }),
  prepare: ({ N, K, config: { r }, device }, _, { right }) => {
    const bases = basesOf(N, K, r);
    const size = Math.max(N, K);
    const all = right.readSync();
    const rights = Array.from({ length: bases }, (_base, b) => {
      // Column k · bases + b of the flattened [size, bases · r]; [size, r], or its transpose.
      const at = (i: number, k: number) => all[i * bases * r + k * bases + b] as number;
      const values = Float32Array.from({ length: size * r }, (_v, i) =>
        N >= K ? at(Math.floor(i / r), i % r) : at(i % size, Math.floor(i / size)),
      );
      return Tensor.from(values, N >= K ? [size, r] : [r, size], { device });
    });
    const picks = Array.from({ length: bases }, (_base, b) => {
      const one = new Float32Array(bases);
      one[b] = 1;
      return Tensor.from(one, [1, bases], { device });
    });
    return { bases, picks, rights };
  },
  forward: (t, { x, w, bias, p, state, N, K, config: { r, loraAlpha, dropout } }) => {
    const small = Math.min(N, K);
    const left = t.reshape(p.left, [r, small]);
    let y = t.linear(x, w, bias);
    const dropped = t.dropout(x, dropout);
    for (let b = 0; b < state.bases; b++) {
      const pick = t.constant(state.picks[b] as Tensor);
      const gamma = t.reshape(t.product(pick, p.gamma), [small]);
      const lambda = t.reshape(t.matmul(pick, p.lambda), [r]);
      const right = t.constant(state.rights[b] as Tensor);
      const update =
        N >= K
          ? t.matmul(t.multiply(t.shrink(t.multiply(dropped, gamma), left), lambda), right)
          : t.multiply(t.product(t.multiply(t.shrink(dropped, right), lambda), left), gamma);
      y = t.add(y, update, 1, loraAlpha / r);
    }
    return y;
  },
  peft: {
    type: 'RANDLORA',
    tensors: { lambda: 'randlora_lambda', gamma: 'randlora_gamma' },
    shared: { left: 'randlora_A', right: 'randlora_B' },
    read: ({ r, randlora_alpha, randlora_dropout }) => ({
      r: Number(r),
      loraAlpha: Number(randlora_alpha),
      dropout: Number(randlora_dropout ?? 0),
    }),
    regenerate: (config, { N, K, config: { r } }, { inFeatures, outFeatures }) => {
      if (config.save_projection !== false) return {};
      const [small, large] = [inFeatures, outFeatures].sort((a, b) => a - b) as [number, number];
      const { left, right } = projections(config, small, large, r);
      const [min, max] = [Math.min(N, K), Math.max(N, K)];
      const bases = basesOf(outFeatures, inFeatures, r);
      return {
        tensors: {
          left: leadingPart(left, [r, 1, small], [r, 1, min]),
          right: leadingPart(right, [large, bases, r], [max, basesOf(N, K, r), r]),
        },
      };
    },
    write: ({ r, loraAlpha, dropout }) => ({
      r,
      randlora_alpha: loraAlpha,
      randlora_dropout: dropout,
    }),
  },
});
