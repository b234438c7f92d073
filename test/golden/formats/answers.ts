/** What the oracle of formats answers to the rules of each case of `formats`. */
import { encodeAll, type OracleDType, roundTo } from '../../oracle/dtypes.js';
import {
  type AwqConfig,
  type AwqTensors,
  awqCodes,
  awqZeros,
  decodeAwq,
} from '../../oracle/formats/awq.js';
import { transposeBytes } from '../../oracle/formats/bits.js';
import {
  encodeIntegers,
  type IntegerConfig,
  type IntegerTensors,
} from '../../oracle/formats/compressed-tensors.js';
import * as fp8 from '../../oracle/formats/fp8.js';
import { decodeGguf } from '../../oracle/formats/gguf.js';
import { encodeGguf } from '../../oracle/formats/gguf-encode.js';
import {
  decodeGptq,
  type GptqConfig,
  type GptqTensors,
  gptqCodes,
  gptqZeros,
} from '../../oracle/formats/gptq.js';
import { decodeHqq, type HqqConfig, type HqqTensors } from '../../oracle/formats/hqq.js';
import { decodeLayer, layerOf } from '../../oracle/formats/layouts.js';
import {
  decodeMinifloats,
  encodeMinifloat,
  levelsOf,
  type Minifloat,
} from '../../oracle/formats/minifloat.js';
import * as mx from '../../oracle/formats/mx.js';
import * as nvfp4 from '../../oracle/formats/nvfp4.js';
import { dim } from '../../oracle/formats/tensors.js';
import { loraBackward64, loraForward64, matrix } from '../../oracle.js';
import type { GoldenCase, GoldenTensor } from '../case-file.js';
import type { Mine } from '../rules.js';

/** By the rule's tensor, with `, quantised` after it for that rule. */
export type Answers = Readonly<Record<string, () => Mine>>;

const DTYPES: Readonly<Record<string, OracleDType>> = { F32: 'f32', BF16: 'bf16', F16: 'f16' };
const dtypeOf = (tensor: GoldenTensor): OracleDType => DTYPES[tensor.dtype] as OracleDType;

/** Bytes of numbers that `dtype` holds. */
function rawOf(dtype: OracleDType, values: ArrayLike<number>): Uint8Array {
  const data = dtype === 'f32' ? Float32Array.from(values) : encodeAll(dtype, values);
  return new Uint8Array(data.buffer);
}

/** Tensors of a case by the rest of their name. */
const partsOf = <T>(golden: GoldenCase, prefix: string): T =>
  layerOf(golden.tensors, prefix) as unknown as T;

function castAnswers(golden: GoldenCase, element: Minifloat): Answers {
  const encoded = (name: string, saturate: boolean) => () =>
    Uint8Array.from(golden.numbers(name), (x) => encodeMinifloat(element, x, saturate));
  return {
    'out.decoded': () => decodeMinifloats(element, golden.tensor('in.codes').bytes),
    'out.codes_saturated': encoded('in.x', true),
    'out.codes': encoded('in.x', false),
    'out.codes_bf16_saturated': encoded('in.x_bf16', true),
  };
}

function fp8Answers(golden: GoldenCase): Answers {
  const cast = /cast_(.*)/.exec(golden.id)?.[1];
  if (cast !== undefined) return castAnswers(golden, cast as Minifloat);
  const { params } = golden;
  const element = (params.element ?? 'e4m3fn') as Minifloat;
  const block = (params.block_structure ?? params.weight_block_size) as number[] | undefined;
  const [codes, scale] = [golden.tensor('out.codes'), golden.tensor('out.scale')];
  const w = golden.numbers('in.w');
  const K = dim(codes, 1);
  const dtype = dtypeOf(golden.tensor('in.w'));
  const tile = fp8.tileOf(codes, scale, block);
  return {
    'out.scale': () =>
      rawOf(
        dtypeOf(scale),
        params.scale_fmt === 'ue8m0'
          ? fp8.fp8PowerScales(w, K, tile)
          : fp8.fp8Scales(w, K, tile, dtype),
      ),
    'out.codes': () => fp8.encodeFp8(w, K, tile, golden.numbers('out.scale'), element, dtype),
    'out.dequant': () => fp8.decodeFp8(codes, scale, block, element),
  };
}

/** By what follows `mxfp8_` or `mxfp6_` in the name of a case. */
const MX_ELEMENTS: Readonly<Record<string, Minifloat>> = {
  e4m3: 'e4m3fn',
  e5m2: 'e5m2',
  e3m2: 'e3m2',
  e2m3: 'e2m3',
};

function mxAnswers(golden: GoldenCase): Answers {
  const name = golden.id.split('/').at(-1) as string;
  if (name === 'gptoss_decode') {
    const decoded = (scales: string) => () =>
      mx.decodeMx(golden.tensor('in.blocks'), golden.tensor(scales), 'e2m1');
    return {
      'out.dequant': decoded('in.scales'),
      'out.dequant_f32': decoded('in.scales'),
      'out.dequant_extreme': decoded('in.scales_extreme'),
    };
  }
  const w = golden.numbers('in.w');
  const K = dim(golden.tensor('in.w'), 1);
  if (name === 'nonfinite') {
    const scales = mx.mxScales('FLOOR', w, K, 'e2m1');
    const tensor = { ...golden.tensor('out.mxfp4_scale_e8m0'), bytes: scales };
    const codes = { ...tensor, bytes: mx.encodeMx(w, scales, 'e2m1') };
    return {
      'out.mxfp4_scale_e8m0': () => scales,
      'out.mxfp4_dequant': () => mx.decodeMx(codes, tensor, 'e2m1'),
    };
  }
  const [, format = ''] = /^mx(?:fp\d_)?([a-z0-9]*)/.exec(name) ?? [];
  const element = MX_ELEMENTS[format] ?? 'e2m1';
  const rule = (golden.params.scale_rule ?? 'RCEIL') as mx.ScaleRule;
  const [codes, scales] = [golden.tensor('out.codes'), golden.tensor('out.scale_e8m0')];
  return {
    'out.scale_e8m0': () => mx.mxScales(rule, w, K, element),
    'out.codes': () => mx.encodeMx(w, scales.bytes, element),
    'out.dequant': () => mx.decodeMx(codes, scales, element),
  };
}

const NVFP4_NAMES: Readonly<Record<nvfp4.Peer, readonly [string, string, string]>> = {
  torchao: ['out.codes', 'out.scale_e4m3', 'out.global_scale'],
  modelopt: ['out.weight', 'out.weight_scale', 'out.weight_scale_2'],
  'compressed-tensors': ['out.weight_packed', 'out.weight_scale', 'out.weight_global_scale'],
};

function nvfp4Answers(golden: GoldenCase): Answers {
  const peer = (Object.keys(NVFP4_NAMES) as nvfp4.Peer[]).find((known) =>
    golden.id.includes(`/${known.replace('-', '_')}`),
  ) as nvfp4.Peer;
  const [codes, scale, factor] = NVFP4_NAMES[peer];
  const w = golden.numbers('in.w');
  const g = golden.has(factor) ? golden.tensor(factor) : undefined;
  return {
    [factor]: () => rawOf('f32', [nvfp4.nvfp4Factor(peer, w)]),
    [scale]: () => nvfp4.nvfp4Scales(peer, w, g),
    [codes]: () => nvfp4.encodeNvfp4(peer, w, golden.tensor(scale).bytes, g),
    'out.dequant': () => nvfp4.decodeNvfp4(peer, golden.tensor(codes), golden.tensor(scale), g),
  };
}

function ggufAnswers(golden: GoldenCase): Answers {
  const type = golden.params.type as string;
  const decoded = (name: string) => () => decodeGguf(type, golden.tensor(name).bytes);
  return {
    'out.dequant': decoded('out.bytes'),
    'out.random_dequant': decoded('in.random_bytes'),
    'out.bytes': () => encodeGguf(type, golden.numbers('in.w')),
    // The oracle does not search: what the peer found has to be as good as the rule says.
    'out.bytes, quantised': decoded('out.bytes'),
  };
}

function gptqAnswers(golden: GoldenCase): Answers {
  const tensors = partsOf<GptqTensors>(golden, 'in.');
  const config = golden.params as unknown as GptqConfig;
  const zeros = () => gptqZeros(tensors, config);
  return {
    'out.dequant': () => decodeGptq(tensors, config),
    'out.codes': () => gptqCodes(tensors, config),
    'out.zeros': () => transposeBytes(zeros(), dim(tensors.scales, 0), dim(tensors.scales, 1)),
  };
}

function awqAnswers(golden: GoldenCase): Answers {
  const tensors = partsOf<AwqTensors>(golden, 'in.');
  const config = golden.params as unknown as AwqConfig;
  return {
    'out.dequant': () => decodeAwq(tensors, config),
    'out.codes': () => awqCodes(tensors, config),
    'out.zeros': () => awqZeros(tensors, config),
  };
}

function hqqAnswers(golden: GoldenCase): Answers {
  const { N, K, ...config } = golden.params as unknown as HqqConfig & { N: number; K: number };
  const decoded = () => decodeHqq(partsOf<HqqTensors>(golden, 'in.'), { ...config, shape: [N, K] });
  return { 'out.dequant': decoded, 'out.dequant, quantised': decoded };
}

function integerAnswers(golden: GoldenCase): Answers {
  const layer = layerOf(golden.tensors, 'out.');
  const tensors = layer as unknown as IntegerTensors;
  const config = golden.params as unknown as IntegerConfig & { K: number };
  const dtype = dtypeOf(golden.tensor('in.w'));
  return {
    'out.dequant': () =>
      decodeLayer(layer, {
        quant_method: 'compressed-tensors',
        format: golden.has('out.weight') ? 'int-quantized' : 'pack-quantized',
        config_groups: { group_0: { weights: config } },
      }),
    'out.codes': () => encodeIntegers(golden.numbers('in.w'), config.K, tensors, config, dtype),
  };
}

/** The base of a `lora` case as a layer of a checkpoint. */
function baseOf(golden: GoldenCase): ArrayLike<number> {
  const [layout, detail] = (golden.params.format as string).split(':') as [string, string?];
  const layer = layerOf(golden.tensors, 'base.lin.');
  const { N, K } = golden.params as { N: number; K: number };
  const bits = Number(detail);
  switch (layout) {
    case 'gguf':
      return decodeGguf(detail as string, golden.tensor('base.lin.bytes').bytes);
    case 'gptq':
      return decodeLayer(layer, {
        quant_method: layout,
        bits,
        checkpoint_format: golden.notes.includes('GPTQ version 2') ? 'gptq_v2' : 'gptq',
      });
    case 'awq':
      return decodeLayer(layer, {
        quant_method: layout,
        version: 'gemm',
        group_size: K / dim(golden.tensor('base.lin.scales'), 0),
      });
    case 'fp8':
      return decodeLayer(layer, { quant_method: layout, weight_block_size: [128, 128] });
    case 'mxfp4': {
      const packed = { weight_packed: layer.codes, weight_scale: layer.scale_e8m0 };
      const config = { quant_method: 'compressed-tensors', format: 'mxfp4-pack-quantized' };
      return decodeLayer(packed as typeof layer, config);
    }
    case 'nvfp4':
      return decodeLayer(layer, { quant_method: 'modelopt' });
    case 'hqq': {
      const group_size = (N * K) / dim(golden.tensor('base.lin.scale'), 0);
      const config: HqqConfig = { nbits: bits, group_size, axis: 1, shape: [N, K] };
      return decodeHqq(layer as unknown as HqqTensors, config);
    }
    default:
      throw new Error(`${golden.id}: no layout ${layout}`);
  }
}

function loraAnswers(golden: GoldenCase): Answers {
  const { M, N, K, r, scaling, dtype } = golden.params as Record<string, number>;
  const of = (rows: unknown, cols: unknown, name: string) =>
    matrix(rows as number, cols as number, golden.numbers(name));
  const decoded = baseOf(golden);
  const rounded = Array.from(decoded, (v) => roundTo(DTYPES[String(dtype)] as OracleDType, v));
  const inputs = {
    x: of(M, K, 'in.x'),
    w: matrix(N as number, K as number, rounded),
    bias: golden.has('base.lin.bias') ? of(1, N, 'base.lin.bias') : undefined,
    loraA: of(r, K, 'adapter.lin.lora_A.weight'),
    loraB: of(N, r, 'adapter.lin.lora_B.weight'),
    scaling: scaling as number,
  };
  const gradients = () => loraBackward64(inputs, of(M, N, 'in.grad_out'));
  return {
    'base_dequant.lin.weight': () => decoded,
    'out.y': () => loraForward64(inputs).value.data,
    'grad.x': () => gradients().dx.value.data,
    'grad.lin.lora_A.weight': () => gradients().dLoraA.value.data,
    'grad.lin.lora_B.weight': () => gradients().dLoraB.value.data,
  };
}

function folderAnswers(golden: GoldenCase): Answers {
  const { config, tensors } = golden.checkpoint();
  const quantisation = config.quantization_config as Record<string, unknown>;
  // A layer's tensors, or those of experts, whose names go on without a dot.
  const prefixOf = (name: string): string => name.replace(/^out\./, '').replace(/weight$/, '');
  return Object.fromEntries(
    golden.rules.map(({ tensor }) => [
      tensor,
      () => decodeLayer(layerOf(tensors, prefixOf(tensor)), quantisation),
    ]),
  );
}

/** By the group of a case. */
export const ANSWERS: Readonly<Record<string, (golden: GoldenCase) => Answers>> = {
  fp8: fp8Answers,
  mx: mxAnswers,
  nvfp4: nvfp4Answers,
  gguf: ggufAnswers,
  gptq: gptqAnswers,
  awq: awqAnswers,
  hqq: hqqAnswers,
  compressed_tensors: integerAnswers,
  lora: loraAnswers,
  folder: folderAnswers,
};

/** Levels of the codes of a cast, for which any NaN will do. */
export const codebookOf = (golden: GoldenCase): Float32Array =>
  levelsOf(golden.id.endsWith('e5m2') ? 'e5m2' : 'e4m3fn');
