/** `quantization_config` of a folder, in the form in which the library of its layout writes it. */

import type { LayoutName } from '../../checkpoint/codecs/registry.js';
import { isFp8, type PlanarFormat } from '../../checkpoint/quantize/formats.js';
import { planOf } from '../../checkpoint/quantize/options.js';
import { version } from '../../environment/version.js';
import { planarOptions, type QuantizeSettings } from './settings.js';

type Section = Readonly<Record<string, unknown>>;

/** The sections of a folder's files. */
export interface QuantizationFiles {
  /** `quantization_config` of config.json; undefined keeps what is there. */
  readonly config: Section | undefined;
  /** Files of their own that some libraries read. */
  readonly others: Readonly<Record<string, Section>>;
}

/** transformers does not support blockwise int8. */
function bitsandbytesConfig({ format, doubleQuant, skip }: QuantizeSettings): Section | undefined {
  if (format === 'int8') return undefined;
  const fourBits = format !== 'int8-rowwise';
  const shared = {
    quant_method: 'bitsandbytes',
    _load_in_4bit: fourBits,
    _load_in_8bit: !fourBits,
    load_in_4bit: fourBits,
    load_in_8bit: !fourBits,
    llm_int8_skip_modules: skip,
  };
  if (!fourBits) return { ...shared, llm_int8_threshold: 6, llm_int8_has_fp16_weight: false };
  return {
    ...shared,
    bnb_4bit_quant_type: format,
    bnb_4bit_use_double_quant: doubleQuant,
    bnb_4bit_compute_dtype: 'bfloat16',
    bnb_4bit_quant_storage: 'uint8',
  };
}

/** What a layer's numbers look like, for the configs that say it. */
interface Numbers {
  readonly format: PlanarFormat;
  readonly bits: number;
  readonly type: 'int' | 'float';
  readonly strategy: string;
  readonly groupSize: number | null;
  readonly symmetric: boolean;
  /** Modules with matrices that stay as they are. */
  readonly left: readonly string[];
}

/** Activations that are quantised for every token, as kernels of 8 bits take them. */
const perToken = (type: 'int' | 'float') => ({
  num_bits: 8,
  type,
  symmetric: true,
  strategy: 'token',
  dynamic: true,
  group_size: null,
});

function compressedTensors(format: string, numbers: Numbers, activations: object | null): Section {
  const { bits, type, symmetric, strategy, groupSize, left } = numbers;
  const weights = {
    num_bits: bits,
    type,
    symmetric,
    strategy,
    group_size: groupSize,
    dynamic: false,
    block_structure: null,
    actorder: null,
    observer: 'minmax',
    observer_kwargs: {},
  };
  return {
    quant_method: 'compressed-tensors',
    format,
    quantization_status: 'compressed',
    global_compression_ratio: null,
    // A tied head has no tensor of its own, and yet is a module.
    ignore: [...new Set(['lm_head', ...left])],
    kv_cache_scheme: null,
    config_groups: {
      group_0: {
        targets: ['Linear'],
        weights,
        input_activations: activations,
        output_activations: null,
      },
    },
  };
}

function fp8Config(numbers: Numbers): Section {
  const { format, strategy, left } = numbers;
  if (format.startsWith('mxfp8')) return compressedTensors('mxfp8-quantized', numbers, null);
  const element = format.endsWith('e5m2') ? 'e5m2' : 'e4m3';
  if (strategy !== 'block' && element === 'e4m3') {
    return compressedTensors('float-quantized', numbers, perToken('float'));
  }
  return {
    quant_method: 'fp8',
    fmt: element,
    activation_scheme: 'dynamic',
    ...(strategy === 'block' ? { weight_block_size: [128, 128] } : {}),
    modules_to_not_convert: left,
  };
}

const escaped = (name: string): string => name.replace(/[\\^$.|?*+()[\]{}]/g, '\\$&');

function gptqConfig({ bits, groupSize, symmetric, left }: Numbers): Section {
  // Readers quantise the linear layers of blocks alone.
  const blocks = left.filter((name) => /\.\d+\./.test(name));
  return {
    quant_method: 'gptq',
    bits,
    group_size: groupSize ?? -1,
    desc_act: false,
    sym: symmetric,
    lm_head: false,
    checkpoint_format: symmetric ? 'gptq' : 'gptq_v2',
    ...(blocks.length === 0
      ? {}
      : { dynamic: Object.fromEntries(blocks.map((name) => [`-:^${escaped(name)}$`, {}])) }),
    meta: { quantizer: [`lowrank:${version()}`] },
  };
}

const kProducer = { name: 'lowrank' };

function modeloptConfig(left: readonly string[]): Section {
  const numbers = { dynamic: false, num_bits: 4, type: 'float', group_size: 16 };
  return {
    quant_method: 'modelopt',
    quant_algo: 'NVFP4',
    group_size: 16,
    ignore: left,
    producer: { ...kProducer, version: version() },
    config_groups: { group_0: { weights: numbers, targets: ['Linear'] } },
  };
}

function hqqConfig({ bits, groupSize, left }: Numbers): Section {
  const weights = {
    nbits: bits,
    channel_wise: true,
    group_size: groupSize,
    optimize: true,
    round_zero: false,
    axis: 1,
    view_as_float: false,
  };
  return {
    quant_method: 'hqq',
    quant_config: {
      weight_quant_params: weights,
      scale_quant_params: null,
      zero_quant_params: null,
      offload_meta: false,
    },
    skip_modules: left,
  };
}

function planarConfig(layout: LayoutName, numbers: Numbers): Section | undefined {
  const { bits, groupSize, left } = numbers;
  switch (layout) {
    case 'fp8':
      return fp8Config(numbers);
    case 'int-quantized':
      return compressedTensors(layout, numbers, perToken('int'));
    case 'pack-quantized':
    case 'mxfp4-pack-quantized':
    case 'nvfp4-pack-quantized':
      return compressedTensors(layout, numbers, null);
    case 'modelopt-nvfp4':
      return modeloptConfig(left);
    case 'gptq':
      return gptqConfig(numbers);
    case 'awq':
      return {
        quant_method: 'awq',
        bits,
        group_size: groupSize ?? -1,
        zero_point: true,
        version: 'gemm',
        modules_to_not_convert: left,
      };
    case 'hqq':
      return hqqConfig(numbers);
    default:
      return undefined;
  }
}

/** @param left modules with matrices that stay as they are */
export function quantizationFiles(
  op: string,
  settings: QuantizeSettings,
  left: readonly string[],
): QuantizationFiles {
  const { layout } = settings;
  if (layout === 'bitsandbytes' || layout === 'llm-int8') {
    return { config: bitsandbytesConfig(settings), others: {} };
  }
  const plan = planOf(op, planarOptions(settings));
  const { format, symmetric } = plan;
  const integers = format.startsWith('int');
  const strategy = isFp8(format) || integers ? plan.strategy : 'group';
  const config = planarConfig(layout, {
    format,
    bits: integers ? Number(format.slice(3)) : format.includes('fp4') ? 4 : 8,
    type: integers ? 'int' : 'float',
    strategy: format === 'nvfp4' ? 'tensor_group' : strategy,
    groupSize: strategy === 'group' ? plan.groupSize : null,
    symmetric: integers ? symmetric : true,
    left,
  });
  return { config, others: otherFiles(layout, config, left) };
}

function otherFiles(
  layout: LayoutName,
  config: Section | undefined,
  left: readonly string[],
): QuantizationFiles['others'] {
  if (layout === 'gptq' && config !== undefined) {
    const { quant_method: _, ...own } = config;
    return { 'quantize_config.json': own };
  }
  if (layout !== 'modelopt-nvfp4') return {};
  const quantization = {
    quant_algo: 'NVFP4',
    kv_cache_quant_algo: null,
    group_size: 16,
    exclude_modules: left,
  };
  return {
    'hf_quant_config.json': { producer: { ...kProducer, version: version() }, quantization },
  };
}
