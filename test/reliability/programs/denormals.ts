/** Bits of products that are denormal, where the JavaScript thread itself may flush them to zero. */
import { matmul, Tensor } from '../../../lib/index.js';

const bits = new Uint32Array([1, 0x0000ffff, 0x007fffff, 0x80000001]);
const ones = new Float32Array(64).fill(1);
const results: Record<string, number[]> = {};
for (const device of ['cpu', 'reference'] as const) {
  const x = Tensor.from(new Float32Array(bits.buffer), [4, 1], { device });
  const w = Tensor.from(ones, [64, 1], { device });
  const y = await matmul(x, w).read();
  const found = new Uint32Array(y.buffer);
  results[device] = [found[0], found[64], found[128], found[192]].map(Number);
}
console.log(JSON.stringify({ results, flushed: Number.MIN_VALUE / 1 === 0 }));
