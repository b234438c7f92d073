/** Programs of jax-js with layers of this library: functions and segments, one after another. */

import { fail, wrongType } from '../core/errors.js';
import { scope } from '../core/scope.js';
import { checkInteger, readOptions } from '../core/validate.js';
import { Arrays } from './arrays.js';
import { type Jax, type JaxArray, type JaxTree, jaxOf, type LeafOf } from './jax.js';
import { checkLayers, makePlan, type Plan, type PlanKind, planKey } from './plan.js';
import { Run, type RunInput } from './run.js';
import { Segment } from './segment.js';
import type { PureFunction } from './state.js';
import { checkArrays, type FlatTree, unflatten } from './tree.js';

/**
 * A part of a chain: a segment, or a pure function of jax-js. The function gets the result of the part before it (the
 * first one gets the batch), the parameters and the batch. It returns an array, or a tree of arrays.
 */
export type ChainPart = Segment | ((state: never, params: never, batch: never) => JaxTree);

/** Options of a call of a {@link Chain}. */
export interface ChainOptions {
  /** Seed of dropout and of samplers, 0 to 2^53 - 1; required if a layer has them. Another one for each step. */
  readonly seed?: number;
}

/** The parts of one call, checked. */
interface Checked {
  readonly params: FlatTree<JaxArray>;
  readonly batch: FlatTree<JaxArray>;
  readonly seed: number | undefined;
}

/**
 * A model and its loss. Made by {@link chain}.
 *
 * Arrays follow the move rule of jax-js: a call consumes `params` and `batch`; pass `tree.ref(params)` to keep
 * them. A call that rejects because of its input consumes nothing. A call that fails while it computes has consumed
 * them, and frees everything else.
 */
export class Chain implements Disposable {
  readonly #parts: readonly ChainPart[];
  readonly #plans = new Map<string, Plan>();
  #busy: Promise<unknown> = Promise.resolve();

  /** @internal Use {@link chain}. */
  constructor(parts: readonly ChainPart[]) {
    this.#parts = parts;
  }

  /**
   * The loss, and its gradients.
   * @param params a tree of float arrays
   * @param batch the state of the first part: a tree of arrays of any dtype, which have no gradient
   * @returns `value`, a scalar, and `grads`, a tree like `params`. Both belong to the caller
   * @throws LowrankError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_VALUE`, `ERR_DISPOSED`, `ERR_UNSUPPORTED` (jax-js is not
   *   installed) · TypeError `ERR_TYPE`: before anything is consumed. `ERR_OOM`, `ERR_COMPUTE` and errors of your
   *   functions later than their first call: afterwards
   * @example
   * const { value, grads } = await model.valueAndGrad(tree.ref(params), { x, target });
   */
  async valueAndGrad<P extends JaxTree>(
    params: P,
    batch: JaxTree,
    options?: ChainOptions,
  ): Promise<{ value: LeafOf<P>; grads: P }> {
    const op = 'Chain.valueAndGrad';
    const checked = this.#check(op, params, batch, options);
    const [value, gradients] = await this.#run(op, checked, 'gradient', async (run, arrays) => {
      const [loss, list] = await run.valueAndGradients();
      return [arrays.give(loss), list.map((array) => arrays.give(array))] as const;
    });
    const grads = unflatten(checked.params.structure, (index) => gradients[index]) as P;
    return { value: value as LeafOf<P>, grads };
  }

  /**
   * The result of the last part, without gradients; dropout is off. For predictions, make a second chain of the same
   * segments without the loss.
   * @returns a tree of arrays, which belong to the caller
   * @throws as {@link Chain.valueAndGrad}
   * @example
   * const y = await chain(embed, layer).apply(tree.ref(params), x);
   */
  async apply<P extends JaxTree>(
    params: P,
    batch: JaxTree,
    options?: ChainOptions,
  ): Promise<JaxTree> {
    const op = 'Chain.apply';
    const checked = this.#check(op, params, batch, options);
    return this.#run(op, checked, 'values', async (run, arrays, plan) => {
      const found = await run.values();
      const structure = plan.parts.at(-1)?.after.structure ?? 'leaf';
      return unflatten(structure, (index) => arrays.give(found[index] as JaxArray)) as JaxTree;
    });
  }

  /** Frees the compiled functions. The segments stay; free them with their own `dispose`. */
  dispose(): void {
    for (const plan of this.#plans.values()) plan.dispose();
    this.#plans.clear();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #check(op: string, params: unknown, batch: unknown, options: ChainOptions | undefined): Checked {
    const given = readOptions(op, options, { seed: true });
    const seed =
      given.seed === undefined
        ? undefined
        : checkInteger(op, 'seed', given.seed, 0, Number.MAX_SAFE_INTEGER);
    const uses = new Map<JaxArray, number>();
    const flat = checkArrays(op, 'params', params, uses);
    for (const [at, { dtype }] of flat.leaves.entries()) {
      if (dtype.startsWith('float')) continue;
      fail('ERR_DTYPE', op, `params.${flat.paths[at]}`, 'a float', dtype);
    }
    return { params: flat, batch: checkArrays(op, 'batch', batch, uses), seed };
  }

  #plan(op: string, jax: Jax, { params, batch }: Checked, kind: PlanKind): Plan {
    const key = `${kind} ${planKey(params, batch)}`;
    const known = this.#plans.get(key);
    if (known !== undefined) return known;
    const parts = this.#parts as readonly (PureFunction | Segment)[];
    const plan = makePlan(op, jax, parts, params, batch, kind);
    this.#plans.set(key, plan);
    return plan;
  }

  /** One call at a time: an adapter of a layer holds the parameters of one call. */
  async #run<R>(
    op: string,
    { params, batch, seed }: Checked,
    kind: PlanKind,
    body: (run: Run, arrays: Arrays, plan: Plan) => Promise<R>,
  ): Promise<R> {
    const jax = await jaxOf(op, [...params.leaves, ...batch.leaves]);
    const before = this.#busy;
    const work = before.then(async () => {
      const plan = this.#plan(op, jax, { params, batch, seed }, kind);
      checkLayers(plan, kind === 'gradient', seed);
      const arrays = new Arrays();
      for (const array of [...params.leaves, ...batch.leaves]) arrays.own(array);
      const input: RunInput = {
        jax,
        plan,
        params: params.leaves,
        batch: batch.leaves,
        seed,
        arrays,
      };
      try {
        return await scope(() => body(new Run(input), arrays, plan));
      } finally {
        arrays.dispose();
      }
    });
    this.#busy = work.catch(() => undefined);
    return work;
  }
}

/**
 * A model and its loss: pure functions of jax-js, with segments of this library between them.
 *
 * jax-js computes and differentiates the functions, compiled and cached by shape. This library computes the segments, forward
 * and backward. A function reads arrays that it closes over with `.ref`: it is traced several times.
 * @param parts at least one; for `valueAndGrad` the last one is a function that returns the loss
 * @throws TypeError `ERR_TYPE` · LowrankError `ERR_VALUE`
 * @example
 * const model = chain((b) => b.x, layer1, (h) => nn.relu(h), layer2, (y, _, b) => mse(y, b.t));
 * const { value, grads } = await model.valueAndGrad(tree.ref(params), { x, t });
 */
export function chain(...parts: readonly ChainPart[]): Chain {
  const op = 'chain';
  if (parts.length === 0) fail('ERR_VALUE', op, 'parts', 'at least one', 'none');
  for (const [at, part] of parts.entries()) {
    if (part instanceof Segment || typeof part === 'function') continue;
    throw wrongType(op, `parts[${at}]`, 'a function or a segment', part);
  }
  return new Chain([...parts]);
}
