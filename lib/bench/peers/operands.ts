import { type StoredFormat, storedAs, wholeInt4Blocks } from '../../core/formats.js';
import type { QuantizedWeight, Tensor } from '../../index.js';
import { ggufTypeOf, type Job, weightBytesOf } from '../job.js';
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
    const { Tensor } = lowrank;
    const { M, K, N, r, format, dtype, device } = job;
    this.x = Tensor.from(elements('x'), [M, K], { dtype, device });
    this.dy = Tensor.from(elements('dy'), [M, N], { dtype, device });
    const w = elements('w');
    this.weightBytes = weightBytesOf(job);
    const count = copies(this.weightBytes);
    const many = (make: () => Weight) => Array.from({ length: count }, make);
    const type = ggufTypeOf(format);
    if (format === 'none') {
      this.weights = many(() => Tensor.from(w, [N, K], { device, dtype }));
    } else if (type !== undefined) {
      const planes = lowrank.ggufToPlanar(lowrank.quantizeToGguf(w, [N, K], type));
      this.weights = many(() => lowrank.QuantizedWeight.fromPlanes(planes, { device }));
    } else {
      const dense = Tensor.from(w, [N, K], { device });
      const zeroPoints = format === 'int4' && wholeInt4Blocks(K);
      const options = { ...storedAs(format as StoredFormat), zeroPoints };
      this.weights = many(() => lowrank.quantize(dense, options));
      dense.dispose();
    }
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
