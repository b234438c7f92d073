import { fail } from '../../core/errors.js';
import type { Tensor } from '../../core/tensor.js';
import type { TrainedParameter } from '../../optim/definition/definition.js';
import type { RuleParameter } from '../definition/run.js';

/** A trained tensor, as rules see it. */
export class RunParameter implements RuleParameter {
  gradient: Float32Array | undefined;
  readonly part: string;

  constructor(
    readonly trained: TrainedParameter,
    private readonly kept: Readonly<Record<string, Tensor>>,
  ) {
    this.part = trained.name.slice(trained.name.lastIndexOf('.') + 1);
  }

  get name() {
    return this.trained.name;
  }

  get role() {
    return this.trained.role;
  }

  get module() {
    return this.trained.layer;
  }

  get shape() {
    return this.trained.tensor.shape;
  }

  get states() {
    return Object.keys(this.kept);
  }

  values(): Float32Array {
    return this.trained.tensor.readSync();
  }

  write(values: Float32Array): void {
    store(this.name, this.trained.tensor, values);
  }

  state(name: string): Float32Array {
    return this.#kept(name).readSync();
  }

  writeState(name: string, values: Float32Array): void {
    store(`${name} of ${this.name}`, this.#kept(name), values);
  }

  #kept(name: string): Tensor {
    const found = Object.hasOwn(this.kept, name) ? this.kept[name] : undefined;
    if (found !== undefined) return found;
    const known = this.states.join(', ') || 'none';
    return fail('ERR_VALUE', 'rule', `a state of ${this.name}`, `one of ${known}`, `"${name}"`);
  }
}

function store(name: string, tensor: Tensor, values: Float32Array): void {
  if (values.length !== tensor.size) {
    fail('ERR_SHAPE', 'rule', name, `${tensor.size} values`, String(values.length));
  }
  const bad = values.find((value) => !Number.isFinite(value));
  if (bad !== undefined) fail('ERR_NON_FINITE', 'rule', name, 'finite', String(bad));
  tensor.write(values);
}
