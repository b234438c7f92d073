/** One run of an optimiser over named parameters: their groups, pairs and states, and the step. */

import { fail, wrongType } from '../../core/errors.js';
import { outsideScopes } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import type {
  AnyOptimizer,
  CapturedRate,
  HostPair,
  PairedParameters,
  ParameterUpdate,
  StateShape,
  TrainedParameter,
} from '../definition/definition.js';
import { clip, type Entry, HostArrays, type StepFacts } from './host-arrays.js';

/** What the trainer computed for a step. */
export interface ComputedStep {
  /** One a parameter; undefined where the loss does not depend on it. */
  readonly gradients: readonly (Tensor | undefined)[];
  /** [1] f32; a step with a norm that is not finite writes nothing. */
  readonly norm: Tensor;
  readonly maxNorm: number | undefined;
  readonly lr: number;
  /** From 1 on. */
  readonly step: number;
  readonly captured: CapturedRate | undefined;
}

/** A state of a parameter under its name in a checkpoint: `m/NAME`. */
export interface StoredState {
  readonly name: string;
  readonly shape: readonly number[];
  /** Not below 0. */
  readonly notNegative: boolean;
  read(): Float32Array | Float64Array | Uint8Array;
  write(values: Float32Array | Float64Array | Uint8Array): void;
  readonly dtype: 'F32' | 'F64' | 'U8';
}

type Update = HostArrays['update'];

export class OptimizerRun {
  readonly #entries: readonly Entry[];
  readonly #pairs: readonly (readonly [down: number, up: number])[];

  /** @param settings checked already */
  constructor(
    readonly op: string,
    readonly optimizer: AnyOptimizer,
    readonly settings: object,
    parameters: readonly TrainedParameter[],
    weightDecay: number,
  ) {
    this.#pairs = pairsOf(parameters);
    const pairAt = new Map<number, PairedParameters>();
    for (const [down, up] of this.#pairs) {
      const pair = {
        down: parameters[down] as TrainedParameter,
        up: parameters[up] as TrainedParameter,
      };
      pairAt.set(down, pair).set(up, pair);
    }
    this.#entries = outsideScopes(() =>
      parameters.map((parameter, i) => {
        const group = optimizer.group?.(parameter, settings) ?? {};
        const frozen = group.frozen === true;
        const shapes = frozen ? {} : optimizer.state(parameter, settings, pairAt.get(i));
        return {
          parameter,
          ...statesOf(op, shapes, parameter),
          rate: group.rate ?? 1,
          weightDecay: group.weightDecay ?? weightDecay,
          frozen,
        };
      }),
    );
    if (this.#entries.every(({ frozen }) => frozen)) {
      fail('ERR_VALUE', op, 'parameters', `some that ${optimizer.optimizer} trains`, 'frozen ones');
    }
  }

  /** Does the parameter keep its values? It needs no gradient then. */
  isFrozen(index: number): boolean {
    return (this.#entries[index] as Entry).frozen;
  }

  /** The states that are tensors, by the name of their parameter. */
  get tensors(): ReadonlyMap<string, Readonly<Record<string, Tensor>>> {
    return new Map(this.#entries.map(({ parameter, state }) => [parameter.name, state]));
  }

  /** All states, for checkpoints. */
  get stored(): readonly StoredState[] {
    const limited: readonly string[] = this.optimizer.notNegative ?? [];
    return this.#entries.flatMap(({ parameter, state, bytes }) => [
      ...Object.entries(state).map(
        ([part, tensor]): StoredState => ({
          name: `${part}/${parameter.name}`,
          shape: tensor.shape,
          notNegative: limited.includes(part),
          dtype: 'F32',
          read: () => tensor.readSync(),
          write: (values) => tensor.write(values as Float32Array),
        }),
      ),
      ...Object.entries(bytes).map(
        ([part, own]): StoredState => ({
          name: `${part}/${parameter.name}`,
          shape: own.shape,
          notNegative: false,
          dtype: 'U8',
          read: () => own.bytes,
          write: (values) => own.bytes.set(values as Uint8Array),
        }),
      ),
    ]);
  }

  /** All states become what they are in a new run. */
  restart(): void {
    for (const { state, bytes } of this.#entries) {
      for (const tensor of Object.values(state)) tensor.write(new Float32Array(tensor.size));
      for (const own of Object.values(bytes)) own.bytes.fill(0);
    }
  }

  /** Writes the parameters that have a gradient, and their states. */
  step(made: ComputedStep): void {
    const { norm, captured } = made;
    const { optimizer } = this;
    const changed = optimizer.gradient !== undefined || optimizer.precondition !== undefined;
    const maxNorm = optimizer.clips === true ? undefined : made.maxNorm;
    if (optimizer.step !== undefined && !changed && optimizer.after === undefined) {
      const updates = this.#updates(made.gradients);
      if (updates.length === 0) return;
      const { step, lr } = made;
      optimizer.step({ updates, settings: this.settings, step, lr, captured, norm, maxNorm });
      return;
    }
    const [size = Number.NaN] = norm.readSync();
    if (Number.isFinite(size)) this.#hostStep({ ...made, maxNorm }, size);
  }

  #updates(gradients: ComputedStep['gradients']): ParameterUpdate[] {
    return this.#entries.flatMap((entry, i): ParameterUpdate[] => {
      const gradient = gradients[i];
      return gradient === undefined ? [] : [{ ...entry, gradient }];
    });
  }

  #hostStep(made: ComputedStep, norm: number): void {
    const { optimizer } = this;
    const facts: StepFacts = { lr: made.lr, step: made.step, settings: this.settings };
    const arrays = this.#entries.map((entry, i) => new HostArrays(entry, made.gradients[i], facts));
    const active = arrays.filter((_, i) => made.gradients[i] !== undefined);
    const pairs = this.#hostPairs(arrays, made.gradients, facts);
    for (const { update } of active) optimizer.gradient?.(update);
    for (const pair of pairs) optimizer.precondition?.(pair);
    const before = active.map(({ update }) => update.p.slice());
    if (optimizer.step !== undefined) this.#deviceStep(made, arrays);
    else {
      for (const { update } of active) clip(update.g, norm, made.maxNorm);
      const paired = new Set<Update>(pairs.flatMap(({ a, b }) => [a, b]));
      const alone = (update: Update) => optimizer.updatePairs === undefined || !paired.has(update);
      if (pairs.length > 0) optimizer.updatePairs?.(pairs);
      for (const { update } of active) if (alone(update)) optimizer.update?.(update);
    }
    if (optimizer.after !== undefined) {
      for (const [i, { update }] of active.entries()) {
        optimizer.after({ ...update, before: before[i] as Float32Array });
      }
    }
    if (optimizer.step === undefined) for (const each of active) each.store();
    else if (optimizer.after !== undefined) {
      for (const { entry, update } of active) entry.parameter.tensor.write(update.p);
    }
  }

  /** A step on tensors with gradients that were changed on the host; `p` are the new values then. */
  #deviceStep(made: ComputedStep, arrays: readonly HostArrays[]): void {
    const gradients = made.gradients.map((gradient, i) => {
      const { g } = (arrays[i] as HostArrays).update;
      if (gradient === undefined) return undefined;
      return Tensor.from(g, gradient.shape, { device: gradient.device });
    });
    const updates = this.#updates(gradients);
    const { step, lr, norm, maxNorm } = made;
    const { settings } = this;
    this.optimizer.step?.({ updates, settings, step, lr, norm, maxNorm });
    for (const gradient of gradients) gradient?.dispose();
    if (this.optimizer.after === undefined) return;
    for (const { entry, update } of arrays) update.p.set(entry.parameter.tensor.readSync());
  }

  /** Pairs with a gradient of each factor that is trained. */
  #hostPairs(
    arrays: readonly HostArrays[],
    gradients: ComputedStep['gradients'],
    { step, settings }: StepFacts,
  ): readonly HostPair<object>[] {
    const ready = (i: number) => this.isFrozen(i) || gradients[i] !== undefined;
    return this.#pairs
      .filter(([down, up]) => ready(down) && ready(up))
      .map(([down, up]) => {
        const [a, b] = [arrays[down], arrays[up]].map((each) => (each as HostArrays).update) as [
          Update,
          Update,
        ];
        const [r = 0, inFeatures = 0] = a.shape;
        const [outFeatures = 0] = b.shape;
        const { scaling = 1 } = a.parameter;
        return { a, b, r, inFeatures, outFeatures, scaling, step, settings };
      });
  }

  /** What is evaluated, where it is not what is trained: the values of one parameter each. */
  evaluated(steps: number): readonly Float32Array[] | undefined {
    const { optimizer, settings } = this;
    if (optimizer.evaluated === undefined || steps === 0) return undefined;
    return this.#entries.map((entry) => {
      const { update } = new HostArrays(entry, undefined, { lr: 0, step: steps, settings });
      if (!entry.frozen) optimizer.evaluated?.(update);
      return update.p;
    });
  }

  dispose(): void {
    for (const { state } of this.#entries) {
      for (const tensor of Object.values(state)) tensor.dispose();
    }
  }
}

function statesOf(
  op: string,
  shapes: Readonly<Record<string, StateShape>>,
  { name, tensor }: TrainedParameter,
): Pick<Entry, 'state' | 'bytes'> {
  const state: Record<string, Tensor> = {};
  const bytes: Record<string, { shape: readonly number[]; bytes: Uint8Array }> = {};
  for (const [part, shape] of Object.entries(shapes)) {
    // The names of a checkpoint: `values/NAME` is the parameter.
    if (part === 'values' || part.includes('/')) {
      fail('ERR_VALUE', op, `a state of ${name}`, 'named other than values, without /', part);
    }
    if (Array.isArray(shape)) state[part] = Tensor.zeros(shape, { device: tensor.device });
    else if (typeof shape === 'object' && shape !== null && 'bytes' in shape) {
      const size = shape.bytes.reduce((a, b) => a * b, 1);
      bytes[part] = { shape: shape.bytes, bytes: new Uint8Array(size) };
    } else throw wrongType(op, `state ${part} of ${name}`, 'a shape or { bytes: shape }', shape);
  }
  return { state, bytes };
}

/** Indices of the factors of each layer that has both, as matrices of one rank. */
function pairsOf(parameters: readonly TrainedParameter[]): [number, number][] {
  const factors = new Map<string, { down?: number; up?: number }>();
  for (const [i, { layer, role, tensor }] of parameters.entries()) {
    if (layer === undefined || (role !== 'down' && role !== 'up') || tensor.shape.length !== 2) {
      continue;
    }
    const found = factors.get(layer) ?? {};
    found[role] ??= i;
    factors.set(layer, found);
  }
  return [...factors.values()].flatMap(({ down, up }): [number, number][] => {
    if (down === undefined || up === undefined) return [];
    const [r] = (parameters[down] as TrainedParameter).tensor.shape;
    const [, own] = (parameters[up] as TrainedParameter).tensor.shape;
    return r === own ? [[down, up]] : [];
  });
}
