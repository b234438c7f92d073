/** A caller that queues more than the kernels have run does not hold all intermediate results at once. */
import { expect, it } from 'vitest';
import { flushSync, matmul, memoryUsage, resetPeakMemory, scope, Tensor } from '../../lib/index.js';

it('disposed tensors that wait for queued ops take no more than a share of the memory', () => {
  const M = 2048;
  const K = 512;
  scope(() => {
    const x = Tensor.randn([M, K], { seed: 1, device: 'cpu' });
    const w = Tensor.randn([K, K], { seed: 2, device: 'cpu' });
    matmul(x, w).readSync();
    flushSync('cpu');
    resetPeakMemory('cpu');
    const before = memoryUsage('cpu').liveBytes;
    // 100 results of 4 MiB, each needed by the next call only: 400 MiB if all waited.
    let y = matmul(x, w);
    for (let i = 1; i < 100; i++) {
      const next = matmul(y, w);
      y.dispose();
      y = next;
    }
    y.dispose();
    flushSync('cpu');
    expect(memoryUsage('cpu').peakBytes - before).toBeLessThan(80 * 2 ** 20);
  });
});
