// Layers in another layout than they were read from.
import { describe, expect, it } from 'vitest';
import {
  type LayerTensors,
  planarToFloat32,
  type QuantizationConfig,
  type QuantizedLayout,
  quantizedLayers,
  readQuantizedLayer,
  writeQuantizedLayer,
} from '../../../lib/index.js';
import { layerCases } from './cases.js';

const cases = layerCases(quantizedLayers);
const caseOf = (id: string) =>
  cases.find((golden) => golden.id === `formats/${id}`) as (typeof cases)[number];

describe('conversions', () => {
  /** Writes a layer in another layout, and reads it back: the same values. */
  function convert(id: string, layout: QuantizedLayout, config: QuantizationConfig): LayerTensors {
    const golden = caseOf(id);
    const { weight } = readQuantizedLayer(golden.tensors, golden.config);
    const tensors = writeQuantizedLayer({ weight, layout });
    const again = readQuantizedLayer(tensors, config);
    expect(planarToFloat32(again.weight)).toEqual(planarToFloat32(weight));
    return tensors;
  }

  it('are lossless between layouts that hold the same numbers', () => {
    const packed = { name: 'pack-quantized', zeros: true } as const;
    const compressed = { quant_method: 'compressed-tensors', format: 'pack-quantized' };
    for (const id of [
      'gptq/w4_g32_asym_v1',
      'gptq/w3_g64_sym_v2_actorder',
      'gptq/w8_gall_sym_v1',
    ]) {
      convert(id, packed, compressed);
    }
    convert('gptq/w4_g128_sym_v1', { ...packed, zeros: false }, compressed);
    convert('gptq/w4_g32_asym_v1', { name: 'awq', version: 'gemm' }, { quant_method: 'awq' });
    convert(
      'awq/w4_g64',
      { name: 'awq', version: 'gemv' },
      { quant_method: 'awq', version: 'gemv', group_size: 64 },
    );
    convert(
      'awq/w4_g64',
      { name: 'gptq', version: 2 },
      { quant_method: 'gptq', checkpoint_format: 'gptq_v2' },
    );
    convert(
      'compressed_tensors/w4a16_g128',
      { name: 'gptq', version: 1 },
      { quant_method: 'gptq' },
    );
    convert('mx/gptoss_decode', { name: 'mxfp4-pack-quantized' }, {});
    convert('mx/mxfp4_floor', { name: 'mxfp4', experts: 2 }, {});
  });

  it('refuse what a layout cannot hold', () => {
    const refused: [string, QuantizedLayout, string][] = [
      ['gptq/w4_g32_asym_v1', { name: 'pack-quantized', zeros: false }, 'weight.zero must be 8'],
      ['gptq/w3_g32_asym_v1', { name: 'awq', version: 'gemm' }, 'weight.bits must be 4'],
      ['gptq/w4_g48_asym_v1', { name: 'awq', version: 'gemm' }, 'weight.grid'],
      [
        'gptq/w4_g64_sym_v1_actorder',
        { name: 'gptq', version: 2, groupIndex: false },
        'weight.grid',
      ],
      ['gptq/w4_g32_asym_v1', { name: 'mxfp4', experts: 1 }, 'weight.levels must be those of e2m1'],
      ['mx/mxfp4_floor', { name: 'mxfp4', experts: 5 }, 'weight.rows must be a multiple of 5'],
      ['mx/mxfp4_floor', { name: 'modelopt-nvfp4', factor: 1 }, 'weight.grid'],
      [
        'nvfp4/modelopt',
        { name: 'nvfp4-pack-quantized', factor: 3 },
        'weight.scale must be e4m3 with the factor 3',
      ],
      ['hqq/w4_g64_axis1', { name: 'gptq', version: 2 }, 'weight.zero must be u8'],
      ['fp8/channel_f32', { name: 'int-quantized', zeros: false }, 'weight.levels'],
      ['mx/mxfp4_floor', { name: 'fp8', scaleName: 'weight_scale' }, 'weight.levels'],
      ['awq/w4_g64', { name: 'bitsandbytes', format: 'nf4', dtype: 'bf16' }, 'weight.zero'],
      ['awq/w4_g64', { name: 'llm-int8', weightFormat: true }, 'weight.levels'],
      ['awq/w4_g64', { name: 'eetq' } as never, 'layout.name must be one of'],
    ];
    for (const [id, layout, text] of refused) {
      const golden = caseOf(id);
      const { weight } = readQuantizedLayer(golden.tensors, golden.config);
      expect(() => writeQuantizedLayer({ weight, layout })).toThrow(text);
    }
  });
});

describe('what a layer says beside its values', () => {
  it('scales that scale_fmt calls powers of two are read where they are, as floats and as bytes', () => {
    for (const id of ['fp8/block128_ue8m0', 'fp8/block128_ue8m0, bytes']) {
      const { tensors, config, expected } = caseOf(id);
      const { weight } = readQuantizedLayer(tensors, { ...config, scale_fmt: 'ue8m0' });
      expect([...planarToFloat32(weight)]).toEqual(Array.from(expected));
    }
  });

  it('a weight_g_idx with -1 is unset: columns are in order, and it is written back', () => {
    const { tensors, config, expected } = caseOf('compressed_tensors/w4a16_asym_g32');
    const unset = [
      new Int32Array(96).fill(-1),
      Int32Array.from({ length: 96 }, (_, k) => ((k * 7) % 4) - 1),
    ];
    for (const data of unset) {
      const layer = { ...tensors, weight_g_idx: { dtype: 'I32', shape: [96], data } as const };
      const read = readQuantizedLayer(layer, config);
      expect([...planarToFloat32(read.weight)]).toEqual(Array.from(expected));
      expect(read.weight.grid).toEqual({ kind: 'tiles', rows: 1, columns: 32 });
      const written = writeQuantizedLayer(read);
      expect(written.weight_g_idx).toEqual(layer.weight_g_idx);
      expect(Object.keys(written).sort()).toEqual(Object.keys(layer).sort());
    }
  });
});
