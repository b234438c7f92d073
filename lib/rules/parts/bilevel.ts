/** Gradients of a validation loss through one step of training, by finite differences (Liu et al., DARTS, 2018). */

import type { RuleParameter, RulePass, RuleRun } from '../definition/run.js';

/** Two levels of a run. */
export interface Levels {
  /** Trained on `training`; their gradients are those of this step. */
  readonly lower: readonly RuleParameter[];
  /** Chosen by the loss on `validation`. */
  readonly upper: readonly RuleParameter[];
  readonly training: RulePass;
  readonly validation: RulePass;
  /** Of the step of training that is looked through, ξ; 0 for none. */
  readonly rate: number;
}

const sizeOf = (vectors: Iterable<Float32Array>): number => {
  let sum = 0;
  for (const vector of vectors) for (const value of vector) sum += value * value;
  return Math.sqrt(sum);
};

/**
 * `∇α L_val(W − ξ ∇L_tr(W, α), α)`: the direct part, less `ξ (∇α L_tr(W⁺, α) − ∇α L_tr(W⁻, α)) / 2ε` with `W± = W ± ε v`, v the
 * gradient of the validation loss by the moved W and `ε = 0.01 / ‖v‖`. The parameters have their bits afterwards.
 * @returns by the names of the upper parameters
 */
export function hypergradient(
  run: Pick<RuleRun<object>, 'gradientsOf'>,
  { lower, upper, training, validation, rate }: Levels,
): ReadonlyMap<string, Float32Array> {
  const before = new Map(lower.map((parameter) => [parameter, parameter.values()]));
  const move = (by: (parameter: RuleParameter) => Float32Array | undefined, times: number) => {
    for (const [parameter, values] of before) {
      const step = by(parameter);
      if (step === undefined) continue;
      parameter.write(values.map((value, i) => value + times * (step[i] as number)));
    }
  };
  const restore = () => {
    for (const [parameter, values] of before) parameter.write(values);
  };
  try {
    if (rate > 0) move(({ gradient }) => gradient, -rate);
    const outer = run.gradientsOf(validation);
    const found = new Map(
      upper.map((own) => [own.name, outer.get(own.name) ?? new Float32Array(own.values().length)]),
    );
    const v = new Map(
      lower.flatMap(({ name }) => {
        const own = outer.get(name);
        return own === undefined ? [] : [[name, own] as const];
      }),
    );
    const size = sizeOf(v.values());
    if (rate === 0 || size === 0) return found;
    const eps = 0.01 / size;
    const along = (times: number) => {
      move(({ name }) => v.get(name), times);
      return run.gradientsOf(training);
    };
    const [plus, minus] = [along(eps), along(-eps)];
    for (const [name, gradient] of found) {
      const [p, m] = [plus.get(name), minus.get(name)];
      for (let i = 0; i < gradient.length; i++) {
        const slope = ((p?.[i] ?? 0) - (m?.[i] ?? 0)) / (2 * eps);
        gradient[i] = (gradient[i] as number) - rate * slope;
      }
    }
    return found;
  } finally {
    restore();
  }
}
