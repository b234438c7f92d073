/** The list of layouts, and which one a group of tensors has. */
import { anyOf, fail } from '../../core/errors.js';
import { printable } from '../../core/printable.js';
import { type AwqLayout, awqCodec } from './awq.js';
import {
  type BitsandbytesLayout,
  bitsandbytesCodec,
  type LlmInt8Layout,
  llmInt8Codec,
} from './bitsandbytes.js';
import type { Codec } from './codec.js';
import {
  type IntegersLayout,
  integersCodec,
  type PackedIntegersLayout,
  packedIntegersCodec,
} from './compressed-integers.js';
import { FolderConfig } from './config.js';
import { type Fp8Layout, fp8Codec } from './fp8.js';
import { type GptqLayout, gptqCodec } from './gptq.js';
import { type HqqLayout, hqqCodec } from './hqq.js';
import type { LayerTensors, QuantizationConfig, TensorInfo } from './layer-tensors.js';
import {
  type GptOssLayout,
  gptOssCodec,
  type PackedMxfp4Layout,
  packedMxfp4Codec,
} from './mxfp4.js';
import {
  type ModeloptNvfp4Layout,
  modeloptNvfp4Codec,
  type PackedNvfp4Layout,
  packedNvfp4Codec,
} from './nvfp4.js';
import { refuseUnreadable } from './refused.js';

/** What a layer has beside its weight, by the name of its layout. */
export type QuantizedLayout =
  | AwqLayout
  | BitsandbytesLayout
  | Fp8Layout
  | GptOssLayout
  | GptqLayout
  | HqqLayout
  | IntegersLayout
  | LlmInt8Layout
  | ModeloptNvfp4Layout
  | PackedIntegersLayout
  | PackedMxfp4Layout
  | PackedNvfp4Layout;

/** The name of a layout. */
export type LayoutName = QuantizedLayout['name'];

type AnyCodec = { readonly [Name in LayoutName]: Codec<Extract<QuantizedLayout, { name: Name }>> };

const kCodecs: AnyCodec = {
  bitsandbytes: bitsandbytesCodec,
  'llm-int8': llmInt8Codec,
  gptq: gptqCodec,
  awq: awqCodec,
  hqq: hqqCodec,
  fp8: fp8Codec,
  'pack-quantized': packedIntegersCodec,
  'int-quantized': integersCodec,
  'nvfp4-pack-quantized': packedNvfp4Codec,
  'mxfp4-pack-quantized': packedMxfp4Codec,
  'modelopt-nvfp4': modeloptNvfp4Codec,
  mxfp4: gptOssCodec,
};

/** A codec of one layout or another: its `read` gives what its `write` takes. */
type SomeCodec = Codec<QuantizedLayout>;

/** The names of all layouts. */
export const layoutNames = Object.keys(kCodecs) as readonly LayoutName[];

const codecs = layoutNames.map((name) => codecOf(name));

/** The codec of a name. Its `write` takes layouts of that name alone. */
export function codecOf(name: LayoutName): SomeCodec {
  return kCodecs[name] as unknown as SomeCodec;
}

const suffixes: ReadonlySet<string> = new Set(codecs.flatMap((codec) => codec.suffixes));
const keys: ReadonlySet<string> = new Set(codecs.flatMap((codec) => codec.keys));
/** Suffixes that follow a name without a dot. */
const joined = [...suffixes].filter((suffix) => suffix.startsWith('_'));

/** The name of a tensor of a layer. */
export function tensorName(layer: string, suffix: string): string {
  return layer === '' || suffix.startsWith('_') ? `${layer}${suffix}` : `${layer}.${suffix}`;
}

/** The layer and the suffix of a tensor's name, if the suffix is one that layouts have. */
function splitName(name: string): { layer: string; suffix: string } | undefined {
  const ending = joined.find((suffix) => name.endsWith(suffix));
  if (ending !== undefined) return { layer: name.slice(0, -ending.length), suffix: ending };
  if (suffixes.has(name)) return { layer: '', suffix: name };
  // The longest of them has two dots inside.
  let [found, at]: [string | undefined, number] = [undefined, name.length];
  for (let dots = 0; dots < 3; dots++) {
    at = name.lastIndexOf('.', at - 1);
    if (at < 0) break;
    const suffix = name.slice(at + 1);
    if (suffixes.has(suffix)) found = suffix;
  }
  return found === undefined
    ? undefined
    : { layer: name.slice(0, -found.length - 1), suffix: found };
}

const describe = (layer: LayerTensors<TensorInfo>): string =>
  Object.entries(layer)
    .map(([key, { dtype }]) => `${key} ${dtype}`)
    .join(', ');

/**
 * The codec of a layer, by its own tensors. The config decides where they fit two layouts, and confirms otherwise.
 * @param config of the layer
 * @throws ERR_FORMAT if the tensors are of no layout, or the config names another
 */
export function codecFor(
  op: string,
  name: string,
  tensors: LayerTensors<TensorInfo>,
  config: QuantizationConfig,
): SomeCodec {
  const what = name === '' ? 'the tensors' : `the tensors of ${printable(name)}`;
  const fitting = codecs.filter(
    (codec) => codec.keys.some((key) => Object.hasOwn(tensors, key)) && codec.matches(tensors),
  );
  const { quant_method, format } = config;
  const names = anyOf(fitting.map((codec) => codec.name));
  if (fitting.length === 0) {
    return fail('ERR_FORMAT', op, what, 'those of a known layout', describe(tensors));
  }
  if (quant_method === undefined || quant_method === null) {
    const [codec, ...more] = fitting;
    if (codec !== undefined && more.length === 0) return codec;
    const expected = `given, as ${describe(tensors)} may be ${names}`;
    return fail('ERR_FORMAT', op, 'quant_method in the config', expected, 'none');
  }
  const announced = fitting.find((codec) => codec.announcedBy(config));
  if (announced !== undefined) return announced;
  const said = [quant_method, ...(format === undefined ? [] : [format])];
  return fail(
    'ERR_FORMAT',
    op,
    'quant_method in the config',
    `that of ${names}, as ${what} (${describe(tensors)}) say`,
    said.map((value) => printable(String(value))).join(' with format '),
  );
}

/** The tensors of one quantised layer. */
export interface QuantizedLayerTensors<T extends TensorInfo> {
  readonly layout: LayoutName;
  /** By what follows the layer's name. */
  readonly tensors: LayerTensors<T>;
  /** What the config says of this layer. */
  readonly config: QuantizationConfig;
}

/** The tensors of a checkpoint, split into quantised layers and the rest. */
export interface QuantizedLayers<T extends TensorInfo> {
  /** By the layer's name: `model.layers.0.mlp.up_proj`. */
  readonly layers: Map<string, QuantizedLayerTensors<T>>;
  /** All other tensors by their names: biases, norms, embeddings, layers that were left as they are. */
  readonly rest: Map<string, T>;
}

function groupsOf<T>(tensors: ReadonlyMap<string, T>): Map<string, Record<string, T>> {
  const groups = new Map<string, Record<string, T>>();
  for (const [name, tensor] of tensors) {
    const place = splitName(name);
    if (place === undefined) continue;
    const group = groups.get(place.layer) ?? {};
    group[place.suffix] = tensor;
    groups.set(place.layer, group);
  }
  return groups;
}

/**
 * Groups tensors of a checkpoint into layers.
 * @throws LowrankError `ERR_FORMAT`, `ERR_UNSUPPORTED`
 */
export function layersOf<T extends TensorInfo>(
  op: string,
  tensors: ReadonlyMap<string, T>,
  config: QuantizationConfig,
): QuantizedLayers<T> {
  const folder = new FolderConfig(op, config);
  refuseUnreadable(op, folder.config);
  const rest = new Map(tensors);
  const layers = new Map<string, QuantizedLayerTensors<T>>();
  for (const [layer, group] of groupsOf(tensors)) {
    const own = Object.keys(group);
    if (!own.some((suffix) => keys.has(suffix))) continue;
    const place = layerConfig(op, folder, layer, own);
    layers.set(layer, {
      layout: codecFor(op, layer, group, place).name,
      tensors: group,
      config: place,
    });
    for (const suffix of own) rest.delete(tensorName(layer, suffix));
  }
  return { layers, rest };
}

/** What the config says of a layer with quantised tensors. @throws ERR_FORMAT if it says that the layer has none */
export function layerConfig(
  op: string,
  folder: FolderConfig,
  layer: string,
  suffixesOfLayer: readonly string[],
): QuantizationConfig {
  const skip = layer === '' ? undefined : folder.skipOf(layer);
  if (skip !== undefined) {
    const tensor = printable(tensorName(layer, suffixesOfLayer[0] ?? ''));
    fail('ERR_FORMAT', op, `${skip} of the config`, 'a module without quantised tensors', tensor);
  }
  const config = folder.of(layer);
  refuseUnreadable(op, config);
  return config;
}
