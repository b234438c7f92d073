/** One call of a chain: the forward pass, the backward pass, and the arrays and tensors in between. */

import { hash32 } from '../core/random.js';
import type { Freeable } from '../core/scope.js';
import { type Device, Tensor } from '../index.js';
import type { Arrays } from './arrays.js';
import type { Jax, JaxArray } from './jax.js';
import type { Plan, PlannedEdge, PurePart, SegmentPart } from './plan.js';

/** An array of the state, or its gradient: on jax-js' side, on ours, or on both. */
interface Held {
  array?: JaxArray;
  tensor?: Tensor;
}

/** What a part keeps for its backward pass. */
interface Kept {
  /** The operands of a pure part. */
  readonly state?: readonly JaxArray[];
  /** The states of a segment's layers, by edge. */
  readonly saved?: readonly (Freeable | undefined)[];
}

export interface RunInput {
  readonly jax: Jax;
  readonly plan: Plan;
  /** Owned by `arrays`. */
  readonly params: readonly JaxArray[];
  readonly batch: readonly JaxArray[];
  readonly seed: number | undefined;
  readonly arrays: Arrays;
}

/** A call under way. It runs in a scope, which frees the tensors; `arrays` frees the arrays of jax-js. */
export class Run {
  readonly #input: RunInput;
  /** The parameters on our side, by leaf. */
  readonly #tensors = new Map<number, Tensor>();
  /** The gradients of the parameters so far, by leaf. */
  readonly #gradients: Held[][];

  constructor(input: RunInput) {
    this.#input = input;
    this.#gradients = input.params.map(() => []);
  }

  /** The arrays of the last part. */
  async values(): Promise<JaxArray[]> {
    const { parts } = this.#input.plan;
    const { state } = await this.#forward(parts, false);
    return Promise.all(state.map((held) => this.#toArray(held, parts.at(-1)?.after.leaves ?? [])));
  }

  /** The loss, and the gradient of each parameter. */
  async valueAndGradients(): Promise<[value: JaxArray, gradients: JaxArray[]]> {
    const { jax, plan, params } = this.#input;
    const before = plan.parts.slice(0, -1);
    const loss = plan.parts.at(-1) as PurePart;
    const { state, kept } = await this.#forward(before, true);
    const operands = await this.#arraysOf(state, loss.before.leaves);
    const [value, ...rest] = this.#backwardPure(loss, operands, []);
    let cotangents = this.#spread(loss, rest);
    for (let at = before.length - 1; at >= 0; at--) {
      const part = before[at] as PurePart | SegmentPart;
      if (!part.after.leaves.some((leaf) => leaf.needsGradient)) break;
      cotangents = await this.#backward(part, kept[at] as Kept, cotangents);
    }
    const gradients: JaxArray[] = [];
    for (const [at, found] of this.#gradients.entries()) {
      const { shape, device } = params[at] as JaxArray;
      gradients.push(
        found.length === 0
          ? this.#input.arrays.own(jax.numpy.zeros([...shape], { device }))
          : await this.#sum(found, shape),
      );
    }
    return [value as JaxArray, gradients];
  }

  async #forward(
    parts: readonly (PurePart | SegmentPart)[],
    training: boolean,
  ): Promise<{ state: Held[]; kept: Kept[] }> {
    const { arrays, batch } = this.#input;
    let state: Held[] = batch.map((array) => ({ array: arrays.own(array.ref) }));
    const kept: Kept[] = [];
    for (const part of parts) {
      const learns = training && part.after.leaves.some((leaf) => leaf.needsGradient);
      if (part.kind === 'pure') {
        const operands = await this.#arraysOf(state, part.before.leaves);
        const results = this.#forwardPure(part, operands);
        if (!learns) for (const array of operands) arrays.free(array);
        kept.push(learns ? { state: operands } : {});
        state = results.map((array) => ({ array }));
      } else {
        const { after, saved } = await this.#forwardSegment(part, state, learns);
        kept.push({ saved });
        state = after;
      }
    }
    return { state, kept };
  }

  #forwardPure(part: PurePart, state: readonly JaxArray[]): JaxArray[] {
    const { arrays } = this.#input;
    const lists = [this.#params(part), state.map(referenced), this.#batch(part)];
    return arrays.consume(lists, () => part.program.forward(...lists));
  }

  /** @returns the gradients of params and of the trained state; before them the value, if the part is the loss */
  #backwardPure(
    part: PurePart,
    state: readonly JaxArray[],
    cotangents: readonly JaxArray[],
  ): JaxArray[] {
    const { arrays } = this.#input;
    const { leaves } = part.before;
    const trained = state.filter((_, at) => leaves[at]?.needsGradient === true);
    const other = state.filter((_, at) => leaves[at]?.needsGradient !== true);
    for (const array of [...state, ...cotangents]) arrays.give(array);
    const lists = [this.#params(part), trained, other, this.#batch(part), [...cotangents]];
    return arrays.consume(lists, () => part.program.backward(...lists));
  }

  /** Notes the gradients of parameters; the others belong to the state before the part. */
  #spread(part: PurePart, gradients: readonly JaxArray[]): (Held | undefined)[] {
    const { length } = part.params;
    part.params.forEach((leaf, at) => {
      this.#gradients[leaf]?.push({ array: gradients[at] as JaxArray });
    });
    const rest = gradients.slice(length);
    return part.before.leaves.map(({ needsGradient }) =>
      needsGradient ? { array: rest.shift() as JaxArray } : undefined,
    );
  }

  async #backward(
    part: PurePart | SegmentPart,
    kept: Kept,
    cotangents: readonly (Held | undefined)[],
  ): Promise<(Held | undefined)[]> {
    if (part.kind === 'segment') return this.#backwardSegment(part, kept, cotangents);
    const { jax, arrays } = this.#input;
    const operands: JaxArray[] = [];
    for (const [at, { needsGradient, shape }] of part.after.leaves.entries()) {
      if (!needsGradient) continue;
      const held = cotangents[at];
      operands.push(
        held === undefined
          ? arrays.own(jax.numpy.zeros([...shape], { device: this.#device }))
          : await this.#toArray(held, [{ shape }]),
      );
    }
    return this.#spread(part, this.#backwardPure(part, kept.state ?? [], operands));
  }

  async #forwardSegment(
    part: SegmentPart,
    state: readonly Held[],
    training: boolean,
  ): Promise<{ after: Held[]; saved: (Freeable | undefined)[] }> {
    const { arrays, seed } = this.#input;
    const after: Held[] = [];
    const saved: (Freeable | undefined)[] = [];
    for (const { from, layer, parameters, place } of part.edges) {
      const held = state[from] as Held;
      if (layer === undefined) {
        after.push(this.#share(held));
        saved.push(undefined);
        continue;
      }
      const shape = part.before.leaves[from]?.shape ?? [];
      const x = await this.#toTensor(held, shape, layer.device);
      const values: Record<string, Tensor> = {};
      for (const [name, leaf] of parameters)
        values[name] = await this.#parameter(leaf, layer.device);
      const { y, saved: own } = layer.forward({
        x,
        parameters: values,
        training,
        ...(seed === undefined ? {} : { seed: hash32(seed, place) }),
      });
      after.push({ tensor: y });
      if (!training) own.dispose();
      saved.push(training ? own : undefined);
    }
    // What the layers still need, they hold themselves.
    for (const { array, tensor } of state) {
      if (array !== undefined) arrays.free(array);
      tensor?.dispose();
    }
    return { after, saved };
  }

  async #backwardSegment(
    part: SegmentPart,
    kept: Kept,
    cotangents: readonly (Held | undefined)[],
  ): Promise<(Held | undefined)[]> {
    const found: Held[][] = part.before.leaves.map(() => []);
    for (const [at, edge] of part.edges.entries()) {
      const held = cotangents[edge.to];
      const saved = kept.saved?.[at];
      if (held === undefined) saved?.dispose();
      else if (edge.layer === undefined) found[edge.from]?.push(held);
      else if (saved !== undefined) {
        const wanted = part.before.leaves[edge.from]?.needsGradient === true;
        const list = found[edge.from] as Held[];
        await this.#backwardLayer(part, edge, saved, held, wanted ? list : undefined);
      }
    }
    const result: (Held | undefined)[] = [];
    for (const [at, { needsGradient, shape }] of part.before.leaves.entries()) {
      const list = found[at] as Held[];
      if (!needsGradient || list.length === 0) {
        for (const { array } of list) if (array !== undefined) this.#input.arrays.free(array);
        result.push(undefined);
      } else {
        result.push(list.length === 1 ? list[0] : { array: await this.#sum(list, shape) });
      }
    }
    return result;
  }

  /** @param dxs gradients of the input so far; absent if none is wanted */
  async #backwardLayer(
    part: SegmentPart,
    { to, layer, parameters }: PlannedEdge,
    saved: Freeable,
    held: Held,
    dxs: Held[] | undefined,
  ): Promise<void> {
    if (layer === undefined) return;
    const dy = await this.#toTensor(held, part.after.leaves[to]?.shape ?? [], layer.device);
    const before = dxs?.find(
      ({ tensor }) => tensor !== undefined && tensor.device === layer.device,
    );
    const { dx, parameters: gradients } = layer.backward(dy, saved, {
      dx: dxs !== undefined,
      ...(before?.tensor === undefined ? {} : { into: before.tensor }),
    });
    dy.dispose();
    if (held.array !== undefined) this.#input.arrays.free(held.array);
    if (before === undefined && dx !== undefined) dxs?.push({ tensor: dx });
    else if (before !== undefined && dx !== undefined) before.tensor = dx;
    for (const [name, leaf] of parameters) {
      const tensor = gradients[name];
      if (tensor !== undefined) this.#gradients[leaf]?.push({ tensor });
    }
  }

  get #device(): string {
    const [first] = [...this.#input.params, ...this.#input.batch];
    return first?.device ?? '';
  }

  #params(part: PurePart): JaxArray[] {
    return part.params.map((index) => referenced(this.#input.params[index] as JaxArray));
  }

  #batch(part: PurePart): JaxArray[] {
    return part.batch.map((index) => referenced(this.#input.batch[index] as JaxArray));
  }

  async #parameter(leaf: number, device: Device): Promise<Tensor> {
    const known = this.#tensors.get(leaf);
    if (known?.device === device) return known;
    const array = this.#input.params[leaf] as JaxArray;
    const tensor = Tensor.from(await valuesOf(array.ref), array.shape, { device });
    this.#tensors.set(leaf, tensor);
    return tensor;
  }

  async #arraysOf(
    state: readonly Held[],
    leaves: readonly { readonly shape: readonly number[] }[],
  ): Promise<JaxArray[]> {
    const result: JaxArray[] = [];
    for (const [at, held] of state.entries()) {
      result.push(await this.#toArray(held, [leaves[at] as { shape: readonly number[] }]));
    }
    return result;
  }

  /** Another holder of the same array. */
  #share({ array, tensor }: Held): Held {
    if (array !== undefined) return { array: this.#input.arrays.own(array.ref) };
    return { tensor: (tensor as Tensor).reshape((tensor as Tensor).shape) };
  }

  async #toArray(
    held: Held,
    [leaf]: readonly { readonly shape: readonly number[] }[],
  ): Promise<JaxArray> {
    const { jax, arrays } = this.#input;
    if (held.array === undefined) {
      const tensor = held.tensor as Tensor;
      const values = await tensor.read();
      const shape = [...(leaf?.shape ?? tensor.shape)];
      held.array = arrays.own(jax.numpy.array(values, { shape, device: this.#device }));
    }
    held.tensor?.dispose();
    return held.array;
  }

  async #toTensor(held: Held, shape: readonly number[], device: Device): Promise<Tensor> {
    if (held.tensor !== undefined && held.tensor.device === device) return held.tensor;
    const values =
      held.array === undefined
        ? await (held.tensor as Tensor).read()
        : await valuesOf(held.array.ref);
    held.tensor = Tensor.from(values, shape, { device });
    return held.tensor;
  }

  async #sum(list: readonly Held[], shape: readonly number[]): Promise<JaxArray> {
    const { jax, arrays } = this.#input;
    let sum: JaxArray | undefined;
    for (const held of list) {
      const array = await this.#toArray(held, [{ shape }]);
      if (sum === undefined) sum = array;
      else {
        const both = [arrays.give(sum), arrays.give(array)];
        const [added] = arrays.consume([both], () => [jax.numpy.add(both[0] as JaxArray, array)]);
        sum = added;
      }
    }
    return sum as JaxArray;
  }
}

function referenced(array: JaxArray): JaxArray {
  return array.ref;
}

/** Consumes the array. */
async function valuesOf(array: JaxArray): Promise<Float32Array> {
  return (await array.data()) as Float32Array;
}
