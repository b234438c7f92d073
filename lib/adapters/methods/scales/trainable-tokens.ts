import { Tensor } from '../../../core/tensor.js';
import { FeatureMap } from '../../../ops/feature-map.js';
import { matmul } from '../../../ops/matmul.js';
import { oneHot } from '../../../ops/one-hot.js';
import { defineAdapter } from '../../definition/method.js';

/**
 * Trains some rows of an embedding and keeps the others: `rows` [tokens, D] replace those of the table. Works over
 * {@link oneHot} ids, like every adapter of an embedding, with the table's transpose [D, V] as the base weight:
 * `y = (x ⊙ others)·wᵀ + x[tokens] · rows`, exactly one or the other. Only the rows have a gradient.
 */
export const trainableTokens = defineAdapter({
  method: 'trainable-tokens',
  reference: 'PEFT, trainable tokens, 2025',
  defaults: { tokens: [0] as readonly number[] },
  trained: ['rows'],
  check: ({ K, config: { tokens } }) => {
    const valid = tokens.every((id) => Number.isInteger(id) && id >= 0 && id < K);
    return tokens.length > 0 && valid && new Set(tokens).size === tokens.length
      ? undefined
      : ['tokens', `distinct ids from 0 to ${K - 1}`, `[${tokens}]`];
  },
  shapes: ({ N, config: { tokens } }) => ({ rows: [tokens.length, N] }),
  init: (make) => {
    const { K, device, dtype, config } = make;
    const w = make.weight('trainable-tokens.create');
    const ids = oneHot(config.tokens, K, { device });
    const x = w instanceof Tensor ? ids.to({ dtype: w.dtype }) : ids;
    return { rows: matmul(x, w).to({ dtype }) };
  },
  prepare: ({ K, device, config: { tokens } }) => {
    const others = new Float32Array(K).fill(1);
    for (const id of tokens) others[id] = 0;
    return {
      own: FeatureMap.gather(Int32Array.from(tokens), K, { device }),
      others: Tensor.from(others, [K], { device }),
    };
  },
  forward: (t, { x, w, bias, p, state }) => {
    const rest = t.linear(t.multiply(x, t.constant(state.others)), w, bias);
    return t.add(rest, t.product(t.features(x, state.own), p.rows));
  },
  peft: {
    type: 'TRAINABLE_TOKENS',
    embeddings: true,
    tensors: { rows: 'trainable_tokens_delta' },
    read: ({ token_indices }) => ({ tokens: (token_indices as number[] | null) ?? [] }),
    write: ({ tokens }) => ({ token_indices: tokens, init_weights: true }),
  },
});
