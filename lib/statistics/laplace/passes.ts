/** Backward passes of single logits over one forward pass. */

import type { Value } from '../../autograd/gradient-tape.js';
import type { ModelTape } from '../../autograd/model/model-tape.js';
import { fail, wrongType } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import { showShape } from '../../core/validate.js';
import { MOST_EXPERTS } from '../../ops/experts/expert-route.js';
import { type FactorRows, PerExampleTape } from '../per-example/tape.js';

/**
 * A forward pass that gives logits [examples, classes], up to 1,024 and 256. Each example is a block of as many consecutive
 * rows in every layer.
 */
export type LogitsPass = (tape: ModelTape) => Value;

const kMostClasses = 256;

interface Sizes {
  readonly examples: number;
  readonly classes: number;
}

/** A forward pass whose logits can be asked for the rows of their gradients, class after class. */
export interface ClassPasses extends Sizes {
  /** [examples, classes] */
  readonly logits: Float64Array;
  /** For each class the rows of all factors, which the caller frees. */
  backward(): Generator<readonly FactorRows[]>;
  dispose(): void;
}

/**
 * @param weights of a class: [examples, classes], the gradient that its backward pass begins with
 * @throws ERR_TYPE · ERR_SHAPE · ERR_VALUE · ERR_NON_FINITE; what the pass throws
 */
export function classPasses(
  op: string,
  pass: LogitsPass,
  trained: readonly Tensor[] | undefined,
  weights: (c: number, sizes: Sizes, logits: Float64Array) => Float32Array,
): ClassPasses {
  if (typeof pass !== 'function') throw wrongType(op, 'a pass', 'a function', pass);
  const tape = new PerExampleTape(trained);
  try {
    const value = pass(tape);
    const { shape, device } = value.tensor;
    const [examples = 0, classes = 0] = shape;
    const fits = shape.length === 2 && examples >= 1 && examples <= MOST_EXPERTS;
    if (!fits || classes < 1 || classes > kMostClasses) {
      const expected = `[examples, classes], up to [${MOST_EXPERTS}, ${kMostClasses}]`;
      fail('ERR_SHAPE', op, 'the logits', expected, showShape(shape));
    }
    const logits = Float64Array.from(value.tensor.readSync());
    if (!logits.every(Number.isFinite)) fail('ERR_NON_FINITE', op, 'the logits', 'finite', 'NaN');
    const { probe } = tape;
    if (probe === undefined) {
      fail('ERR_VALUE', op, 'the pass', 'one with trained factors', 'one without');
    }
    const sizes = { examples, classes };
    return {
      ...sizes,
      logits,
      *backward() {
        for (let c = 0; c < classes; c++) {
          const dy = Tensor.from(weights(c, sizes, logits), shape, {
            device,
            dtype: value.tensor.dtype,
          });
          tape.gradients(op, value, dy, [probe]);
          dy.dispose();
          yield tape.rows.splice(0);
        }
      },
      dispose: () => {
        tape.freeRows();
        tape.dispose();
      },
    };
  } catch (error) {
    tape.freeRows();
    tape.dispose();
    throw error;
  }
}
