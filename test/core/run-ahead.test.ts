/** A caller that queues more than the kernels have run does not hold all intermediate results at once. */
import { expect, it } from 'vitest';
import { flushSync, matmul, memoryUsage, resetPeakMemory, scope, Tensor } from '../../lib/index.js';

it.each([
  ['an idle queue', 0],
  // Most of a second on two fast cores: longer than a caller would wait by habit.
  ['a queue that one long op holds up', 4096],
])(
  'disposed tensors that wait for queued ops take no more than a share of the memory: %s',
  (_, long) => {
    const M = 8192;
    const K = 128;
    scope(() => {
      const x = Tensor.randn([M, K], { seed: 1, device: 'cpu' });
      const w = Tensor.randn([K, K], { seed: 2, device: 'cpu' });
      const large = long === 0 ? w : Tensor.randn([long, long], { seed: 3, device: 'cpu' });
      matmul(x, w).readSync();
      flushSync('cpu');
      resetPeakMemory('cpu');
      const before = memoryUsage('cpu').liveBytes;
      // It may run while the calls after it are made.
      const held = matmul(large, large);
      // 100 results of 4 MiB, each needed by the next call only: 400 MiB if all waited.
      let y = matmul(x, w);
      for (let i = 1; i < 100; i++) {
        const next = matmul(y, w);
        y.dispose();
        y = next;
      }
      y.dispose();
      flushSync('cpu');
      const share = memoryUsage('cpu').peakBytes - before - 4 * held.size;
      expect(share).toBeLessThan(80 * 2 ** 20);
    });
  },
);
