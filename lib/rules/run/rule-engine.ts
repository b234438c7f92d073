/** The rules of one run: their settings and arrays, and when their hooks are called. */

import type { Adapter } from '../../adapters/definition/adapter.js';
import type { AnyMethod } from '../../adapters/definition/method.js';
import { fail } from '../../core/errors.js';
import { hash32 } from '../../core/random.js';
import { Tensor } from '../../core/tensor.js';
import { checkDims, newArray } from '../../core/validate.js';
import type { Decoder } from '../../model/decoder.js';
import { linearsOf } from '../../model/decoder-weights.js';
import type { LinearSource } from '../../model/linear-source.js';
import type { LinearPlace } from '../../model/places.js';
import type { AnyOptimizer, TrainedParameter } from '../../optim/definition/definition.js';
import { clip } from '../../optim/run/host-arrays.js';
import type { StoredState } from '../../optim/run/optimizer-run.js';
import type { AnyRule, ChosenRule } from '../definition/definition.js';
import type { RulePass, RuleRun, RuleSizes } from '../definition/run.js';
import { blocksOf } from './blocks.js';
import { Merges } from './merges.js';
import { requireRules } from './requirements.js';
import { claimedLayer, RunLayer } from './rule-layer.js';
import { RunParameter } from './rule-parameter.js';

/** The adapters of a run. */
interface RuleAdapters {
  readonly layers: readonly { readonly place: LinearPlace; readonly adapter: Adapter }[];
  readonly experts: ReadonlyMap<string, unknown>;
  readonly config: {
    readonly method: AnyMethod;
    readonly settings: Readonly<Record<string, unknown>>;
    readonly start?: {
      readonly start: { readonly start: string; readonly replacesBase?: boolean | 'format' };
    };
  };
}

/** The steps of a run. */
interface RuleTrainer {
  readonly steps: number;
  readonly parameters: readonly TrainedParameter[];
  readonly state: ReadonlyMap<string, Readonly<Record<string, Tensor>>>;
  readonly optimizer: AnyOptimizer;
  readonly stored: readonly StoredState[];
  readonly optimizerOrigin: number;
  restartOptimizer(steps?: number): void;
}

/** What the rules of a run work on. */
export interface RuleHost {
  readonly decoder: Decoder;
  readonly adapters: RuleAdapters;
  readonly trainer: RuleTrainer;
  /** Where the base can be read from; a rule that merges needs it. */
  readonly source: LinearSource | undefined;
  readonly sizes: RuleSizes;
  readonly seed: number;
  /** Largest norm of the gradients. */
  readonly clip: number;
  /** As in {@link RuleSurroundings}. */
  readonly alone?: string | undefined;
  /** The gradients of a step on a part, without an update. */
  rehearse(pass: RulePass, skip: ReadonlySet<string>): readonly (Float32Array | undefined)[];
  lossOf(pass: RulePass): number;
  observeInputs(pass: RulePass, input: (module: string, x: Float32Array) => void): void;
  weightGradients(pass?: RulePass): ReadonlyMap<string, Float32Array>;
  /** A base is another tensor now: a captured graph is of no use. */
  baseChanged(): void;
}

type Run = RuleRun<object>;

/** A rule of a run with what its hooks get. */
interface Entry {
  readonly rule: AnyRule;
  readonly settings: object;
  readonly run: Run;
  readonly state: Record<string, Float64Array>;
  readonly shapes: Readonly<Record<string, readonly number[]>>;
}

export class RuleEngine {
  readonly #entries: readonly Entry[];
  readonly #parameters: readonly RunParameter[];
  readonly #merges: Merges;
  readonly #kept = new Map<string, Uint8Array>();
  /** Masks of this step, and the values before it. */
  #masked: {
    readonly at: RunParameter;
    readonly mask: Uint8Array;
    readonly before: Float32Array;
  }[] = [];
  #lr = 0;

  /** @throws as {@link requireRules} · ERR_TYPE, ERR_VALUE for what `state` returns */
  constructor(
    private readonly host: RuleHost,
    rules: readonly ChosenRule[],
  ) {
    const { adapters, trainer, decoder } = host;
    const { method, settings: config, start } = adapters.config;
    const settings = requireRules('rule', rules, host.sizes, {
      method: method.method,
      config,
      replacingStart: start?.start.replacesBase ? start.start.start : undefined,
      optimizer: trainer.optimizer,
      experts: adapters.experts.size > 0,
      alone: host.alone,
    });
    const writer = rules.find(({ rule }) => rule.writesStates === true);
    if (writer !== undefined && trainer.stored.some(({ dtype }) => dtype === 'U8')) {
      const expected = `one with states in f32, because the rule ${writer.rule.rule} changes them`;
      fail('ERR_UNSUPPORTED', 'rule', 'the optimizer', expected, trainer.optimizer.optimizer);
    }
    this.#parameters = trainer.parameters.map(
      (parameter) => new RunParameter(parameter, trainer.state.get(parameter.name) ?? {}),
    );
    const weights = new Map(
      decoder.weights.layers.flatMap(linearsOf).map((linear) => [linear.place.module, linear]),
    );
    this.#merges = new Merges(decoder.weights, host.source);
    const run = {
      method,
      merges: this.#merges,
      kept: this.#kept,
      weightOf: (module: string) => (weights.get(module) as { w: Tensor }).w,
      baseChanged: () => host.baseChanged(),
    };
    const layers = adapters.layers.map(({ place, adapter }) => {
      const own = this.#parameters.filter(({ module }) => module === place.module);
      const parts = Object.fromEntries(own.map((parameter) => [parameter.part, parameter]));
      return new RunLayer(place, adapter, parts, run);
    });
    this.#merges.layers = layers;
    this.#entries = rules.map(({ rule }, i) => this.#entryOf(rule, settings[i] as object, layers));
  }

  #entryOf(rule: AnyRule, settings: object, layers: readonly RunLayer[]): Entry {
    const { host } = this;
    const { trainer, sizes, seed } = host;
    const state: Record<string, Float64Array> = {};
    const claims = rule.claims ?? [];
    const engine = this;
    const run: Run = {
      settings,
      state,
      seed,
      steps: sizes.steps,
      get step() {
        return trainer.steps;
      },
      get lr() {
        return engine.#lr;
      },
      blocks: blocksOf(host.decoder),
      layers: layers.map((layer) => claimedLayer(layer, rule.rule, claims)),
      parameters: new Map(this.#parameters.map((parameter) => [parameter.name, parameter])),
      optimizer: {
        name: trainer.optimizer.optimizer,
        get steps() {
          return trainer.steps - trainer.optimizerOrigin;
        },
        restart: (steps) => {
          if (rule.resetsOptimizer !== true) {
            fail('ERR_UNSUPPORTED', 'rule', rule.rule, 'with resetsOptimizer: true', 'without');
          }
          trainer.restartOptimizer(steps);
        },
      },
      seedOf: (...parts) => hash32(seed, rule.rule, ...parts),
      lossOf: (pass) => host.lossOf(pass),
      observeInputs: (pass, input) => host.observeInputs(pass, input),
      weightGradients: (pass) => host.weightGradients(pass),
      gradientsOf: (pass, skip = new Set()) =>
        new Map(
          host
            .rehearse(pass, skip)
            .flatMap((values, i) =>
              values === undefined ? [] : [[(this.#parameters[i] as RunParameter).name, values]],
            ),
        ),
    };
    const shapes = rule.state?.(run) ?? {};
    for (const [name, shape] of Object.entries(shapes)) {
      const size = checkDims(`rule ${rule.rule}`, shape).reduce((a, b) => a * b, 1);
      state[name] = newArray(`rule ${rule.rule}`, Float64Array, size);
    }
    return { rule, settings, run, state, shapes };
  }

  /** Names of the rules. */
  get names(): readonly string[] {
    return this.#entries.map(({ rule }) => rule.rule);
  }

  /** Why steps cannot be captured; undefined if they can. */
  get notCaptured(): string | undefined {
    const hooks = ['trains', 'anchor', 'skip', 'mask', 'gradients', 'keepsGradients'] as const;
    const found = this.#entries.find(({ rule }) => hooks.some((hook) => rule[hook]));
    return (
      found &&
      `the rule ${found.rule.rule} changes what a step computes, or works on it on the host`
    );
  }

  /** The ranks that the written folder has of a layer; undefined for all. */
  get kept(): ReadonlyMap<string, Uint8Array> {
    return this.#kept;
  }

  /** What was merged into the base, by layer. */
  get merges(): Merges {
    return this.#merges;
  }

  /** The learning rate of the next step. */
  rate(schedule: (step: number, warmup?: number, steps?: number) => number): number {
    const step = this.host.trainer.steps;
    const own = this.#entries.find(({ rule }) => rule.rate !== undefined);
    this.#lr =
      own?.rule.rate?.({ ...this.host.sizes, settings: own.settings, step, schedule }) ??
      schedule(step);
    if (!(Number.isFinite(this.#lr) && this.#lr >= 0)) {
      fail('ERR_VALUE', 'rule', `the rate of ${own?.rule.rule}`, 'at least 0', String(this.#lr));
    }
    return this.#lr;
  }

  /** The part of the sequences that a step sees. */
  passOf(step: number): RulePass | undefined {
    const own = this.#entries.find(({ rule }) => rule.data !== undefined);
    return own?.rule.data?.({ ...this.host.sizes, settings: own.settings, step });
  }

  /** Before the passes of a step. */
  before(): void {
    const { steps } = this.host.trainer;
    for (const { rule, run } of this.#entries) {
      if (steps === 0) rule.prepare?.(run);
    }
    for (const { rule, run } of this.#entries) rule.before?.(run);
  }

  trains(index: number): boolean {
    const { name } = this.#parameters[index] as RunParameter;
    return this.#entries.every(({ rule, run }) => rule.trains?.(run, name) ?? true);
  }

  /** What the features of this step are held to: the weight, and a call with the other values in place. */
  anchors(): readonly { readonly weight: number; during<T>(call: () => T): T }[] {
    return this.#entries.flatMap(({ rule, run }) => {
      const anchor = rule.anchor?.(run);
      if (anchor === undefined) return [];
      const { values, weight } = anchor;
      const during = <T>(call: () => T): T => {
        const own = this.#parameters.filter(({ name }) => values.has(name));
        const before = own.map((parameter) => parameter.values());
        try {
          for (const parameter of own) parameter.write(values.get(parameter.name) as Float32Array);
          return call();
        } finally {
          for (const [i, parameter] of own.entries()) parameter.write(before[i] as Float32Array);
        }
      };
      return [{ weight, during }];
    });
  }

  /** Blocks that the backward pass leaves out. */
  skips(pass: number): ReadonlySet<string> {
    return new Set(this.#entries.flatMap(({ rule, run }) => [...(rule.skip?.(run, pass) ?? [])]));
  }

  edit(gradients: readonly (Tensor | undefined)[]): readonly (Tensor | undefined)[] {
    const editing = this.#entries.filter(({ rule }) => rule.gradients !== undefined);
    const reading = this.#entries.some(({ rule }) => rule.keepsGradients === true || rule.mask);
    if (editing.length === 0 && !reading) return gradients;
    for (const [i, at] of this.#parameters.entries()) at.gradient = gradients[i]?.readSync();
    for (const { rule, run } of editing) rule.gradients?.(run);
    this.#masked = this.#masks();
    for (const { at, mask } of this.#masked) {
      at.gradient = at.gradient?.map((value, i) => (mask[i] === 1 ? value : 0));
    }
    if (editing.length === 0 && this.#masked.length === 0) return gradients;
    return gradients.map((gradient, i) => {
      const { gradient: values } = this.#parameters[i] as RunParameter;
      if (gradient === undefined || values === undefined) return undefined;
      checkLength('the gradient', this.#parameters[i] as RunParameter, values);
      return Tensor.from(values, gradient.shape, { device: gradient.device });
    });
  }

  /** What this step leaves as it is. */
  #masks() {
    return this.#parameters.flatMap((at) => {
      const masks = this.#entries.flatMap(({ rule, run }) => {
        const mask = rule.mask?.(run, at.name);
        if (mask === undefined) return [];
        checkLength(`the mask of ${rule.rule}`, at, mask);
        return [mask];
      });
      const [first, ...others] = masks;
      if (first === undefined) return [];
      const mask = first.map((own, i) => (own === 1 && others.every((m) => m[i] === 1) ? 1 : 0));
      return [{ at, mask, before: at.values() }];
    });
  }

  /** After a step that changed the parameters. */
  after(gradientNorm: number): void {
    for (const { at, mask, before } of this.#masked) {
      at.write(at.values().map((value, i) => (mask[i] === 1 ? value : (before[i] as number))));
    }
    this.#masked = [];
    const clips = this.host.trainer.optimizer.clips === true ? undefined : this.host.clip;
    for (const { gradient } of this.#parameters) {
      if (gradient !== undefined) clip(gradient, gradientNorm, clips);
    }
    for (const { rule, run } of this.#entries) rule.after?.(run);
    for (const parameter of this.#parameters) parameter.gradient = undefined;
  }

  /** After the last step. */
  finish(): void {
    for (const { rule, run } of this.#entries) rule.finish?.(run);
  }

  /** What a checkpoint has of the rules. @param merged how often each layer was merged */
  storedOf(merged: readonly number[]): readonly StoredState[] {
    return [
      ...this.#merges.storedOf(merged),
      ...this.#entries.flatMap(({ rule, state, shapes }) =>
        Object.entries(shapes).map(
          ([name, shape]): StoredState => ({
            name: `rules/${rule.rule}/${name}`,
            shape,
            notNegative: false,
            dtype: 'F64',
            read: () => (state[name] as Float64Array).slice(),
            write: (values) => (state[name] as Float64Array).set(values),
          }),
        ),
      ),
    ];
  }

  /** After a checkpoint was read. */
  restore(): void {
    this.#merges.restore();
  }
}

function checkLength(
  what: string,
  { name, trained }: RunParameter,
  values: ArrayLike<number>,
): void {
  const { size } = trained.tensor;
  if (values.length === size) return;
  fail('ERR_SHAPE', 'rule', `${what} for ${name}`, `${size} values`, String(values.length));
}
