import type { Value } from '../../autograd/gradient-tape.js';
import type { RawTensor } from '../../checkpoint/raw-tensor.js';
import type { Device } from '../../core/device.js';
import type { DType } from '../../core/dtype.js';
import { fail } from '../../core/errors.js';
import { Tensor } from '../../core/tensor.js';
import type { BaseWeight } from '../../ops/base-weight.js';

/** What an adapter's forward formula is computed from. */
export interface AdapterCall<C, Name extends string, S> {
  /** [..., K] */
  readonly x: Value;
  /** [N, K], frozen */
  readonly w: BaseWeight;
  /** [N], where the layer has one */
  readonly bias: Value | undefined;
  /** The adapter's tensors by name: trained ones with a gradient, frozen ones without. */
  readonly p: Readonly<Record<Name, Value>>;
  readonly config: Readonly<C>;
  /** What {@link AdapterDefinition.prepare} made. */
  readonly state: S;
  /** Tensors that a call brings beside x, by name: gates, a second input; with gradients. */
  readonly inputs: Readonly<Record<string, Value>>;
  readonly N: number;
  readonly K: number;
  /** Dropout is on, and samplers sample. */
  readonly training: boolean;
  /** That of the call, where it has one: for what is sampled on the host. */
  readonly seed: number | undefined;
}

/** What an adapter is made for. */
export interface AdapterSize<C> {
  readonly N: number;
  readonly K: number;
  readonly config: Readonly<C>;
}

/**
 * Where a fresh adapter's tensors come from: shapes by name, one stream of seeds.
 * @example
 * init: (make) => ({ loraA: make.kaiming('loraA'), loraB: make.zeros('loraB') }),
 */
export class AdapterMaker<C, Name extends string = string> implements AdapterSize<C> {
  readonly N: number;
  readonly K: number;
  readonly config: Readonly<C>;
  readonly device: Device;
  readonly dtype: DType;
  /** The base weight, where it was given: some methods start from it. */
  readonly w: BaseWeight | undefined;
  readonly shapes: Readonly<Record<Name, readonly number[]>>;
  #seed: number;

  constructor(fields: {
    N: number;
    K: number;
    config: Readonly<C>;
    device: Device;
    dtype: DType;
    w: BaseWeight | undefined;
    shapes: Readonly<Record<Name, readonly number[]>>;
    seed: number;
  }) {
    this.N = fields.N;
    this.K = fields.K;
    this.config = fields.config;
    this.device = fields.device;
    this.dtype = fields.dtype;
    this.w = fields.w;
    this.shapes = fields.shapes;
    this.#seed = fields.seed;
  }

  /** The next seed: tensor after tensor. */
  seed(): number {
    return this.#seed++;
  }

  #place(): { dtype: DType; device: Device } {
    return { dtype: this.dtype, device: this.device };
  }

  /** The base weight, for a method that cannot start without. @throws ERR_VALUE */
  weight(op: string): BaseWeight {
    if (this.w === undefined) fail('ERR_VALUE', op, 'weight', 'given (the base weight)', 'none');
    return this.w;
  }

  /** @throws ERR_VALUE where the method's `shapes` gives none */
  #shape(name: Name): readonly number[] {
    const shape = this.shapes[name];
    if (shape === undefined) {
      const known = Object.keys(this.shapes).join(', ') || 'none';
      fail('ERR_VALUE', 'init', 'name', `of a tensor that shapes gives (${known})`, `'${name}'`);
    }
    return shape;
  }

  zeros(name: Name): Tensor {
    return Tensor.zeros(this.#shape(name), this.#place());
  }

  full(name: Name, value: number): Tensor {
    return this.values(name, () => value);
  }

  /** Element i of the row-major tensor by a function of i. */
  values(name: Name, value: (i: number) => number): Tensor {
    const shape = this.#shape(name);
    const size = shape.reduce((product, dim) => product * dim, 1);
    return Tensor.from(
      Float32Array.from({ length: size }, (_, i) => value(i)),
      shape,
      this.#place(),
    );
  }

  /** Uniform in ±bound. */
  uniform(name: Name, bound: number): Tensor {
    const drawn = { ...this.#place(), seed: this.seed(), low: -bound, high: bound };
    return Tensor.uniform(this.#shape(name), drawn);
  }

  normal(name: Name, std: number): Tensor {
    return Tensor.randn(this.#shape(name), { ...this.#place(), seed: this.seed(), std });
  }

  /** As PEFT draws lora_A: uniform in ±1/sqrt(fanIn); default the last dimension. */
  kaiming(name: Name, fanIn = this.#shape(name).at(-1) ?? 1): Tensor {
    return this.uniform(name, 1 / Math.sqrt(fanIn));
  }
}

/** What {@link AdapterDefinition.penalty} gives. */
export interface LayerPenalty {
  /** [1] */
  readonly loss: Tensor;
  readonly gradients: Readonly<Record<string, Tensor>>;
}

/** Of a layer, or the largest among those of a folder, for which seeded projections are drawn. */
export interface LayerSize {
  readonly inFeatures: number;
  readonly outFeatures: number;
}

/** Where a layer is among those that a folder is for. */
export interface ModulePlace {
  readonly module: string;
  /** In the order of the model, where that is known. */
  readonly layers: ReadonlyMap<string, LayerSize> | undefined;
}

/** What {@link PeftForm.regenerate} gives. */
export interface Regenerated<Name extends string> {
  readonly tensors?: Readonly<Partial<Record<Name, Float32Array>>>;
  readonly indexes?: Readonly<Record<string, Int32Array>>;
}

/** What {@link PeftForm.read} may look at beside the config: a layer's sizes, and what the file has of it. */
export interface StoredLayer {
  /** A tensor behind the module's name. */
  readonly stored: (key: string) => RawTensor | undefined;
  readonly inFeatures: number;
  readonly outFeatures: number;
}

/** Of PEFT's tensor names, before the module's. */
export const kPrefix = 'base_model.model.';

/** How PEFT names and describes an adapter. */
export interface PeftForm<C, Name extends string> {
  /** `peft_type` */
  readonly type: string;
  /** Flags of the config that make this method of a type that several methods share. */
  readonly when?: (config: Readonly<Record<string, unknown>>, module: string) => boolean;
  /** Fields of the config that are refused where a method does not name them: `lora_bias`. */
  readonly features?: readonly string[];
  /** Numbers of the config that this method does not offer: other than 0 they are refused. */
  readonly zeros?: readonly string[];
  /** Tensor name behind the module's name, e.g. `lora_A.weight`; in the layout of the parameter. */
  readonly tensors: Readonly<Partial<Record<Name, string>>>;
  /** Names in place of those of `tensors` with some settings: a layer of another kind. */
  readonly otherNames?: (config: Readonly<C>) => Readonly<Partial<Record<Name, string>>>;
  /** A tensor of which the file has each entry of the first dimension as one of its own: their names. */
  readonly stacks?: Readonly<Partial<Record<Name, (i: number) => string>>>;
  /** Shapes in the file, where they are not those of the parameters: a kernel's dimensions. */
  readonly fileShapes?: (
    size: AdapterSize<C>,
  ) => Readonly<Partial<Record<Name, readonly number[]>>>;
  /** A tensor that the file has in another form, from what it has behind the module's name. */
  readonly unpack?: (
    name: Name,
    config: Readonly<Record<string, unknown>>,
    stored: (key: string) => RawTensor | undefined,
  ) => RawTensor | undefined;
  /** Frozen tensors that cannot be drawn again: a folder without them is refused. */
  readonly required?: readonly Name[];
  /** Names of integer tables; what layers of one kind share is found under the kind's name too. */
  readonly indexes?: Readonly<Record<string, string>>;
  /** What layers share under the name of their kind, beside `sharedName`: integer tables, and `constants`. */
  readonly kind?: (module: string) => string;
  /** Integer tensors that follow from a layer's size and that PEFT wants in the file: by name, before that of the kind. */
  readonly constants?: (size: AdapterSize<C>) => Readonly<Record<string, readonly number[]>>;
  /** Shapes of integer tables in the file; default one dimension. */
  readonly indexShapes?: (size: AdapterSize<C>) => Readonly<Record<string, readonly number[]>>;
  /**
   * What a folder may leave out because a seed in its config, the base weight or the stored tensors
   * give it: frozen tensors and integer tables by name, for this layer. See {@link TorchRandom}.
   */
  readonly regenerate?: (
    config: Readonly<Record<string, unknown>>,
    make: AdapterMaker<C, Name>,
    largest: LayerSize,
    stored: Readonly<Record<string, Tensor>>,
    place: ModulePlace,
  ) => Regenerated<Name>;
  /** Tensors that all layers share, by their name behind `base_model.`: each layer takes their leading part. */
  readonly shared?: Readonly<Partial<Record<Name, string>>>;
  /**
   * Where layers share in groups: the name for this module, from the tensor names in the file, and from the modules in
   * the order of the model, where that is known.
   */
  readonly sharedName?: (
    name: Name,
    module: string,
    keys: readonly string[],
    modules?: readonly string[],
  ) => string | undefined;
  /**
   * The adapter's settings from `adapter_config.json`, for the module of that name. Where the config
   * leaves a form open, the shapes of the stored tensors tell it.
   */
  readonly read: (
    config: Readonly<Record<string, unknown>>,
    module: string,
    shapeOf: (name: Name) => readonly number[] | undefined,
    layer: StoredLayer,
  ) => Partial<C>;
  /**
   * PEFT goes by the names in `target_modules` for more than finding modules: they have to be the modules' whole names.
   */
  readonly wholeTargets?: true;
  /** PEFT takes the folder for embeddings alone. */
  readonly embeddings?: true;
  /** What PEFT computes otherwise from a folder of these settings, or needs for it, in words: a writer passes it on. */
  readonly caveat?: (config: Readonly<C>) => string | undefined;
  /**
   * Fields of the config that modules may each have their own value of, and the fields with the patterns that say so: `r`
   * and `rank_pattern`. Any other field has to be the same for all of them.
   */
  readonly patterns?: Readonly<Record<string, string>>;
  /**
   * Back to the fields of `adapter_config.json`: the settings of one module, the modules, the settings of each, and the
   * size of the one.
   */
  readonly write: (
    config: Readonly<C>,
    modules: readonly string[],
    configs: readonly Readonly<C>[],
    size: LayerSize,
  ) => Readonly<Record<string, unknown>>;
}
