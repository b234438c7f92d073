/** Ops of several launches on device cuda-emulated; the emulated driver writes down what is launched. */
import {
  factoredNorm,
  LoraAdapter,
  loraForwardMany,
  matmul,
  quantize,
  synchronize,
  Tensor,
  weightNorms,
} from '../../../lib/index.js';

const device = 'cuda-emulated' as const;
const random = (seed: number, shape: number[], dtype: 'f32' | 'bf16' = 'f32'): Tensor =>
  Tensor.randn(shape, { seed, dtype, device });

const [M, N, K, r] = [3, 1032, 2080, 8];
const x = random(1, [M, K], 'bf16');
const w = quantize(random(2, [N, K], 'bf16'), { format: 'nf4' });
const [loraA, loraB] = [random(3, [r, K]), random(4, [N, r])];
const adapter = new LoraAdapter({ loraA, loraB, loraAlpha: r });
loraForwardMany(x, [{ w, adapter }, { w }, { w, adapter }], { training: false });
const kept = weightNorms(w);
factoredNorm({ w, loraA, loraB, weightNorms: kept });
factoredNorm({ w, loraA, loraB, weightNorms: kept, dtype: 'bf16' });
matmul(x, w);
await synchronize(device);
console.log('{}');
