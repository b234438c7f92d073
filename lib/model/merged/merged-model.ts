/** A model on disk with an adapter merged into its weights, tensor by tensor. */

import type { PlanarWeight } from '../../checkpoint/planar/planar-weight.js';
import type { RawTensor } from '../../checkpoint/raw-tensor.js';
import type { RawTensorInfo } from '../../checkpoint/safetensors.js';
import { fail } from '../../core/errors.js';
import { scope } from '../../core/scope.js';
import { Tensor } from '../../core/tensor.js';
import { AdapterFolder } from '../adapter-folder.js';
import type { DecoderConfig } from '../config/decoder-config.js';
import { type DecoderPlaces, layerLinears, tensorShapes } from '../decoder-tensors.js';
import type { ExpertsPlace } from '../expert-tensors.js';
import { turned } from '../expert-weights.js';
import type { HfModel } from '../hf-model.js';
import type { LinearPlace } from '../places.js';

/** What a conversion reads of a model folder: the folder itself, or one with an adapter merged into it. */
export type FolderModel = Pick<
  HfModel,
  'folder' | 'decoder' | 'places' | 'warnings' | 'tokenizerPath' | 'layoutOf'
> & {
  names(): string[];
  info(name: string): RawTensorInfo | undefined;
  read(name: string): RawTensor;
  readFloat32(name: string): Float32Array<ArrayBuffer>;
  readQuantized(module: string): { readonly weight: PlanarWeight };
};

type Values = Float32Array<ArrayBuffer>;

/** Which tensor of which layer of experts. */
interface ExpertTensor {
  readonly place: ExpertsPlace;
  /** Of experts that are stored one by one: the expert, and its first row and rows in that tensor. */
  readonly part?: { readonly expert: number; readonly first: number; readonly rows: number };
}

const kOp = 'merge';

/**
 * The dense weights of a model with an adapter of any affine method. Each sum is made in f32 when it is read, so no more than
 * a layer is in memory.
 * @example
 * const merged = new MergedModel(openHfModel('./my-llama'), './my-adapter');
 * const w = merged.readFloat32('model.layers.0.self_attn.q_proj.weight');
 */
export class MergedModel implements FolderModel {
  readonly decoder: DecoderConfig;
  readonly places: DecoderPlaces;
  readonly #shapes: ReadonlyMap<string, readonly number[]>;
  readonly #adapters: AdapterFolder;
  readonly #linears = new Map<string, LinearPlace>();
  /** Of all experts, adapted or not. */
  readonly #experts = new Map<string, ExpertTensor>();
  #last: { readonly module: string; readonly weight: Values; readonly bias?: Values } | undefined;
  #lastExpert: { readonly key: string; readonly values: Values } | undefined;

  /**
   * @throws LowrankError as {@link AdapterFolder} · `ERR_UNSUPPORTED` for an adapter of a head that is tied to the embedding
   */
  constructor(
    private readonly base: HfModel,
    adapter: string,
  ) {
    const { decoder, places } = base;
    this.decoder = decoder;
    this.places = places;
    this.#shapes = tensorShapes(places);
    const blocks = places.layers.flatMap(layerLinears);
    const experts = places.layers.flatMap(({ experts: own }) =>
      own === undefined ? [] : [own.gateUp, own.down],
    );
    const linears = [...blocks, places.head];
    this.#adapters = new AdapterFolder(kOp, adapter, { linears, experts });
    for (const place of this.#adapters.linears) {
      if (place.weight.name === places.embedding.name) {
        const expected = 'without one of a head that is tied to the embedding';
        fail('ERR_UNSUPPORTED', kOp, 'the adapter', expected, place.module);
      }
      this.#linears.set(place.weight.name, place);
      if (place.bias !== undefined) this.#linears.set(place.bias.name, place);
    }
    for (const place of experts) this.#listExperts(place);
  }

  /** Layers that the adapter changes. */
  get layers(): number {
    return this.#adapters.linears.length + this.#adapters.experts.length;
  }

  get folder(): string {
    return this.base.folder;
  }

  get warnings(): readonly string[] {
    return this.base.warnings;
  }

  get tokenizerPath(): string | undefined {
    return this.base.tokenizerPath;
  }

  /** Names of all tensors. A layer that is merged has a dense weight. */
  names(): string[] {
    const merged = new Set(this.#adapters.linears.map(({ module }) => module));
    const isPart = (name: string) => {
      const module = [...merged].find((each) => name.startsWith(`${each}.`));
      return module !== undefined && this.base.layoutOf(module) !== undefined;
    };
    return [
      ...new Set([...this.base.names().filter((name) => !isPart(name)), ...this.#linears.keys()]),
    ];
  }

  info(name: string): RawTensorInfo | undefined {
    const shape = this.#shapes.get(name);
    const known = this.base.info(name);
    if (shape === undefined || !this.#changes(name)) return known;
    const size = shape.reduce((a, b) => a * b, 1);
    return { dtype: 'F32', shape, byteLength: 4 * size };
  }

  layoutOf(module: string): ReturnType<HfModel['layoutOf']> {
    const name = this.#shapes.has(module) ? module : `${module}.weight`;
    return this.#changes(name) ? undefined : this.base.layoutOf(module);
  }

  readQuantized(module: string): { readonly weight: PlanarWeight } {
    return this.base.readQuantized(module);
  }

  /** A tensor; one that the adapter changes is in F32. */
  read(name: string): RawTensor {
    if (!this.#changes(name)) return this.base.read(name);
    const shape = this.#shapes.get(name) as readonly number[];
    return { dtype: 'F32', shape, data: this.readFloat32(name) };
  }

  /**
   * A tensor in f32, in the shape of a dense folder; quantised layers are decoded.
   * @throws LowrankError `ERR_UNSUPPORTED` for a method that cannot be merged, or a bias that the architecture has no place for ·
   * as {@link HfModel.readFloat32}
   */
  readFloat32(name: string): Values {
    const place = this.#linears.get(name);
    if (place !== undefined) {
      const { weight, bias } = this.#merged(place);
      return name === place.weight.name ? weight : (bias as Values);
    }
    const expert = this.#experts.get(name);
    return expert === undefined ? this.base.readFloat32(name) : this.#expertValues(expert);
  }

  #changes(name: string): boolean {
    const expert = this.#experts.get(name)?.place;
    const routed = expert !== undefined && this.#adapters.experts.includes(expert);
    return routed || this.#linears.has(name);
  }

  #merged(place: LinearPlace) {
    const { module, N, K, weight, bias } = place;
    if (this.#last?.module === module) return this.#last;
    return scope(() => {
      const own = { device: 'cpu' } as const;
      const w = Tensor.from(this.base.readFloat32(weight.name), [N, K], own);
      const adapter = this.#adapters.linear(place, w, 'cpu');
      const given =
        bias === undefined ? {} : { bias: Tensor.from(this.base.readFloat32(bias.name), [N], own) };
      const merged = adapter.merge(w, given);
      if (merged.bias !== undefined && bias === undefined) {
        const expected = 'without a bias where the architecture has none';
        fail('ERR_UNSUPPORTED', kOp, 'the adapter', expected, `one of ${module}`);
      }
      const found = {
        module,
        weight: (merged.weight as Tensor).readSync() as Values,
        ...(bias === undefined ? {} : { bias: (merged.bias as Tensor).readSync() as Values }),
      };
      this.#last = found;
      return found;
    });
  }

  #listExperts(place: ExpertsPlace): void {
    const { stored, N } = place;
    if (stored.form === 'stacked') {
      this.#experts.set(stored.tensor.name, { place });
      return;
    }
    for (const [expert, parts] of stored.parts.entries()) {
      const rows = N / parts.length;
      for (const [i, { name }] of parts.entries()) {
        this.#experts.set(name, { place, part: { expert, first: i * rows, rows } });
      }
    }
  }

  #expertValues({ place, part }: ExpertTensor): Values {
    const { stored, E, N, K } = place;
    if (stored.form === 'stacked') {
      const { name } = stored.tensor;
      const read = this.base.readFloat32(name);
      // A quantised layer lies as its products read it.
      const lies = stored.transposed && this.base.layoutOf(name) === undefined;
      const values = (lies ? turned(read, E, K, N) : read) as Values;
      for (let e = 0; e < E; e++) {
        const own = values.subarray(e * N * K, (e + 1) * N * K);
        own.set(this.#withLora(place, e, own.slice()));
      }
      return (stored.transposed ? turned(values, E, N, K) : values) as Values;
    }
    const { expert, first, rows } = part as NonNullable<ExpertTensor['part']>;
    const key = `${place.module}.${place.parameter} ${expert}`;
    if (this.#lastExpert?.key !== key) {
      const values = new Float32Array(N * K);
      let at = 0;
      for (const { name } of stored.parts[expert] ?? []) {
        const one = this.base.readFloat32(name);
        values.set(one, at);
        at += one.length;
      }
      this.#lastExpert = { key, values: this.#withLora(place, expert, values) };
    }
    return this.#lastExpert.values.slice(first * K, (first + rows) * K);
  }

  /** An expert [N, K] with its LoRA, if it has one. */
  #withLora(place: ExpertsPlace, e: number, values: Values): Values {
    if (!this.#adapters.experts.includes(place)) return values;
    const { N, K } = place;
    return scope(() => {
      const adapter = this.#adapters.expertsOf(place, 'cpu').split()[e];
      const w = Tensor.from(values, [N, K], { device: 'cpu' });
      return ((adapter?.merge(w).weight ?? w) as Tensor).readSync() as Values;
    });
  }
}
