/** How a method's adapters stand in PEFT's folders. */

import type { RawTensor } from '../../checkpoint/raw-tensor.js';
import type { Tensor } from '../../core/tensor.js';
import type { AdapterMaker, AdapterSize, LayerSize } from './maker.js';

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
