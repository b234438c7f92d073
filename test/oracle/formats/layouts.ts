/** A layer of a checkpoint by its layout: tensors by the suffix of their name, and the config. */
import { type AwqTensors, decodeAwq } from './awq.js';
import { decodeBitsandbytes } from './bitsandbytes.js';
import { decodeIntegers, type IntegerConfig, type IntegerTensors } from './compressed-tensors.js';
import { decodeFp8 } from './fp8.js';
import { decodeGptq, type GptqConfig, type GptqTensors } from './gptq.js';
import { decodeHqq, type HqqConfig, type HqqTensors } from './hqq.js';
import { decodeMx } from './mx.js';
import { decodeNvfp4 } from './nvfp4.js';
import { type DiskTensor, numbersOf } from './tensors.js';

export type Layer = Readonly<Record<string, DiskTensor>>;
type Config = Readonly<Record<string, unknown>>;

/** Tensors whose name begins with `prefix`, by the rest of it. */
export function layerOf(tensors: ReadonlyMap<string, DiskTensor>, prefix: string): Layer {
  const own = [...tensors].filter(([name]) => name.startsWith(prefix));
  return Object.fromEntries(own.map(([name, tensor]) => [name.slice(prefix.length), tensor]));
}

function part(layer: Layer, name: string): DiskTensor {
  const found = layer[name];
  if (found === undefined) throw new Error(`oracle: no ${name}, only ${Object.keys(layer)}`);
  return found;
}

const as = <T>(layer: Layer): T => layer as unknown as T;

type Weights = IntegerConfig & { readonly block_structure?: readonly number[] | null };

/** `weights` of the first config group of compressed-tensors. */
function weightsOf({ config_groups }: Config): Weights {
  const [group] = Object.values(config_groups as Record<string, { weights: Weights }>);
  if (group === undefined) throw new Error('oracle: no config group');
  return group.weights;
}

type Decode = (layer: Layer, config: Config) => ArrayLike<number>;

const integers: Decode = (layer, config) =>
  decodeIntegers(as<IntegerTensors>(layer), weightsOf(config));

const DECODERS: Readonly<Record<string, Decode>> = {
  bitsandbytes: decodeBitsandbytes,
  gptq: (layer, config) => decodeGptq(as<GptqTensors>(layer), config as unknown as GptqConfig),
  awq: (layer, { version, group_size }) =>
    decodeAwq(as<AwqTensors>(layer), {
      version: version as string,
      group_size: group_size as number,
    }),
  fp8: (layer, { weight_block_size }) =>
    decodeFp8(
      part(layer, 'weight'),
      part(layer, 'weight_scale_inv'),
      weight_block_size as number[],
    ),
  // The layer's own tensors decide: a layer may differ from the config.
  hqq: (layer) => {
    const value = (name: string): number => numbersOf(part(layer, name))[0] as number;
    const [N, K] = numbersOf(part(layer, 'shape')) as unknown as [number, number];
    const config: HqqConfig = {
      nbits: value('nbits'),
      group_size: value('group_size'),
      axis: value('axis'),
      shape: [N, K],
    };
    return decodeHqq(as<HqqTensors>(layer), config);
  },
  modelopt: (layer) =>
    decodeNvfp4(
      'modelopt',
      part(layer, 'weight'),
      part(layer, 'weight_scale'),
      part(layer, 'weight_scale_2'),
    ),
  mxfp4: (layer) => decodeMx(part(layer, '_blocks'), part(layer, '_scales'), 'e2m1'),
  'pack-quantized': integers,
  'int-quantized': integers,
  'float-quantized': (layer, config) =>
    decodeFp8(
      part(layer, 'weight'),
      part(layer, 'weight_scale'),
      weightsOf(config).block_structure ?? undefined,
    ),
  'nvfp4-pack-quantized': (layer) =>
    decodeNvfp4(
      'compressed-tensors',
      part(layer, 'weight_packed'),
      part(layer, 'weight_scale'),
      part(layer, 'weight_global_scale'),
    ),
  'mxfp4-pack-quantized': (layer) =>
    decodeMx(part(layer, 'weight_packed'), part(layer, 'weight_scale'), 'e2m1'),
};

/** Decodes a layer as its `quantization_config` says. */
export function decodeLayer(layer: Layer, config: Config): ArrayLike<number> {
  const method = config.quant_method === 'compressed-tensors' ? config.format : config.quant_method;
  const decode = DECODERS[method as string];
  if (decode === undefined) throw new Error(`oracle: no layout ${method}`);
  return decode(layer, config);
}
