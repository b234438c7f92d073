/** Training of tensors inside of a start, by Adam. */

import type { Value } from '../../autograd/gradient-tape.js';
import type { ModelTape } from '../../autograd/model/model-tape.js';
import { full } from '../../core/full.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { multiplyAdd } from '../../ops/elementwise.js';
import { adamwStep } from '../../ops/optimizer-step.js';

/** Tensors that are trained with one learning rate. */
export interface TrainedGroup {
  readonly tensors: readonly Tensor[];
  readonly lr: number;
}

/** Adam over groups of tensors, with its moments. */
export class FactorTraining implements Disposable {
  readonly #groups: readonly (TrainedGroup & {
    readonly m: readonly Tensor[];
    readonly v: readonly Tensor[];
  })[];
  #step = 0;

  constructor(groups: readonly TrainedGroup[]) {
    const zeros = (tensors: readonly Tensor[]) =>
      tensors.map(({ shape, device }) => Tensor.zeros(shape, { device }));
    this.#groups = groups.map((group) => ({
      ...group,
      m: zeros(group.tensors),
      v: zeros(group.tensors),
    }));
  }

  /**
   * A step against the gradient of a loss [1].
   * @param rate times the learning rates of all groups
   * @param record records the loss on a new tape; a tensor that it does not reach stays
   */
  step(tape: () => ModelTape, rate: number, record: (tape: ModelTape) => Value): void {
    this.#step++;
    scope(() => {
      const recording = tape();
      const loss = record(recording);
      const one = full(loss.shape, 1, { device: loss.tensor.device });
      const all = this.#groups.flatMap(({ tensors }) => tensors);
      const values = all.map((tensor) => recording.variables.get(tensor) ?? []);
      const found = recording.gradients('start', loss, one, values.flat(), { release: true });
      let at = 0;
      const gradients = new Map(
        all.map((tensor, i) => {
          const count = (values[i] as readonly Value[]).length;
          const own = found.slice(at, at + count).filter((each) => each !== undefined);
          at += count;
          const [first, ...more] = own;
          const sum = more.reduce((a, c) => multiplyAdd({ a: a as Tensor, c: c as Tensor }), first);
          return [tensor, sum] as const;
        }),
      );
      for (const { tensors, m, v, lr } of this.#groups) {
        const reached = tensors.map((_, i) => i).filter((i) => gradients.get(tensors[i] as Tensor));
        if (reached.length === 0) continue;
        const of = (list: readonly Tensor[]) => reached.map((i) => list[i] as Tensor);
        const own = of(tensors).map((tensor) => gradients.get(tensor) as Tensor);
        const how = { lr: lr * rate, step: this.#step, weightDecay: 0 };
        adamwStep(of(tensors), own, of(m), of(v), how);
      }
    });
  }

  dispose(): void {
    for (const { m, v } of this.#groups) for (const each of [...m, ...v]) each.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The mean of the squares of `y − target`, [1]. */
export function meanSquares(t: ModelTape, y: Value, target: Tensor): Value {
  const error = t.add(t.cast(y, 'f32'), t.constant(target), 1, -1);
  const squares = t.multiply(error, error, 1 / target.size);
  return t.reshape(t.sum(t.reshape(squares, [1, target.size]), 1), [1]);
}
