import { Tensor } from '../../core/tensor.js';

/** The factors of a LoRA adapter. */
interface Factors {
  readonly loraA: Tensor;
  readonly loraB: Tensor;
}

/**
 * What an adapter has learnt over a base that its start replaced, as LoRA of rank 2r over the original weight:
 * `[loraA; A₀]` and `[loraB | −B₀]`, PEFT's conversion. With twice the loraAlpha (√2 times with rsLoRA) the scaling stays.
 * @param trained loraA [r, K], loraB [N, r]
 * @param start the factors before training
 */
export function convertedFactors(trained: Factors, start: Factors): Factors {
  const { device } = trained.loraA;
  const [r = 0, K = 0] = trained.loraA.shape;
  const [N = 0] = trained.loraB.shape;
  const a = new Float32Array(2 * r * K);
  a.set(trained.loraA.readSync());
  a.set(start.loraA.readSync(), r * K);
  const [b, b0] = [trained.loraB.readSync(), start.loraB.readSync()];
  const both = Float32Array.from({ length: N * 2 * r }, (_, at) => {
    const [n, i] = [Math.floor(at / (2 * r)), at % (2 * r)];
    return i < r ? (b[n * r + i] as number) : -(b0[n * r + i - r] as number);
  });
  return {
    loraA: Tensor.from(a, [2 * r, K], { device }),
    loraB: Tensor.from(both, [N, 2 * r], { device }),
  };
}
