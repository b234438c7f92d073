import { Tensor } from '../../core/tensor.js';

/** The factors of a LoRA adapter. */
interface Factors {
  readonly loraA: Tensor;
  readonly loraB: Tensor;
}

/** Factors of a part of a sum, and their sign. */
export interface SignedFactors {
  /** [r, K] */
  readonly a: Float32Array;
  /** [N, r] */
  readonly b: Float32Array;
  readonly sign: 1 | -1;
}

/** The sum of updates as factors of the sum of their ranks: `[a₀; a₁; ...]` and `[b₀ | b₁ | ...]`, with the signs. */
export function stackedFactors(
  parts: readonly SignedFactors[],
  { N, K }: { readonly N: number; readonly K: number },
): { readonly a: Float32Array; readonly b: Float32Array; readonly r: number } {
  const rows = parts.reduce((sum, { a }) => sum + a.length / K, 0);
  const a = new Float32Array(rows * K);
  const b = new Float32Array(N * rows);
  let at = 0;
  for (const part of parts) {
    const r = part.a.length / K;
    a.set(part.a, at * K);
    for (let n = 0; n < N; n++) {
      for (let j = 0; j < r; j++) b[n * rows + at + j] = part.sign * (part.b[n * r + j] as number);
    }
    at += r;
  }
  return { a, b, r: rows };
}

/**
 * What an adapter has learnt over a base that its start replaced, as LoRA of rank 2r over the original weight:
 * `[loraA; A₀]` and `[loraB | −B₀]`, PEFT's conversion. With twice the loraAlpha (√2 times with rsLoRA) the scaling stays.
 * @param trained loraA [r, K], loraB [N, r]
 * @param start the factors before training
 */
export function convertedFactors(trained: Factors, start: Factors): Factors {
  const { device } = trained.loraA;
  const [, K = 0] = trained.loraA.shape;
  const [N = 0] = trained.loraB.shape;
  const signed = ({ loraA, loraB }: Factors, sign: 1 | -1): SignedFactors => ({
    a: loraA.readSync(),
    b: loraB.readSync(),
    sign,
  });
  const wide = stackedFactors([signed(trained, 1), signed(start, -1)], { N, K });
  return {
    loraA: Tensor.from(wide.a, [wide.r, K], { device }),
    loraB: Tensor.from(wide.b, [N, wide.r], { device }),
  };
}
