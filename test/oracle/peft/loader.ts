/**
 * How PEFT takes an adapter folder, in this project's own words: which keys a method demands of the file, which shapes it
 * allocates from the config and the model, what it leaves out. Nothing here is of `lib/adapters`. PEFT's own recorded
 * folders and results (`test/golden`) say whether it is right: `test/golden/peft-loader.test.ts`.
 */
import { Matrix } from '../adapter-layer.js';

/** A layer of the model that a folder is loaded into. */
export interface PeftLinear {
  /** [N, K] */
  readonly weight: Matrix;
  readonly bias?: Float64Array | undefined;
}

/** Layers by name, in the order of the model. */
export type PeftModel = ReadonlyMap<string, PeftLinear>;

/** A tensor of a file. */
export interface FileTensor {
  readonly shape: readonly number[];
  readonly values: ArrayLike<number>;
}

export interface PeftFiles {
  readonly config: Readonly<Record<string, unknown>>;
  readonly tensors: ReadonlyMap<string, FileTensor>;
}

/** What a call has beside x. */
export interface CallInputs {
  /** Of Poly: weights of the tasks for each row, [M, tasks], a single 1 in each. */
  readonly tasks?: Matrix;
}

export type Forward = (x: Matrix, inputs: CallInputs) => Matrix;

/** PEFT raises an error. */
export class PeftRefuses extends Error {}

export const refuse = (text: string): never => {
  throw new PeftRefuses(text);
};

const kPrefix = 'base_model.model.';

/** Whether a list of names covers a module: by itself, or from a dot on. */
export const covers = (names: readonly string[], module: string): boolean =>
  names.some((name) => module === name || module.endsWith(`.${name}`));

/** The config and tensors of a folder while they are loaded. */
export class Loading {
  readonly #taken = new Set<string>();

  constructor(
    readonly files: PeftFiles,
    readonly model: PeftModel,
  ) {}

  get config(): Readonly<Record<string, unknown>> {
    return this.files.config;
  }

  /** A number of the config. One that is left out would have PEFT's default, which no folder should rely on. */
  number(name: string): number {
    const value = this.config[name];
    if (typeof value === 'number') return value;
    throw new Error(`config.${name} must be a number, got ${JSON.stringify(value)}`);
  }

  flag(name: string): boolean {
    return this.config[name] === true;
  }

  text(name: string): string {
    const value = this.config[name];
    if (typeof value === 'string') return value;
    throw new Error(`config.${name} must be text, got ${JSON.stringify(value)}`);
  }

  /** A number that modules may have their own of: the first pattern that covers the end of a name decides. */
  own(name: string, patterns: string, module: string): number {
    for (const [pattern, value] of Object.entries((this.config[patterns] ?? {}) as object)) {
      if (new RegExp(`^(?:.*\\.)?(?:${pattern})$`).test(module)) return value as number;
    }
    return this.number(name);
  }

  /** Names of the layers that the config targets. */
  targets(): string[] {
    const { target_modules: targets } = this.config;
    const names = [...this.model.keys()];
    const found =
      typeof targets === 'string'
        ? names.filter((name) => new RegExp(`^(?:${targets})$`).test(name))
        : names.filter((name) => covers(targets as string[], name));
    if (found.length === 0) refuse(`target_modules ${JSON.stringify(targets)} not found`);
    return found;
  }

  linear(module: string): PeftLinear {
    return this.model.get(module) as PeftLinear;
  }

  /** [N, K] of a layer. */
  sizes(module: string): { readonly N: number; readonly K: number } {
    const { weight } = this.linear(module);
    return { N: weight.rows, K: weight.cols };
  }

  /** The largest N and K among the targeted layers. */
  largest(): { readonly N: number; readonly K: number } {
    const all = this.targets().map((module) => this.sizes(module));
    return { N: Math.max(...all.map(({ N }) => N)), K: Math.max(...all.map(({ K }) => K)) };
  }

  has(key: string): boolean {
    return this.files.tensors.has(key);
  }

  /** Under a whole key. A shape that is not the allocated one is an error of torch's; so is none, for us. */
  whole(key: string, shape: readonly number[]): ArrayLike<number> {
    const found = this.files.tensors.get(key);
    if (found === undefined) return refuse(`missing key ${key}: PEFT would keep its fresh values`);
    if (String(found.shape) !== String(shape)) {
      refuse(`size mismatch for ${key}: [${found.shape}] in the file, [${shape}] in the model`);
    }
    this.#taken.add(key);
    return found.values;
  }

  /** A module's own. */
  vector(module: string, key: string, shape: readonly number[]): ArrayLike<number> {
    return this.whole(`${kPrefix}${module}.${key}`, shape);
  }

  matrix(module: string, key: string, rows: number, cols: number): Matrix {
    return new Matrix(rows, cols, Float64Array.from(this.vector(module, key, [rows, cols])));
  }

  /** One that all layers share. */
  shared(key: string, shape: readonly number[]): ArrayLike<number> {
    return this.whole(`base_model.${key}`, shape);
  }

  /** One that the file may have or not, with the same result. */
  optional(module: string, key: string, shape: readonly number[]): void {
    if (this.has(`${kPrefix}${module}.${key}`)) this.vector(module, key, shape);
  }

  /** Keys of the file that no allocated tensor has: PEFT leaves them out without a word. */
  ignored(): string[] {
    return [...this.files.tensors.keys()].filter((key) => !this.#taken.has(key)).sort();
  }
}

/** One method: checks the config, takes its tensors, and gives each layer's forward pass. */
export type PeftMethod = (load: Loading, module: string) => Forward;

/** x·Wᵀ + bias */
export function linear(x: Matrix, weight: Matrix, bias?: ArrayLike<number>): Matrix {
  const y = x.times(weight.transposed());
  return bias === undefined ? y : y.map((v, _, n) => v + (bias[n] as number));
}

/** A layer whose weight is W + delta. */
export function withDelta(load: Loading, module: string, delta: Matrix): Forward {
  const { weight, bias } = load.linear(module);
  return (x) => linear(x, weight.plus(delta), bias);
}

/** A part of a longer tensor of the values, as a matrix. */
export function slice(
  values: ArrayLike<number>,
  rows: number,
  cols: number,
  at: (i: number, j: number) => number,
): Matrix {
  return Matrix.of(rows, cols, (i, j) => values[at(i, j)] as number);
}
