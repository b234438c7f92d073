/** Starts of the adapters of a model's layers. */

import type { Adapter } from '../adapters/definition/adapter.js';
import type { AnyMethod } from '../adapters/definition/method.js';
import type { Device } from '../core/device.js';
import { fail, markClass, wrongType } from '../core/errors.js';
import { hash32 } from '../core/random.js';
import { scope } from '../core/scope.js';
import { Tensor } from '../core/tensor.js';
import type { BaseFormat } from '../model/base-format.js';
import type { Decoder } from '../model/decoder.js';
import { type DecoderPlaces, type LinearPlace, layerLinears } from '../model/decoder-tensors.js';
import { linearsOf } from '../model/decoder-weights.js';
import { LinearSource } from '../model/linear-source.js';
import type { LinearWeights } from '../model/linear-weights.js';
import type { ModelFiles } from '../model/model-files.js';
import type { BaseWeight } from '../ops/base-weight.js';
import { buildLayer, callOf, type StartedLayer, type StartPlan } from './build.js';
import { calibrate, type Observed, type OnBatch } from './calibration/calibrate.js';
import type { CalibrationData } from './definition/calibration-data.js';
import type { AnyStart, StartLayer } from './definition/definition.js';
import { planOf, requireMethod } from './start-layer.js';
import { startTogether } from './together.js';

/** A start with its settings, as options name it. */
export interface ChosenStart {
  readonly start: AnyStart;
  /** Those that differ from its defaults. */
  readonly settings: Readonly<Record<string, unknown>>;
}

/** What a {@link Starter} works on. */
export interface StarterOptions extends ChosenStart {
  readonly method: AnyMethod;
  /** Settings of the method. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Names of the layers that are adapted: `q_proj`. */
  readonly targets: readonly string[];
  readonly format: BaseFormat;
  readonly device: Device;
  readonly seed: number;
}

/** Bytes of sums or gradients that are kept at once; more layers take more passes over the data. */
const kGroupBytes = 2 ** 30;

/** Does the start have to see data? */
export const needsData = ({ from }: AnyStart): boolean =>
  from === 'inputs' || from === 'gradient' || from === 'model';

/**
 * Rejects a start that cannot work for a model, before its weights are read.
 * @throws ERR_UNSUPPORTED for another method, a base that cannot be replaced, experts · ERR_VALUE for settings, and a dense base
 * where the start needs a quantised one
 */
export function requireStartable(
  op: string,
  { start, settings, method, config, targets, format }: Omit<StarterOptions, 'device' | 'seed'>,
  places: DecoderPlaces,
  layoutOf: (module: string) => string | undefined,
): void {
  requireMethod(op, start, method.method);
  planOf(op, start, method, { ...config, ...settings });
  const all = places.layers.flatMap(layerLinears);
  const experts = targets.find((target) => !all.some((place) => place.target === target));
  if (experts !== undefined) {
    fail('ERR_UNSUPPORTED', op, 'targets', `linear layers, for --init ${start.start}`, experts);
  }
  const stored = all.find(
    ({ target, module }) => targets.includes(target) && layoutOf(module) !== undefined,
  );
  if (stored !== undefined) {
    const expected = `dense in the files (${start.start} starts from the weights before they are quantised)`;
    const got = `${stored.module} as ${layoutOf(stored.module)}`;
    fail('ERR_UNSUPPORTED', op, 'the model', expected, got);
  }
  if (start.quantises === true && format.format === 'none') {
    const expected = `a quantised format (${start.start} needs one)`;
    fail('ERR_VALUE', op, 'format', expected, 'none');
  }
}

/**
 * Computes the starts of all layers of a model: while its weights are read, where they need nothing else, or after passes
 * over data.
 * @example
 * const starter = new Starter(model, { start: starts.pissa, settings: {}, method: adapters.lora, ... });
 * const weights = DecoderWeights.load(model, { format, device, store: starter.store });
 * const decoder = new Decoder(model.decoder, weights);
 * const started = await starter.finish(decoder); // with data for a start that needs them
 * const set = new AdapterSet(decoder, config, seed, started);
 */
export class Starter implements Disposable {
  readonly #plan: StartPlan;
  readonly #source: LinearSource;
  readonly #layers = new Map<string, StartedLayer>();
  readonly #index: ReadonlyMap<string, number>;

  /** @throws ERR_UNSUPPORTED for another method · ERR_VALUE for settings, and a dense base where the start needs a quantised one */
  constructor(
    readonly model: ModelFiles,
    readonly options: StarterOptions,
  ) {
    const { start, settings, method, config, targets, format, device } = options;
    this.#source = new LinearSource(model, format, device);
    requireStartable('start', options, model.places, (module) => model.layoutOf(module));
    this.#plan = planOf('start', start, method, { ...config, ...settings });
    const chosen = model.places.layers
      .flatMap(layerLinears)
      .filter(({ target }) => targets.includes(target));
    this.#index = new Map(chosen.map(({ module }, i) => [module, i]));
  }

  /**
   * The hook between reading a weight and quantising it, for {@link LoadOptions.store}; undefined for a start that needs
   * data, whose layers come later.
   */
  get store():
    | ((place: LinearPlace, values: () => Float32Array) => BaseWeight | undefined)
    | undefined {
    if (needsData(this.options.start)) return undefined;
    return (place, values) => {
      if (!this.#index.has(place.module)) return undefined;
      const made = scope(() => {
        const w = Tensor.from(values(), [place.N, place.K], { device: this.options.device });
        const started = this.#build(this.#layer(place, w, {}), undefined);
        return { ...started, base: started.base ?? this.#quantise(place, w) };
      });
      this.#layers.set(place.module, made);
      return made.base;
    };
  }

  #quantise(place: LinearPlace, w: Tensor): BaseWeight {
    return this.#source.store(place, w);
  }

  #layer(place: LinearPlace, w: Tensor, { inputs, dw }: Observed): StartLayer {
    const { module, N, K } = place;
    return {
      module,
      N,
      K,
      device: this.options.device,
      w,
      ...(inputs === undefined ? {} : { inputs }),
      ...(dw === undefined ? {} : { dw }),
      quantise: (t) => this.#quantise(place, t),
    };
  }

  #seed(module: string): number {
    return hash32(this.options.seed, 'start', this.#index.get(module) as number);
  }

  #build(layer: StartLayer, rank: number | undefined): StartedLayer {
    return buildLayer(this.#plan, layer, this.#seed(layer.module), rank);
  }

  /**
   * Computes what is not there yet, and puts the new bases into the model.
   * @param data what the layers see; for a start that needs data
   * @param onBatch called before each batch; may throw to stop
   * @returns the adapters by module, the caller's
   * @throws ERR_VALUE without data for a start that needs them · what the passes and the start throw; then the model is as it was
   */
  async finish(
    decoder: Decoder,
    data?: CalibrationData,
    onBatch?: OnBatch,
  ): Promise<ReadonlyMap<string, Adapter>> {
    const { start } = this.options;
    if (needsData(start)) {
      if (data === undefined || data.batches.length === 0) {
        fail('ERR_VALUE', 'start', 'data', `given (${start.start} needs ${start.from})`, 'none');
      }
      if (start.from === 'model') await this.#together(decoder, data, onBatch);
      else await this.#calibrated(decoder, data, onBatch);
      for (const [module, { base }] of this.#layers) {
        if (base !== undefined) decoder.weights.replace(module, base);
      }
    }
    const adapters = new Map([...this.#layers].map(([module, { adapter }]) => [module, adapter]));
    this.#layers.clear();
    return adapters;
  }

  async #calibrated(decoder: Decoder, data: CalibrationData, onBatch?: OnBatch): Promise<void> {
    const { start } = this.options;
    const layers = decoder.weights.layers
      .flatMap(linearsOf)
      .filter(({ place }) => this.#index.has(place.module));
    const groups = groupsOf(layers, start);
    const wanted = start.from === 'inputs' ? 'inputs' : 'gradient';
    let ranks: readonly number[] | undefined;
    let kept: readonly Observed[] | undefined;
    if (start.measure !== undefined && start.ranks !== undefined) {
      const measured: (readonly number[])[] = [];
      for (const group of groups) {
        const seen = await calibrate(decoder, group, wanted, data, onBatch);
        group.forEach(({ place }, i) => {
          const observed = seen[i] as Observed;
          const found = this.#with(place, observed, (layer) =>
            start.measure?.(layer, callOf(this.#plan, this.#seed(place.module))),
          );
          measured.push(found as readonly number[]);
        });
        // With one group its sums serve the factors too.
        if (groups.length === 1) kept = seen;
        else for (const { dw } of seen) dw?.dispose();
      }
      const sizes = layers.map(({ place }) => place);
      const { r } = callOf(this.#plan, 0);
      ranks = this.#checkRanks(start.ranks(measured, r, this.#plan.settings, sizes), sizes);
    }
    for (const group of groups) {
      const seen = kept ?? (await calibrate(decoder, group, wanted, data, onBatch));
      group.forEach(({ place }, i) => {
        const observed = seen[i] as Observed;
        const rank = ranks?.[this.#index.get(place.module) as number];
        const made = this.#with(place, observed, (layer) => this.#build(layer, rank));
        this.#layers.set(place.module, made);
        observed.dw?.dispose();
      });
    }
  }

  /** Starts all layers with the dense model beside the stored one. */
  async #together(decoder: Decoder, data: CalibrationData, onBatch: OnBatch = () => {}) {
    const { model, options } = this;
    await startTogether({
      plan: this.#plan,
      call: callOf(this.#plan, options.seed),
      model,
      stored: decoder,
      device: options.device,
      data,
      onBatch,
      isStarted: (module) => this.#index.has(module),
      seedOf: (module) => this.#seed(module),
      layerOf: (place, w) => this.#layer(place, w, {}),
      take: (module, made) => this.#layers.set(module, made),
    });
  }

  /** Calls with the layer as its files have it. */
  #with<T>(place: LinearPlace, observed: Observed, run: (layer: StartLayer) => T): T {
    const w = this.#source.read(place);
    try {
      return run(this.#layer(place, w, observed));
    } finally {
      w.dispose();
    }
  }

  #checkRanks(ranks: unknown, sizes: readonly LinearPlace[]): readonly number[] {
    const what = `what ranks of ${this.options.start.start} returns`;
    if (!Array.isArray(ranks)) throw wrongType('start', what, 'an array of ranks', ranks);
    if (ranks.length !== sizes.length) {
      fail('ERR_VALUE', 'start', what, `${sizes.length} ranks`, `${ranks.length}`);
    }
    for (const [i, rank] of ranks.entries()) {
      const { module, N, K } = sizes[i] as LinearPlace;
      if (Number.isInteger(rank) && rank >= 1 && rank <= Math.min(N, K)) continue;
      fail('ERR_VALUE', 'start', `the rank of ${module}`, `from 1 to ${Math.min(N, K)}`, `${rank}`);
    }
    return ranks;
  }

  /** Frees adapters and bases that were not handed over. Twice is a no-op. */
  dispose(): void {
    for (const { adapter, base } of this.#layers.values()) {
      adapter.dispose();
      if (needsData(this.options.start)) base?.dispose();
    }
    this.#layers.clear();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

markClass(Starter, 'Starter');

/** Layers whose sums fit at once, in their order. */
function groupsOf(layers: readonly LinearWeights[], { from }: AnyStart): LinearWeights[][] {
  const groups: LinearWeights[][] = [];
  let bytes = Number.POSITIVE_INFINITY;
  for (const layer of layers) {
    const { N, K } = layer.place;
    const own = from === 'inputs' ? 8 * K * K : 4 * N * K;
    if (bytes + own > kGroupBytes) {
      groups.push([]);
      bytes = 0;
    }
    bytes += own;
    groups[groups.length - 1]?.push(layer);
  }
  return groups;
}
