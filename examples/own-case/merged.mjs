/**
 * A case of one's own for `lowrank bench`: the adapter merged into a dense weight once, so that a
 * forward pass is a single product. What does it cost to keep them apart?
 *
 *   npx lowrank bench --op loraForward --model bundled:gate --m 1,64 --case examples/own-case/merged.mjs
 */

export default {
  name: 'merged',
  version: 'f32',

  // Why a job is not for this peer; undefined: it is.
  refuses: ({ op, dtype }) => {
    if (op !== 'loraForward') return 'a merged adapter is not trained';
    return dtype === 'f32' ? undefined : 'f32 only';
  },

  // Runs in a process of its own. Operands are the same numbers for every peer.
  prepare(job, { lowrank, elements, copies, scaling }) {
    const { M, K, N, r, device } = job;
    const { Tensor, matmul } = lowrank;

    const merged = elements('w'); // [N, K]
    const [loraA, loraB] = [elements('loraA'), elements('loraB')]; // [r, K], [N, r]
    for (let n = 0; n < N; n++) {
      for (let j = 0; j < r; j++) {
        const factor = scaling * loraB[n * r + j];
        for (let k = 0; k < K; k++) merged[n * K + k] += factor * loraA[j * K + k];
      }
    }

    const weightBytes = 4 * K * N;
    const x = Tensor.from(elements('x'), [M, K], { device });
    // With few tokens calls go round copies, so that the weight comes from memory.
    const weights = Array.from({ length: copies(weightBytes) }, () =>
      Tensor.from(merged, [N, K], { device }),
    );
    const fence = Tensor.zeros([1], { device });
    const value = new Float32Array(1);
    let turn = 0;
    const product = () => matmul(x, weights[turn++ % weights.length]);

    return {
      weightBytes,
      copies: weights.length,
      note: 'dense f32, merged once',
      run() {
        product().dispose();
        fence.readInto(value); // an op returns at once: wait for it
      },
      output: () => product().readSync(), // compared with float64
    };
  },
};
