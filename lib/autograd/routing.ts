import { full } from '../core/full.js';
import { Tensor } from '../core/tensor.js';
import { mapTensor, multiplyAdd, sumProduct } from '../ops/elementwise.js';
import { FeatureMap, mapFeatures } from '../ops/feature-map.js';
import type { Value } from './gradient-tape.js';
import type { Tape } from './tape.js';

/** Maps and constants of a router over E experts. An adapter makes them once, in its `prepare`. */
export class RouterMaps implements Disposable {
  readonly experts: number;
  readonly inner: FeatureMap;
  readonly outer: FeatureMap;
  readonly sums: FeatureMap;
  /** [E·E]: 1 where the other expert comes first. This orders equal gates. */
  readonly earlier: Tensor;

  constructor(experts: number, device: Tensor['device']) {
    this.experts = experts;
    this.inner = FeatureMap.repeat(experts, experts, 'inner', { device });
    this.outer = FeatureMap.repeat(experts, experts, 'outer', { device });
    this.sums = FeatureMap.groupSum(experts * experts, experts, { device });
    const earlier = Float32Array.from({ length: experts * experts }, (_, at) =>
      at % experts < Math.floor(at / experts) ? 1 : 0,
    );
    this.earlier = Tensor.from(earlier, [experts * experts], { device });
  }

  [Symbol.dispose](): void {
    for (const owned of [this.inner, this.outer, this.sums, this.earlier]) owned.dispose();
  }
}

/**
 * 1 for the k largest gates of each row, 0 for the others; the earlier of two equal gates counts as
 * larger. Each gate is compared with every other on the device, so nothing is read back: E²
 * comparisons per row.
 * @param gates [..., E] f32
 */
export function topKMask(gates: Tensor, k: number, maps: RouterMaps): Tensor {
  const mine = mapFeatures(gates, maps.inner);
  const others = mapFeatures(gates, maps.outer);
  const sign = mapTensor(multiplyAdd({ a: others, c: mine, beta: -1 }), 'sign');
  const equal = multiplyAdd({
    a: mapTensor(sign, 'abs'),
    alpha: -1,
    c: full([1], 1, { device: gates.device }),
  });
  const before = multiplyAdd({ a: equal, b: maps.earlier, c: mapTensor(sign, 'relu') });
  // How many gates are larger. A gate with fewer than k larger ones is kept.
  const rank = mapFeatures(before, maps.sums);
  const bound = full([1], k - 0.5, { device: gates.device });
  return mapTensor(mapTensor(multiplyAdd({ a: rank, alpha: -1, c: bound }), 'sign'), 'relu');
}

/** [..., 1] the sum of each row, with the row's leading dimensions. */
const rowSums = (a: Tensor, b?: Tensor): Tensor =>
  sumProduct(a, b, { axis: 1 }).reshape([...a.shape.slice(0, -1), 1]);

/**
 * `softmax` over the last dimension, of the entries that the mask keeps; the others are 0. The
 * largest kept entry is subtracted first, so that nothing overflows.
 * @param logits [..., E] f32
 * @param mask [..., E] of 0 and 1; default all 1. Each row must keep at least one entry.
 */
export function softmax(t: Tape, logits: Value, maps: RouterMaps, mask?: Tensor): Value {
  const a = logits.tensor;
  const { device } = a;
  // Entries that the mask leaves out are far below the others, but finite.
  const low = full([1], -1e30, { device });
  const kept =
    mask === undefined
      ? a
      : multiplyAdd({
          a: multiplyAdd({ a, b: mask }),
          c: multiplyAdd({ a: multiplyAdd({ a: mask, alpha: -1, c: ones(device) }), b: low }),
        });
  const most = rowSums(kept, topKMask(kept, 1, maps));
  const exp = mapTensor(multiplyAdd({ a: kept, c: most, beta: -1 }), 'exp');
  const y = multiplyAdd({ a: exp, b: mapTensor(rowSums(exp), 'reciprocal') });
  return t.record(y, [logits], [y], (dy, pass) => {
    const shared = rowSums(dy, y);
    pass.give(logits, multiplyAdd({ a: multiplyAdd({ a: dy, c: shared, beta: -1 }), b: y }));
  });
}

const ones = (device: Tensor['device']): Tensor => full([1], 1, { device });
