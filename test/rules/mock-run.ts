/** A run of arrays, in which a test calls the hooks of a rule itself. */
import { hash32 } from '../../lib/core/random.js';
import type { AnyRule } from '../../lib/index.js';
import type {
  RuleLayer,
  RuleParameter,
  RulePass,
  RuleRun,
  RuleUpdate,
} from '../../lib/rules/definition/run.js';

export interface MockTensor {
  readonly shape: readonly number[];
  readonly values: Float32Array;
}

export interface MockParameter extends RuleParameter {
  gradient: Float32Array | undefined;
}

interface MockOptions {
  readonly settings?: Readonly<Record<string, unknown>>;
  readonly steps?: number;
  readonly lr?: number;
  /** Of each layer; default 1. */
  readonly scaling?: Readonly<Record<string, number>>;
  readonly config?: Readonly<Record<string, unknown>>;
  /** Tensors of each layer. */
  readonly layers: Readonly<Record<string, Readonly<Record<string, MockTensor>>>>;
  /** Values of the states `m` and `v`, by name of the parameter. */
  readonly states?: Readonly<Record<string, Record<string, Float32Array>>>;
  readonly lossOf?: (pass: RulePass) => number;
  readonly observeInputs?: RuleRun<object>['observeInputs'];
  readonly weightGradients?: RuleRun<object>['weightGradients'];
  readonly blocks?: RuleRun<object>['blocks'];
  readonly gradientsOf?: (
    pass: RulePass,
    skip?: ReadonlySet<string>,
  ) => ReadonlyMap<string, Float32Array>;
}

export interface MockRun
  extends Omit<RuleRun<Readonly<Record<string, number>>>, 'parameters' | 'step'> {
  step: number;
  readonly parameters: ReadonlyMap<string, MockParameter>;
  /** What layers were told. */
  readonly kept: Map<string, number[]>;
  readonly merged: { readonly module: string; readonly share: number }[];
  readonly rebased: { readonly module: string; readonly updates: readonly RuleUpdate[] }[];
  restarts: number;
}

const roleOf = (part: string) =>
  part === 'loraA' ? 'down' : part === 'loraB' ? 'up' : ('other' as const);

/** `loraA` [r, K] and `loraB` [N, r] give a layer its sizes. */
export function mockRun(rule: AnyRule, options: MockOptions): MockRun {
  const parameters = new Map<string, MockParameter>();
  const kept = new Map<string, number[]>();
  const merged: MockRun['merged'] = [];
  const rebased: MockRun['rebased'] = [];
  const layers = Object.entries(options.layers).map(([module, tensors]): RuleLayer => {
    const own = Object.entries(tensors).map(([part, tensor]): [string, MockParameter] => {
      const name = `${module}.${part}`;
      let values = tensor.values.slice();
      const states = options.states?.[name] ?? {};
      const parameter: MockParameter = {
        ...{ name, part, module, role: roleOf(part), shape: tensor.shape },
        ...{ gradient: undefined, states: Object.keys(states) },
        values: () => values.slice(),
        write: (next) => {
          if (!next.every(Number.isFinite)) throw new Error(`${name} is not finite`);
          values = next.slice();
        },
        state: (state) => (states[state] as Float32Array).slice(),
        writeState: (state, next) => {
          states[state] = next.slice();
        },
      };
      parameters.set(name, parameter);
      return [part, parameter];
    });
    const [r = 0, K = 0] = tensors.loraA?.shape ?? [];
    return {
      ...{ module, r, K, N: tensors.loraB?.shape[0] ?? 0 },
      scaling: options.scaling?.[module] ?? 1,
      config: { r, ...options.config },
      parameters: Object.fromEntries(own),
      initial: (seed) =>
        Object.fromEntries(
          own.map(([part, { shape }]) => {
            const size = shape.reduce((a, b) => a * b, 1);
            return [part, new Float32Array(size).fill(part === 'loraB' ? 0 : seed % 7)];
          }),
        ),
      merge: (share = 1) => merged.push({ module, share }),
      rebase: (updates) => rebased.push({ module, updates }),
      keepRanks: (keep) => kept.set(module, Array.from(keep)),
    };
  });
  const made: MockRun = {
    settings: { ...rule.defaults, ...options.settings },
    ...{ step: 0, steps: options.steps ?? 100, seed: 1, lr: options.lr ?? 1e-3 },
    blocks: options.blocks ?? [],
    ...{ layers, parameters, kept, merged, rebased, restarts: 0, state: {} },
    optimizer: { name: 'adamw', steps: 0, restart: () => made.restarts++ },
    seedOf: (...parts) => hash32(...parts),
    lossOf: options.lossOf ?? (() => 0),
    observeInputs: options.observeInputs ?? (() => {}),
    weightGradients: options.weightGradients ?? (() => new Map()),
    gradientsOf: options.gradientsOf ?? (() => new Map()),
  };
  const state = made.state as Record<string, Float64Array>;
  for (const [name, shape] of Object.entries(rule.state?.(made) ?? {})) {
    state[name] = new Float64Array(shape.reduce((a, b) => a * b, 1));
  }
  return made;
}
