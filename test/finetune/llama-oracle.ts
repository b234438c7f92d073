/**
 * The Llama architecture in float64, written from its formulas: no tensors, no sharing of code with
 * the trainer. Slow on purpose.
 */

import type { LlamaConfig } from '../../lib/model/llama-config.js';

/** A matrix of rows. */
type Rows = number[][];

/** Weights by their names in the checkpoint, row-major. */
export type OracleWeights = (name: string) => ArrayLike<number>;

export interface OracleAdapter {
  readonly loraA: ArrayLike<number>; // [r, K]
  readonly loraB: ArrayLike<number>; // [N, r]
  readonly r: number;
  readonly scaling: number;
}

/** y = x · wᵀ + scaling · (x · lora_aᵀ) · lora_bᵀ */
function linear(x: Rows, w: ArrayLike<number>, N: number, adapter?: OracleAdapter): Rows {
  return x.map((row) => {
    const K = row.length;
    const dot = (matrix: ArrayLike<number>, n: number, vector: number[]) => {
      let sum = 0;
      for (let k = 0; k < vector.length; k++) {
        sum += (matrix[n * vector.length + k] as number) * (vector[k] as number);
      }
      return sum;
    };
    const h =
      adapter === undefined
        ? []
        : Array.from({ length: adapter.r }, (_, i) => dot(adapter.loraA, i, row));
    if (w.length !== N * K) throw new Error(`weight of ${w.length} elements for [${N}, ${K}]`);
    return Array.from({ length: N }, (_, n) => {
      const low = adapter === undefined ? 0 : adapter.scaling * dot(adapter.loraB, n, h);
      return dot(w, n, row) + low;
    });
  });
}

function norm(x: Rows, weight: ArrayLike<number>, eps: number): Rows {
  return x.map((row) => {
    const mean = row.reduce((sum, value) => sum + value * value, 0) / row.length;
    return row.map((value, i) => (value / Math.sqrt(mean + eps)) * (weight[i] as number));
  });
}

/** One head of one position, rotated: pairs are (i, i + d/2). */
function rotate(head: number[], position: number, theta: number): number[] {
  const d = head.length;
  return head.map((value, i) => {
    const pair = i % (d / 2);
    const angle = position / theta ** ((2 * pair) / d);
    const other = i < d / 2 ? -(head[i + d / 2] as number) : (head[i - d / 2] as number);
    return value * Math.cos(angle) + other * Math.sin(angle);
  });
}

function attend(config: LlamaConfig, q: Rows, k: Rows, v: Rows): Rows {
  const { headDim: d, numAttentionHeads, numKeyValueHeads, ropeTheta } = config;
  const perKv = numAttentionHeads / numKeyValueHeads;
  return q.map((_, t) => {
    const out: number[] = [];
    for (let h = 0; h < numAttentionHeads; h++) {
      const kv = Math.floor(h / perKv);
      const part = (rows: Rows, at: number, head: number) =>
        (rows[at] as number[]).slice(head * d, (head + 1) * d);
      const query = rotate(part(q, t, h), t, ropeTheta);
      const scores = Array.from({ length: t + 1 }, (_, s) => {
        const key = rotate(part(k, s, kv), s, ropeTheta);
        return query.reduce((sum, value, i) => sum + value * (key[i] as number), 0) / Math.sqrt(d);
      });
      const max = Math.max(...scores);
      const exps = scores.map((score) => Math.exp(score - max));
      const total = exps.reduce((sum, e) => sum + e, 0);
      for (let i = 0; i < d; i++) {
        out.push(exps.reduce((sum, e, s) => sum + (e / total) * (part(v, s, kv)[i] as number), 0));
      }
    }
    return out;
  });
}

/** Logits of one sequence, [T][vocab]. */
export function oracleLogits(
  config: LlamaConfig,
  weights: OracleWeights,
  ids: readonly number[],
  adapterOf: (layer: string) => OracleAdapter | undefined = () => undefined,
): Rows {
  const { hiddenSize: D, headDim: d, intermediateSize: inner, rmsNormEps: eps } = config;
  const embedding = weights('model.embed_tokens.weight');
  let x: Rows = ids.map((id) =>
    Array.from({ length: D }, (_, i) => embedding[id * D + i] as number),
  );
  const add = (a: Rows, b: Rows) =>
    a.map((row, t) => row.map((value, i) => value + ((b[t] as number[])[i] as number)));
  for (let layer = 0; layer < config.numHiddenLayers; layer++) {
    const prefix = `model.layers.${layer}.`;
    const apply = (input: Rows, name: string, N: number) =>
      linear(input, weights(`${prefix}${name}.weight`), N, adapterOf(`${prefix}${name}`));
    const n1 = norm(x, weights(`${prefix}input_layernorm.weight`), eps);
    const heads = attend(
      config,
      apply(n1, 'self_attn.q_proj', config.numAttentionHeads * d),
      apply(n1, 'self_attn.k_proj', config.numKeyValueHeads * d),
      apply(n1, 'self_attn.v_proj', config.numKeyValueHeads * d),
    );
    x = add(x, apply(heads, 'self_attn.o_proj', D));
    const n2 = norm(x, weights(`${prefix}post_attention_layernorm.weight`), eps);
    const gate = apply(n2, 'mlp.gate_proj', inner);
    const up = apply(n2, 'mlp.up_proj', inner);
    const gated = gate.map((row, t) =>
      row.map((g, i) => (g / (1 + Math.exp(-g))) * ((up[t] as number[])[i] as number)),
    );
    x = add(x, apply(gated, 'mlp.down_proj', D));
  }
  const head = config.tieWordEmbeddings ? embedding : weights('lm_head.weight');
  return linear(norm(x, weights('model.norm.weight'), eps), head, config.vocabSize);
}

/** Mean cross-entropy of the targets over sequences, in nats. */
export function oracleLoss(
  config: LlamaConfig,
  weights: OracleWeights,
  sequences: readonly { readonly ids: readonly number[]; readonly targets: readonly number[] }[],
  adapterOf: (layer: string) => OracleAdapter | undefined = () => undefined,
): number {
  let total = 0;
  let count = 0;
  for (const { ids, targets } of sequences) {
    oracleLogits(config, weights, ids, adapterOf).forEach((row, t) => {
      const max = Math.max(...row);
      const sum = row.reduce((all, z) => all + Math.exp(z - max), 0);
      total += max + Math.log(sum) - (row[targets[t] as number] as number);
      count++;
    });
  }
  return total / count;
}
