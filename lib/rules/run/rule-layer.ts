import type { Adapter } from '../../adapters/definition/adapter.js';
import type { AnyMethod } from '../../adapters/definition/method.js';
import { type AlphaConfig, scalingOf } from '../../adapters/parts/scaling.js';
import { fail } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import type { LinearPlace } from '../../model/places.js';
import type { BaseWeight } from '../../ops/base-weight.js';
import type { RuleLayer, RuleUpdate } from '../definition/run.js';
import type { Merges } from './merges.js';
import type { RunParameter } from './rule-parameter.js';

/** What a layer needs of its run. */
export interface LayerRun {
  readonly method: AnyMethod;
  readonly merges: Merges;
  /** The ranks that the folder leaves out, by module. */
  readonly kept: Map<string, Uint8Array>;
  /** The base of a layer as it is now. */
  weightOf(module: string): BaseWeight;
  /** A base is another tensor now. */
  baseChanged(): void;
}

/** An adapted layer, as rules see it. What changes more than the adapter needs a claim: {@link claimedLayer}. */
export class RunLayer implements RuleLayer {
  constructor(
    readonly place: LinearPlace,
    readonly adapter: Adapter,
    readonly parameters: Readonly<Record<string, RunParameter>>,
    private readonly run: LayerRun,
  ) {}

  get module() {
    return this.place.module;
  }

  get N() {
    return this.place.N;
  }

  get K() {
    return this.place.K;
  }

  get config() {
    return this.adapter.config as Readonly<Record<string, unknown>>;
  }

  get r() {
    return (this.config.r as number | undefined) ?? 0;
  }

  get scaling() {
    const { r, loraAlpha } = this.config;
    return r === undefined || loraAlpha === undefined
      ? 1
      : scalingOf(this.config as unknown as AlphaConfig);
  }

  initial(seed: number): Readonly<Record<string, Float32Array>> {
    const { place, adapter, run } = this;
    return scope(() => {
      const made = run.method.create({
        ...adapter.config,
        inFeatures: place.K,
        outFeatures: place.N,
        module: place.module,
        weight: run.weightOf(place.module),
        device: adapter.device,
        seed,
      });
      return Object.fromEntries(
        Object.keys(this.parameters).map((part) => [part, made.parameters[part]?.readSync()]),
      ) as Record<string, Float32Array>;
    });
  }

  merge(share = 1): void {
    const { loraA, loraB } = this.parameters;
    if (loraA === undefined || loraB === undefined) {
      fail('ERR_UNSUPPORTED', 'rule', `${this.module}`, 'a layer with loraA and loraB', 'another');
    }
    const b = loraB.values();
    this.run.merges.add(this.module, {
      a: loraA.values(),
      b: share === 1 ? b : b.map((value) => value * share),
    });
    this.run.baseChanged();
  }

  rebase(updates: readonly RuleUpdate[]): void {
    const { N, K, r, module } = this;
    for (const { a, b } of updates) {
      if (a.length === r * K && b.length === N * r) continue;
      const expected = `a of ${r * K} values and b of ${N * r}`;
      fail('ERR_SHAPE', 'rule', `updates of ${module}`, expected, `${a.length} and ${b.length}`);
    }
    this.run.merges.set(module, updates);
    this.run.baseChanged();
  }

  keepRanks(keep: ArrayLike<number>): void {
    if (keep.length !== this.r) {
      fail('ERR_SHAPE', 'rule', `ranks of ${this.module}`, `${this.r} flags`, String(keep.length));
    }
    this.run.kept.set(this.module, Uint8Array.from(keep));
  }
}

/** The layer for a rule that does not claim all: what it may not do throws. */
export function claimedLayer(layer: RunLayer, rule: string, claims: readonly string[]): RuleLayer {
  if (claims.includes('base') && claims.includes('shapes')) return layer;
  const without = (claim: string) => (): never =>
    fail(
      'ERR_UNSUPPORTED',
      'rule',
      `claims of ${rule}`,
      `with "${claim}"`,
      claims.join(', ') || 'none',
    );
  return Object.create(layer, {
    ...(claims.includes('base')
      ? {}
      : { merge: { value: without('base') }, rebase: { value: without('base') } }),
    ...(claims.includes('shapes') ? {} : { keepRanks: { value: without('shapes') } }),
  }) as RuleLayer;
}
