/**
 * The part of a chain between two segments: a function of jax-js, compiled forward and backward.
 *
 * The backward pass computes the function again, within the same program: jax-js then fuses both, and nothing is
 * kept between the passes but the function's inputs. The loss and its gradients are one program.
 */

import type { Jax, JaxArray, JaxFunction } from './jax.js';
import type { PureFunction, State } from './state.js';
import { flatten, type Structure, unflatten } from './tree.js';

/** The programs of a part. All of them consume their operands. */
export interface PureProgram {
  /** (params, state, batch) => arrays of the state behind the part. */
  readonly forward: JaxFunction;
  /**
   * (params, trained state, other state, batch, cotangents) => gradients of params, then of the trained state. For the
   * loss there are no cotangents, and its value comes first.
   */
  readonly backward: JaxFunction;
  dispose(): void;
}

type Indices = { readonly params: readonly number[]; readonly batch: readonly number[] };

/** @param loss is the result the loss? */
export function pureProgram(
  jax: Jax,
  part: PureFunction,
  structures: { readonly params: Structure; readonly batch: Structure },
  reads: Indices,
  before: State,
  after: State,
  loss: boolean,
): PureProgram {
  const pick = (structure: Structure, indices: readonly number[], arrays: readonly JaxArray[]) =>
    unflatten(structure, (index) => arrays[indices.indexOf(index)]);
  const call = (params: JaxArray[], state: JaxArray[], batch: JaxArray[]): JaxArray[] => {
    const result = part(
      unflatten(before.structure, (index) => state[index]),
      pick(structures.params, reads.params, params),
      pick(structures.batch, reads.batch, batch),
    );
    return flatten('chain', 'the state', result).leaves as JaxArray[];
  };
  const trained = before.leaves.map((leaf) => leaf.needsGradient);
  /** The state from its two lists. */
  const joined = (yes: readonly JaxArray[], no: readonly JaxArray[]): JaxArray[] => {
    const [a, b] = [[...yes], [...no]];
    return trained.map((needs) => (needs ? a : b).shift() as JaxArray);
  };
  const forward = jax.jit((params = [], state = [], batch = []) => call(params, state, batch));
  const backward = jax.jit(
    (params = [], state = [], other = [], batch = [], cotangents = []): JaxArray[] => {
      const all: JaxFunction = (p = [], s = []) => call(p, joined(s, other), batch);
      if (loss) {
        const f = (...lists: readonly JaxArray[][]) => all(...lists)[0] as JaxArray;
        const [value, gradients] = jax.valueAndGrad(f, { argnums: [0, 1] })(params, state);
        return [value, ...gradients.flat()];
      }
      const outputs: JaxFunction = (...lists) => {
        const kept = all(...lists).filter((array, at) => {
          const needs = after.leaves[at]?.needsGradient === true;
          if (!needs) array.dispose();
          return needs;
        });
        // vjp of jax-js 0.1 orders its graph wrongly where one result is computed from another: give each a node of its own.
        return kept.length === 1 ? kept : kept.map((array) => jax.numpy.multiply(array, 1));
      };
      const [values, pull] = jax.vjp(outputs, [params, state]);
      for (const value of values) value.dispose();
      const gradients = pull(cotangents);
      pull.dispose();
      return gradients.flat();
    },
  );
  return {
    forward,
    backward,
    dispose() {
      forward.dispose();
      backward.dispose();
    },
  };
}
