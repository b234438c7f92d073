/** Loss, greedy tokens and steps of AdamW of the float64 decoder. */
import type { OracleLora } from './layers.js';
import { type Matrix, matrix } from './matrix.js';
import { decoderPass, type OracleGradients, type OracleModel, type OracleTokens } from './model.js';

/** Tokens with what they should predict. */
export interface OracleBatch extends OracleTokens {
  /** [B · T]: position t predicts labels[t + 1]; -100 counts for nothing. */
  readonly labels: ArrayLike<number>;
}

export interface OracleLoss {
  /** The mean over the labels that count. */
  readonly loss: number;
  /** [B, T - 1], 0 where the label is -100. */
  readonly tokenLosses: Float64Array;
  /** [B·T, vocabSize] */
  readonly dLogits: Matrix;
}

/** Cross-entropy of logits [B·T, vocabSize]. */
export function crossEntropy(logits: Matrix, { B, T, labels }: OracleBatch): OracleLoss {
  const V = logits.cols;
  const dLogits = matrix(logits.rows, V);
  const tokenLosses = new Float64Array(B * (T - 1));
  const count = Array.from(labels).filter((label, m) => m % T !== 0 && label !== -100).length;
  for (let b = 0; b < B; b++) {
    for (let t = 0; t + 1 < T; t++) {
      const label = labels[b * T + t + 1] as number;
      if (label === -100) continue;
      const row = logits.values.subarray((b * T + t) * V, (b * T + t + 1) * V);
      const max = Math.max(...row);
      const total = row.reduce((sum, value) => sum + Math.exp(value - max), 0);
      tokenLosses[b * (T - 1) + t] = Math.log(total) + max - (row[label] as number);
      row.forEach((value, j) => {
        const p = Math.exp(value - max) / total;
        dLogits.values[(b * T + t) * V + j] = (p - (j === label ? 1 : 0)) / count;
      });
    }
  }
  const sum = tokenLosses.reduce((total, value) => total + value, 0);
  return { loss: sum / count, tokenLosses, dLogits };
}

/** The loss of a batch and all gradients. */
export function lossAndGradients(
  model: OracleModel,
  batch: OracleBatch,
): OracleLoss & { readonly gradients: OracleGradients } {
  const pass = decoderPass(model, batch);
  const loss = crossEntropy(pass.logits, batch);
  return { ...loss, gradients: pass.back(loss.dLogits) };
}

/** Greedy tokens of prompts [B, P] of one length; no token ends them. */
export function generateGreedily(
  model: OracleModel,
  prompts: readonly (readonly number[])[],
  steps: number,
): { readonly ids: readonly (readonly number[])[]; readonly logits: readonly Float64Array[][] } {
  const V = model.config.vocabSize;
  const ids = prompts.map((prompt) => [...prompt]);
  const logits = Array.from({ length: steps }, () =>
    ids.map((row) => {
      const T = row.length;
      const positions = row.map((_, i) => i);
      const tokens = { B: 1, T, ids: [...row], positions, segments: new Int32Array(T) };
      const pass = decoderPass(model, tokens);
      const last = pass.logits.values.slice((T - 1) * V);
      row.push(last.indexOf(Math.max(...last)));
      return last;
    }),
  );
  return { ids, logits };
}

export interface AdamWSettings {
  readonly lr: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weight_decay: number;
  readonly steps: number;
}

/**
 * Steps of AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) over all adapters, on one batch. The model stays as it was.
 * @returns the loss before each step, and after the last
 */
export function trainAdamW(
  model: OracleModel,
  batch: OracleBatch,
  { lr, betas: [beta1, beta2], eps, weight_decay, steps }: AdamWSettings,
): number[] {
  const copy = ({ a, b, scaling }: OracleLora): OracleLora => ({
    scaling,
    a: matrix(a.rows, a.cols, a.values.slice()),
    b: matrix(b.rows, b.cols, b.values.slice()),
  });
  const adapters = new Map([...model.adapters].map(([name, lora]) => [name, copy(lora)]));
  const states = new Map<Float64Array, { m: Float64Array; v: Float64Array }>();
  const losses: number[] = [];
  for (let step = 1; step <= steps + 1; step++) {
    const { loss, gradients } = lossAndGradients({ ...model, adapters }, batch);
    losses.push(loss);
    if (step > steps) break;
    for (const [name, { a, b }] of adapters) {
      const gradient = gradients.adapters.get(name);
      if (gradient === undefined) throw new Error(`no gradient of ${name}`);
      for (const [p, g] of [
        [a.values, gradient.a.values],
        [b.values, gradient.b.values],
      ] as const) {
        const state = states.get(p) ?? { m: p.map(() => 0), v: p.map(() => 0) };
        states.set(p, state);
        p.forEach((value, i) => {
          const d = g[i] as number;
          const m = beta1 * (state.m[i] as number) + (1 - beta1) * d;
          const v = beta2 * (state.v[i] as number) + (1 - beta2) * d * d;
          [state.m[i], state.v[i]] = [m, v];
          const root = Math.sqrt(v / (1 - beta2 ** step)) + eps;
          p[i] = value * (1 - lr * weight_decay) - (lr * (m / (1 - beta1 ** step))) / root;
        });
      }
    }
  }
  return losses;
}
