/** The layout of a method's adapters in PEFT's folders. */

import type { RawTensor } from '../../checkpoint/raw-tensor.js';
import type { Tensor } from '../../core/tensor.js';
import type { AdapterMaker, AdapterSize, LayerSize } from './maker.js';

/** The position of a layer among those of a folder. */
export interface ModulePlace {
  readonly module: string;
  /** In the order of the model, if known. */
  readonly layers: ReadonlyMap<string, LayerSize> | undefined;
}

/** Result of {@link PeftForm.regenerate}. */
export interface Regenerated<Name extends string> {
  readonly tensors?: Readonly<Partial<Record<Name, Float32Array>>>;
  readonly indexes?: Readonly<Record<string, Int32Array>>;
}

/** What {@link PeftForm.read} may use besides the config: a layer's sizes and its tensors in the file. */
export interface StoredLayer {
  /** A tensor whose name follows the module's name. */
  readonly stored: (key: string) => RawTensor | undefined;
  readonly inFeatures: number;
  readonly outFeatures: number;
}

/** Prefix of PEFT's tensor names, before the module's. */
export const kPrefix = 'base_model.model.';

/** How PEFT names and describes an adapter. */
export interface PeftForm<C, Name extends string> {
  /** `peft_type` */
  readonly type: string;
  /** Condition on the config that selects this method, if several methods share the type. */
  readonly when?: (config: Readonly<Record<string, unknown>>, module: string) => boolean;
  /** Fields of the config that this method supports, but that are rejected for others: `lora_bias`. */
  readonly features?: readonly string[];
  /** Numbers of the config that this method does not support: values other than 0 are rejected. */
  readonly zeros?: readonly string[];
  /** Tensor name after the module's name, e.g. `lora_A.weight`; in the layout of the parameter. */
  readonly tensors: Readonly<Partial<Record<Name, string>>>;
  /** Names that replace those of `tensors` with some settings: for a layer of another kind. */
  readonly otherNames?: (config: Readonly<C>) => Readonly<Partial<Record<Name, string>>>;
  /** A tensor that the file stores as one tensor per entry of the first dimension: the names of these. */
  readonly stacks?: Readonly<Partial<Record<Name, (i: number) => string>>>;
  /** Shapes in the file, if they differ from those of the parameters: with a kernel's dimensions. */
  readonly fileShapes?: (
    size: AdapterSize<C>,
  ) => Readonly<Partial<Record<Name, readonly number[]>>>;
  /** Converts a tensor that the file stores in another form, from the tensors under the module's name. */
  readonly unpack?: (
    name: Name,
    config: Readonly<Record<string, unknown>>,
    stored: (key: string) => RawTensor | undefined,
  ) => RawTensor | undefined;
  /** Frozen tensors that cannot be drawn again: a folder without them is rejected. */
  readonly required?: readonly Name[];
  /** Names of integer tables. Those that layers of one kind share may also be under the kind's name. */
  readonly indexes?: Readonly<Record<string, string>>;
  /** Prefix of what layers of one kind share, besides `sharedName`: integer tables, and `constants`. */
  readonly kind?: (module: string) => string;
  /**
   * Integer tensors that follow from a layer's size and that PEFT needs in the file: by name,
   * without the kind's prefix.
   */
  readonly constants?: (size: AdapterSize<C>) => Readonly<Record<string, readonly number[]>>;
  /** Shapes of integer tables in the file; default one dimension. */
  readonly indexShapes?: (size: AdapterSize<C>) => Readonly<Record<string, readonly number[]>>;
  /**
   * Frozen tensors and integer tables that a folder may leave out, because a seed in its config,
   * the base weight or the stored tensors determine them: by name, for this layer. See
   * {@link TorchRandom}.
   */
  readonly regenerate?: (
    config: Readonly<Record<string, unknown>>,
    make: AdapterMaker<C, Name>,
    largest: LayerSize,
    stored: Readonly<Record<string, Tensor>>,
    place: ModulePlace,
  ) => Regenerated<Name>;
  /** Tensors that all layers share, by their name after `base_model.`. Each layer uses the leading part. */
  readonly shared?: Readonly<Partial<Record<Name, string>>>;
  /**
   * For tensors shared by groups of layers: the name for this module, from the tensor names in the file, and from the
   * modules in the order of the model, if known.
   */
  readonly sharedName?: (
    name: Name,
    module: string,
    keys: readonly string[],
    modules?: readonly string[],
  ) => string | undefined;
  /**
   * The adapter's settings from `adapter_config.json`, for the module of that name. If the config
   * leaves a form open, the shapes of the stored tensors decide.
   */
  readonly read: (
    config: Readonly<Record<string, unknown>>,
    module: string,
    shapeOf: (name: Name) => readonly number[] | undefined,
    layer: StoredLayer,
  ) => Partial<C>;
  /**
   * PEFT uses the names in `target_modules` for more than finding modules, so they must be full module names.
   */
  readonly wholeTargets?: true;
  /** PEFT reads the folder for embeddings only. */
  readonly embeddings?: true;
  /**
   * What PEFT computes differently from a folder with these settings, or needs for it, in words.
   * Writers pass it on.
   */
  readonly caveat?: (config: Readonly<C>) => string | undefined;
  /**
   * Fields of the config that may differ between modules, and the fields with the patterns that say so: `r` and
   * `rank_pattern`. Any other field must be the same for all modules.
   */
  readonly patterns?: Readonly<Record<string, string>>;
  /**
   * Converts settings to the fields of `adapter_config.json`: the settings of one module, the modules, the settings of
   * each, and the size of the one.
   */
  readonly write: (
    config: Readonly<C>,
    modules: readonly string[],
    configs: readonly Readonly<C>[],
    size: LayerSize,
  ) => Readonly<Record<string, unknown>>;
}
