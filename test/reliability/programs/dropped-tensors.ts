/** Makes many tensors, drops them without dispose(), and yields now and then. */
import { memoryUsage, Tensor } from '../../../lib/index.js';

const COUNT = 40_000;
const ELEMENTS = 16_384;

for (let i = 0; i < COUNT; i++) {
  Tensor.zeros([ELEMENTS], { device: 'cpu' });
  if (i % 100 === 99) await new Promise((resolve) => setImmediate(resolve));
}
const { peakBytes } = memoryUsage('cpu');
console.log(JSON.stringify({ peakBytes, madeBytes: COUNT * ELEMENTS * 4 }));
