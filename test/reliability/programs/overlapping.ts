/** Ops of several launches on device cuda-emulated; the emulated driver writes down what is launched. */
import {
  factoredNorm,
  LoraAdapter,
  loraForwardMany,
  matmul,
  quantize,
  synchronize,
  Tensor,
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
factoredNorm({ w, loraA, loraB });
matmul(x, w);
await synchronize(device);
console.log('{}');
