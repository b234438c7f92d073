/** Quantised layers of the golden data as readQuantizedLayer takes them, each with the values that its peer decodes. */
import type { LayerTensors, QuantizationConfig } from '../../../lib/index.js';
import { caseIds, type GoldenCase, type GoldenTensor, loadCase } from '../../golden/case-file.js';
import { layerOf } from '../../oracle/formats/layouts.js';
import { encodeMx } from '../../oracle/formats/mx.js';

export interface LayerCase {
  readonly id: string;
  readonly layout: string;
  readonly tensors: LayerTensors;
  readonly config: QuantizationConfig;
  /** f32 values [N, K]. */
  readonly expected: ArrayLike<number>;
}

type Disk = Readonly<Record<string, GoldenTensor>>;
type Raw = LayerTensors[string];

const raw = ({ dtype, shape, bytes }: GoldenTensor, as = dtype): Raw => ({
  dtype: as as Raw['dtype'],
  shape,
  data: bytes,
});

export const rawTensors = (disk: Disk): LayerTensors =>
  Object.fromEntries(Object.entries(disk).map(([key, tensor]) => [key, raw(tensor)]));

const number32 = (value: number): Raw => ({
  dtype: 'I32',
  shape: [],
  data: Int32Array.of(value),
});

const matrixShape = (N: number, K: number): Raw => ({
  dtype: 'I64',
  shape: [2],
  data: BigInt64Array.of(BigInt(N), BigInt(K)),
});

type Case = Omit<LayerCase, 'id' | 'expected'>;

const of = (layout: string, tensors: LayerTensors, config: QuantizationConfig): Case => ({
  layout,
  tensors,
  config,
});

const compressed = (format: string, weights: QuantizationConfig): QuantizationConfig => ({
  quant_method: 'compressed-tensors',
  format,
  config_groups: { group_0: { targets: ['Linear'], weights } },
  ignore: ['lm_head'],
});

function gptq({ params, tensors, id }: GoldenCase, prefix = 'in.'): Case {
  // The peer of the cases without a maker is GPTQModel.
  const quantizer = id.endsWith('by_field') ? ['autogptq:0.7'] : ['gptqmodel:4.0.0'];
  const config = { quant_method: 'gptq', ...params, meta: { quantizer } };
  return of('gptq', rawTensors(layerOf(tensors, prefix)), config);
}

function awq({ params, tensors }: GoldenCase): Case {
  const { qweight, qzeros, scales } = rawTensors(layerOf(tensors, 'in.'));
  const config = { quant_method: 'awq', ...params };
  return of('awq', { qweight, qzeros, scales } as LayerTensors, config);
}

function hqqTensors(disk: LayerTensors, params: Readonly<Record<string, number>>): LayerTensors {
  const { nbits, group_size, axis, N, K } = params as Record<string, number>;
  const { W_q, scale, zero } = disk as Record<string, Raw>;
  return {
    W_q,
    scale,
    zero,
    nbits: number32(nbits as number),
    group_size: number32(group_size as number),
    axis: number32(axis as number),
    shape: matrixShape(N as number, K as number),
  } as LayerTensors;
}

const hqq = ({ params, tensors }: GoldenCase): Case =>
  of('hqq', hqqTensors(rawTensors(layerOf(tensors, 'in.')), params as Record<string, number>), {
    quant_method: 'hqq',
  });

function integers({ params, tensors, id }: GoldenCase): Case {
  const packed = id !== 'formats/compressed_tensors/w8a8_channel';
  const { codes: _, dequant: __, zeros: ___, ...layer } = rawTensors(layerOf(tensors, 'out.'));
  const format = packed ? 'pack-quantized' : 'int-quantized';
  return of(format, layer, compressed(format, params));
}

function fp8(golden: GoldenCase): Case {
  const { params, tensors } = golden;
  const { codes, scale } = layerOf(tensors, 'out.') as Record<string, GoldenTensor>;
  const dtype = params.element === 'e5m2' ? 'F8_E5M2' : 'F8_E4M3';
  const weight = raw(codes as GoldenTensor, dtype);
  const scales = raw(scale as GoldenTensor);
  const block = (params.block_structure ?? params.weight_block_size) as number[] | undefined;
  if (block === undefined) {
    const format = compressed('float-quantized', { num_bits: 8, ...params });
    return of('fp8', { weight, weight_scale: scales }, format);
  }
  const config = { quant_method: 'fp8', weight_block_size: block };
  return of('fp8', { weight, weight_scale_inv: scales }, config);
}

function mxfp4(golden: GoldenCase): Case | undefined {
  const { tensors, id } = golden;
  if (id.endsWith('nonfinite')) return undefined;
  const config = compressed('mxfp4-pack-quantized', { num_bits: 4, group_size: 32 });
  const { codes, scale_e8m0 } = layerOf(tensors, 'out.') as Record<string, GoldenTensor>;
  const { blocks, scales } = layerOf(tensors, 'in.') as Record<string, GoldenTensor>;
  if (blocks !== undefined) {
    const layer = { _blocks: raw(blocks), _scales: raw(scales as GoldenTensor) };
    return of('mxfp4', layer, { quant_method: 'mxfp4' });
  }
  if (id.includes('mxfp6')) return undefined;
  const weight_scale = raw(scale_e8m0 as GoldenTensor);
  if (id.includes('mxfp8')) {
    const dtype = id.includes('e5m2') ? 'F8_E5M2' : 'F8_E4M3';
    const weight = raw(codes as GoldenTensor, dtype);
    const group = { num_bits: 8, strategy: 'group', group_size: 32 };
    return of('fp8', { weight, weight_scale }, compressed('mxfp8-quantized', group));
  }
  const layer = { weight_packed: raw(codes as GoldenTensor), weight_scale };
  return of('mxfp4-pack-quantized', layer, config);
}

function nvfp4({ tensors, id }: GoldenCase): Case {
  const layer = layerOf(tensors, 'out.') as Record<string, GoldenTensor>;
  const part = (name: string, as?: GoldenTensor['dtype']): Raw =>
    raw(layer[name] as GoldenTensor, as);
  if (id.includes('compressed_tensors')) {
    const group = { num_bits: 4, strategy: 'tensor_group', group_size: 16 };
    const parts = {
      weight_packed: part('weight_packed'),
      weight_scale: part('weight_scale', 'F8_E4M3'),
      weight_global_scale: part('weight_global_scale'),
    };
    return of('nvfp4-pack-quantized', parts, compressed('nvfp4-pack-quantized', group));
  }
  const config = { quant_method: 'modelopt', quant_algo: 'NVFP4', group_size: 16 };
  const one: Raw = { dtype: 'F32', shape: [], data: Float32Array.of(1) };
  // torchao has no files of its own: its factor is a multiplier too, or absent.
  const parts = id.includes('torchao')
    ? {
        weight: part('codes'),
        weight_scale: part('scale_e4m3', 'F8_E4M3'),
        weight_scale_2: layer.global_scale === undefined ? one : part('global_scale'),
      }
    : {
        weight: part('weight'),
        weight_scale: part('weight_scale', 'F8_E4M3'),
        weight_scale_2: part('weight_scale_2'),
      };
  return of('modelopt-nvfp4', parts, config);
}

/** The base of a case of adapters. */
function base({ params, tensors, notes, id }: GoldenCase): Case | undefined {
  const layer = layerOf(tensors, 'base.lin.') as Record<string, GoldenTensor>;
  const { bias: _, ...parts } = rawTensors(layer) as Record<string, Raw>;
  const part = (name: string): Raw => parts[name] as Raw;
  const [method, detail] = (params.format as string).split(':') as [string, string?];
  const { N, K } = params as { N: number; K: number };
  const bits = Number(detail);
  switch (method) {
    case 'gptq': {
      const version = notes.includes('GPTQ version 2') ? 'gptq_v2' : 'gptq';
      const meta = { quantizer: ['gptqmodel:4.0.0'] };
      return of('gptq', parts, { quant_method: 'gptq', bits, checkpoint_format: version, meta });
    }
    case 'awq':
      return of('awq', parts, {
        quant_method: 'awq',
        version: 'gemm',
        group_size: K / (part('scales').shape[0] as number),
      });
    case 'fp8': {
      const weight = raw(layer.weight as GoldenTensor, 'F8_E4M3');
      return of(
        'fp8',
        { ...parts, weight },
        { quant_method: 'fp8', weight_block_size: [128, 128] },
      );
    }
    case 'mxfp4': {
      const packed = { weight_packed: part('codes'), weight_scale: part('scale_e8m0') };
      const config = compressed('mxfp4-pack-quantized', { num_bits: 4, group_size: 32 });
      return of('mxfp4-pack-quantized', packed, config);
    }
    case 'nvfp4': {
      const weight_scale = raw(layer.weight_scale as GoldenTensor, 'F8_E4M3');
      return of('modelopt-nvfp4', { ...parts, weight_scale }, { quant_method: 'modelopt' });
    }
    case 'hqq': {
      const group_size = (N * K) / (part('scale').shape[0] as number);
      const config = { quant_method: 'hqq' };
      return of('hqq', hqqTensors(parts, { nbits: bits, group_size, axis: 1, N, K }), config);
    }
    case 'gguf':
      return undefined;
    default:
      throw new Error(`${id}: no layout ${method}`);
  }
}

function casesOf(
  group: string,
  make: (golden: GoldenCase) => Case | undefined,
  expected = 'out.dequant',
): LayerCase[] {
  return caseIds(`formats/${group}`).flatMap((id) => {
    if (id.includes('/cast_')) return [];
    const golden = loadCase(id);
    const found = make(golden);
    return found === undefined ? [] : [{ ...found, id, expected: golden.numbers(expected) }];
  });
}

/** Blocks with NaN or infinity, as the oracle encodes them: their scale is NaN. */
function nonfinite(): LayerCase {
  const golden = loadCase('formats/mx/nonfinite');
  const scale = golden.tensor('out.mxfp4_scale_e8m0');
  const codes = encodeMx(golden.numbers('in.w'), scale.bytes, 'e2m1');
  const packed: Raw = { dtype: 'U8', shape: [4, 32], data: codes };
  return {
    ...of(
      'mxfp4-pack-quantized',
      { weight_packed: packed, weight_scale: raw(scale) },
      {
        quant_method: 'compressed-tensors',
        format: 'mxfp4-pack-quantized',
      },
    ),
    id: golden.id,
    expected: golden.numbers('out.mxfp4_dequant'),
  };
}

/** Layers of the cases whose peers were run on single tensors. */
export function singleCases(): LayerCase[] {
  const zero = loadCase('formats/gptq/w4_v1_zero_of_0');
  const oss = loadCase('formats/mx/gptoss_decode');
  const extreme = {
    _blocks: raw(oss.tensor('in.blocks')),
    _scales: raw(oss.tensor('in.scales_extreme')),
  };
  const ue8m0 = loadCase('formats/fp8/block128_ue8m0');
  const bytes = fp8(ue8m0);
  return [
    ...casesOf('gptq', gptq),
    {
      ...of('gptq', gptq(zero).tensors, { quant_method: 'gptq', bits: 4, group_size: 32 }),
      id: `${zero.id}, by field`,
      expected: zero.numbers('aux.dequant_by_field'),
    },
    ...casesOf('awq', awq),
    ...casesOf('hqq', hqq),
    ...casesOf('compressed_tensors', integers),
    ...casesOf('fp8', fp8),
    {
      ...bytes,
      tensors: {
        ...bytes.tensors,
        weight_scale_inv: raw(ue8m0.tensor('out.scale_e8m0'), 'F8_E8M0'),
      },
      id: `${ue8m0.id}, bytes`,
      expected: ue8m0.numbers('out.dequant'),
    },
    ...casesOf('mx', mxfp4),
    nonfinite(),
    {
      ...of('mxfp4', extreme, { quant_method: 'mxfp4' }),
      id: `${oss.id}, extreme`,
      expected: oss.numbers('out.dequant_extreme'),
    },
    ...casesOf('nvfp4', nvfp4),
    ...casesOf('lora', base, 'base_dequant.lin.weight'),
  ];
}

/** A folder: all of its tensors, its config, and the values of its quantised layers by name. */
export interface FolderCase {
  readonly id: string;
  readonly tensors: ReadonlyMap<string, Raw>;
  readonly config: QuantizationConfig;
  readonly expected: ReadonlyMap<string, ArrayLike<number>>;
}

export function folderCases(): FolderCase[] {
  return caseIds('formats/folder').map((id) => {
    const golden = loadCase(id);
    const { config, tensors } = golden.checkpoint();
    return {
      id,
      tensors: new Map([...tensors].map(([name, tensor]) => [name, raw(tensor)])),
      config: config.quantization_config as QuantizationConfig,
      expected: new Map(
        golden.rules.map(({ tensor }) => [
          tensor.replace(/^out\./, '').replace(/\.weight$/, ''),
          golden.numbers(tensor),
        ]),
      ),
    };
  });
}

/** All layers: those of the folders too. */
export function layerCases(split: typeof import('../../../lib/index.js').quantizedLayers) {
  const layers = folderCases().flatMap(({ id, tensors, config, expected }) =>
    [...split(tensors, config).layers].map(([name, layer]) => ({
      ...layer,
      id: `${id}, ${name}`,
      expected: expected.get(name) ?? [],
    })),
  );
  return [...singleCases(), ...layers];
}
