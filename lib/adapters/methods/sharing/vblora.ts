import type { Value } from '../../../autograd/gradient-tape.js';
import type { Tape } from '../../../autograd/tape.js';
import { type RawTensor, rawToFloat32 } from '../../../checkpoint/raw-tensor.js';
import { fail } from '../../../core/errors.js';
import type { Tensor } from '../../../core/tensor.js';
import { FeatureMap } from '../../../ops/feature-map.js';
import { defineAdapter } from '../../definition/method.js';

/** The positions of the k largest logits of every row [.., h], in descending order. */
function largest(logits: Tensor, h: number, k: number): Int32Array {
  const values = logits.readSync();
  const rows = values.length / h;
  const table = new Int32Array(rows * k);
  for (let row = 0; row < rows; row++) {
    const order = Array.from({ length: h }, (_, j) => j).sort(
      (i, j) => (values[row * h + j] as number) - (values[row * h + i] as number) || i - j,
    );
    table.set(order.slice(0, k), row * k);
  }
  return table;
}

/**
 * Logits whose softmax over the largest k equals the stored weights. PEFT leaves out the last weight of
 * each row, because they sum to 1.
 */
function logitsOf(indices: RawTensor, weights: RawTensor, vectors: number): RawTensor {
  const k = indices.shape.at(-1) ?? 1;
  const shares = rawToFloat32(weights);
  const rows = indices.data.length / k;
  if (shares.length !== rows * (k - 1)) {
    const expected = `${k - 1} for each row of the indices, ${rows * (k - 1)} in all`;
    fail('ERR_FILE', 'adapterFromPeft', 'topk_weights', expected, String(shares.length));
  }
  const data = new Float32Array(rows * vectors).fill(kUnchosen);
  for (let row = 0; row < rows; row++) {
    let left = 1;
    for (let j = 0; j < k; j++) {
      const share = j < k - 1 ? (shares[row * (k - 1) + j] as number) : left;
      left -= share;
      const vector = Number(indices.data[row * k + j]);
      if (!(Number.isInteger(vector) && vector >= 0 && vector < vectors)) {
        const expected = `integers from 0 to ${vectors - 1}`;
        fail('ERR_FILE', 'adapterFromPeft', 'topk_indices', expected, String(vector));
      }
      // A chosen vector with a zero weight must still rank before those that are not chosen.
      data[row * vectors + vector] = Math.max(Math.log(Math.max(share, 0)), kUnchosen / 2);
    }
  }
  return { dtype: 'F32', shape: [...indices.shape.slice(0, -1), vectors], data };
}
/** Its exponential is 0 in f32, relative to any logit of a weight. */
const kUnchosen = -1e4;

export interface Mix {
  /** Maps all logits of all rows to the chosen ones. */
  readonly chosen: FeatureMap;
  /** Maps to the first of each row, k times. */
  readonly first: FeatureMap;
}

/** `softmax(chosen logits)` in their positions, zeros elsewhere, times the bank: [rows, b]. */
function mixed(t: Tape, logits: Value, bank: Value, { chosen, first }: Mix, k: number): Value {
  const [h = 0] = bank.shape;
  const size = logits.tensor.size;
  const rows = size / h;
  const top = t.features(t.reshape(t.cast(logits, 'f32'), [1, size]), chosen);
  // Minus the largest of the row, so that exp cannot overflow.
  const shifted = t.add(top, t.features(top, first), 1, -1);
  const e = t.map(t.reshape(shifted, [rows, k]), 'exp');
  const weights = t.multiply(e, t.map(t.sum(e, 1), 'reciprocal'));
  const spread = t.features(t.reshape(weights, [1, rows * k]), chosen.adjoint);
  return t.product(t.reshape(spread, [rows, h]), bank);
}

/**
 * Every sub-vector of the factors is a mixture of vectors from a bank that all layers share: the k
 * largest of its logits, through a softmax, weight k vectors of the bank. The paper chooses the k vectors
 * anew at every step. Here they are chosen when the adapter is made or loaded, and anew by
 * {@link Adapter.refresh}, because choosing reads the logits on the host.
 *
 * Both factors are mixtures from the start: training starts near the base model, not at it.
 */
export const vblora = defineAdapter({
  method: 'vblora',
  reference:
    'Li et al., VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks, 2024, arXiv:2405.15179',
  defaults: {
    r: 4,
    vectors: 256,
    vectorLength: 256,
    topK: 2,
    logitsStd: 0.1,
    bankBound: 0.02,
    dropout: 0,
  },
  trained: ['logitsA', 'logitsB', 'bank'],
  shapes: ({ N, K, config: { r, vectors, vectorLength } }) => ({
    logitsA: [r, K / vectorLength, vectors],
    logitsB: [N / vectorLength, r, vectors],
    bank: [vectors, vectorLength],
  }),
  init: (make) => ({
    logitsA: make.normal('logitsA', make.config.logitsStd),
    logitsB: make.normal('logitsB', make.config.logitsStd),
    bank: make.uniform('bank', make.config.bankBound),
  }),
  drawIndexes: ({ config: { vectors, topK } }, { logitsA, logitsB }) => ({
    topA: largest(logitsA, vectors, topK),
    topB: largest(logitsB, vectors, topK),
  }),
  indexesFollowValues: true,
  prepare: ({ N, config: { r, vectors, vectorLength: b, topK }, device }, { topA, topB }) => {
    const mix = (table: Int32Array): Mix => ({
      chosen: FeatureMap.gather(
        table.map((j, i) => Math.floor(i / topK) * vectors + j),
        (table.length / topK) * vectors,
        { device },
      ),
      first: FeatureMap.gather(
        table.map((_, i) => i - (i % topK)),
        table.length,
        { device },
      ),
    });
    // Reorders [N / b, r, b] to [N, r].
    const order = Int32Array.from({ length: N * r }, (_, i) => {
      const n = Math.floor(i / r);
      return (Math.floor(n / b) * r + (i % r)) * b + (n % b);
    });
    return {
      a: mix(topA as Int32Array),
      b: mix(topB as Int32Array),
      order: FeatureMap.permute(order, { device }),
    };
  },
  check: ({ N, K, config: { vectors, vectorLength, topK, logitsStd, bankBound } }) => {
    if (!(vectorLength > 0 && N % vectorLength === 0 && K % vectorLength === 0)) {
      return ['vectorLength', `a divisor of ${N} and ${K}`, String(vectorLength)];
    }
    if (!(Number.isInteger(topK) && topK >= 1 && topK <= vectors)) {
      return ['topK', `an integer from 1 to ${vectors}`, String(topK)];
    }
    if (logitsStd < 0) return ['logitsStd', 'not negative', String(logitsStd)];
    return bankBound < 0 ? ['bankBound', 'not negative', String(bankBound)] : undefined;
  },
  forward: (t, { x, w, bias, p, state, N, K, config: { r, topK, dropout } }) => {
    const a = t.reshape(mixed(t, p.logitsA, p.bank, state.a, topK), [r, K]);
    const flat = t.reshape(mixed(t, p.logitsB, p.bank, state.b, topK), [1, N * r]);
    const b = t.reshape(t.features(flat, state.order), [N, r]);
    return t.expand(x, w, t.shrink(x, a, { dropout }), b, { bias });
  },
  peft: {
    type: 'VBLORA',
    tensors: { logitsA: 'vblora_logits_A', logitsB: 'vblora_logits_B' },
    shared: { bank: 'vblora_vector_bank' },
    // With save_only_topk_weights the file has the chosen vectors and their weights instead of the
    // logits.
    unpack: (name, { num_vectors }, stored) => {
      const key = name === 'logitsA' ? 'vblora_logits_A' : 'vblora_logits_B';
      const indices = stored(`${key}_topk_indices`);
      const weights = stored(`${key}_topk_weights`);
      if (name === 'bank' || indices === undefined || weights === undefined) return undefined;
      return logitsOf(indices, weights, Number(num_vectors));
    },
    read: (c) => ({
      r: Number(c.r),
      vectors: Number(c.num_vectors),
      vectorLength: Number(c.vector_length),
      topK: Number(c.topk ?? 2),
      logitsStd: Number(c.init_logits_std ?? 0.1),
      bankBound: Number(c.init_vector_bank_bound ?? 0.02),
      dropout: Number(c.vblora_dropout ?? 0),
    }),
    write: (c) => ({
      r: c.r,
      num_vectors: c.vectors,
      vector_length: c.vectorLength,
      topk: c.topK,
      init_logits_std: c.logitsStd,
      init_vector_bank_bound: c.bankBound,
      vblora_dropout: c.dropout,
      save_only_topk_weights: false,
    }),
  },
});
