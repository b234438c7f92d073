import { storedAs, wholeInt4Blocks } from '../../core/formats.js';
import type { QuantizedWeight, Tensor } from '../../index.js';
import { type Job, weightBytesOf } from '../job.js';
import type { Context } from '../peer.js';

type Weight = QuantizedWeight | Tensor;

/** Operands of this library, and what its subjects share. */
export class Operands {
  readonly x: Tensor;
  readonly dy: Tensor;
  readonly weights: Weight[];
  readonly loraA: Tensor;
  readonly loraB: Tensor;
  readonly weightBytes: number;
  private readonly fence: Tensor;
  private readonly fenceValue = new Float32Array(1);
  private turn = 0;

  constructor(job: Job, { lowrank, elements, copies }: Context) {
    const { Tensor, quantize } = lowrank;
    const { M, K, N, r, format, dtype, device } = job;
    this.x = Tensor.from(elements('x'), [M, K], { dtype, device });
    this.dy = Tensor.from(elements('dy'), [M, N], { dtype, device });
    const w = elements('w');
    this.weightBytes = weightBytesOf(job);
    const own = () => Tensor.from(w, [N, K], { device, dtype: format === 'none' ? dtype : 'f32' });
    const dense = own();
    this.weights = Array.from({ length: copies(this.weightBytes) }, () => {
      if (format === 'none') return own();
      const zeroPoints = format === 'int4' && wholeInt4Blocks(K);
      return quantize(dense, { ...storedAs(format), zeroPoints });
    });
    dense.dispose();
    this.loraA = Tensor.from(elements('loraA'), [r, K], { device });
    this.loraB = Tensor.from(elements('loraB'), [N, r], { device });
    this.fence = Tensor.zeros([1], { device });
  }

  /** The weight of this call. */
  next(): Weight {
    return this.weights[this.turn++ % this.weights.length] as Weight;
  }

  /** Waits for everything queued: reads are ordered with ops, and this one copies four bytes. */
  wait(): void {
    this.fence.readInto(this.fenceValue);
  }
}
