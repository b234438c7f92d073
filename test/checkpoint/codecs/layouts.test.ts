// What golden data do not have: states of bitsandbytes of every kind, planes of every kind, conversions, whole configs.
import { describe, expect, it } from 'vitest';
import {
  type LayerTensors,
  type PlanarWeight,
  planarToFloat32,
  type QuantizationConfig,
  type QuantizedLayout,
  quantizedLayers,
  readQuantizedLayer,
  writeQuantizedLayer,
} from '../../../lib/index.js';
import { loadCase } from '../../golden/case-file.js';
import { encodeBits } from '../../oracle/dtypes.js';
import { generator } from '../fuzz.js';
import { layerCases, rawTensors } from './cases.js';

const cases = layerCases(quantizedLayers);
const caseOf = (id: string) =>
  cases.find((golden) => golden.id === `formats/${id}`) as (typeof cases)[number];
const f32 = Math.fround;
const random = generator(11);
const bytes = (count: number, below = 256): Uint8Array<ArrayBuffer> =>
  Uint8Array.from({ length: count }, () => random(below));
const floats = (count: number): Float32Array<ArrayBuffer> =>
  Float32Array.from({ length: count }, () => (random(2001) - 1000) / 512);

type Raw = LayerTensors[string];
const raw = (dtype: Raw['dtype'], shape: number[], data: Raw['data']): Raw => ({
  dtype,
  shape,
  data,
});

describe('bitsandbytes', () => {
  const state = (
    quant_type: string,
    N: number,
    K: number,
    blocksize: number,
    nested: boolean,
  ): LayerTensors => {
    const blocks = Math.ceil((N * K) / blocksize);
    const ascending = (n: number) => Float32Array.from({ length: n }, (_, i) => i / (n / 2) - 1);
    const magnitudes = [0, 0.0052, 0.667, 1, 0.333, 0.5, 0.1667, 0.25].map(f32);
    const fp4 = Float32Array.from([...magnitudes, ...magnitudes.map((m) => 0 - m)]);
    const int8 = quant_type === 'int8';
    const json = `{"quant_type": "${quant_type}", "blocksize": ${blocksize}, "dtype": "bfloat16", "shape": [${N}, ${K}]${
      nested ? ', "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25' : ''
    }}`;
    const text = new TextEncoder().encode(json);
    const packed = Math.ceil((N * K) / 2);
    const codes = bytes(packed);
    if ((N * K) % 2 === 1) codes[packed - 1] = (codes[packed - 1] as number) & 0xf0;
    return {
      weight: int8 ? raw('U8', [N, K], bytes(N * K)) : raw('U8', [packed, 1], codes),
      'weight.absmax': nested
        ? raw('U8', [blocks], bytes(blocks))
        : raw('F32', [blocks], floats(blocks).map(Math.abs)),
      'weight.quant_map': raw(
        'F32',
        [int8 ? 256 : 16],
        int8 ? ascending(256) : quant_type === 'fp4' ? fp4 : ascending(16),
      ),
      ...(nested
        ? {
            'weight.nested_absmax': raw(
              'F32',
              [Math.ceil(blocks / 256)],
              floats(Math.ceil(blocks / 256)).map(Math.abs),
            ),
            'weight.nested_quant_map': raw('F32', [256], ascending(256)),
          }
        : {}),
      [`weight.quant_state.bitsandbytes__${quant_type}`]: raw('U8', [text.length], text),
    };
  };

  it.each([
    ['nf4', 5, 27, 64, false],
    ['fp4', 48, 72, 32, false],
    ['nf4', 96, 200, 32, true],
    ['fp4', 7, 33, 128, true],
    ['int8', 9, 61, 256, false],
    ['int8', 40, 50, 64, true],
  ] as const)('%s [%i, %i], blocks of %i, nested %s', (type, N, K, blocksize, nested) => {
    const tensors = state(type, N, K, blocksize, nested);
    const layer = readQuantizedLayer(tensors, { quant_method: 'bitsandbytes' });
    expect(layer.layout).toMatchObject({ name: 'bitsandbytes', format: type, dtype: 'bf16' });
    const part = (key: string): ArrayLike<number> => (tensors[key] as Raw).data as Uint8Array;
    const values = planarToFloat32(layer.weight);
    for (let i = 0; i < N * K; i++) {
      const packed = part('weight')[type === 'int8' ? i : i >> 1] as number;
      const code = type === 'int8' ? packed : i % 2 === 0 ? packed >> 4 : packed & 15;
      const block = Math.floor(i / blocksize);
      const own = part('weight.absmax')[block] as number;
      const scale = nested
        ? f32(
            f32(
              (part('weight.nested_quant_map')[own] as number) *
                (part('weight.nested_absmax')[Math.floor(block / 256)] as number),
            ) + 0.25,
          )
        : own;
      expect(values[i]).toBe(f32((part('weight.quant_map')[code] as number) * scale));
    }
    expect(writeQuantizedLayer(layer)).toEqual(
      Object.fromEntries(
        Object.entries(tensors).map(([key, { dtype, shape, data }]) => [
          key,
          { dtype, shape, data },
        ]),
      ),
    );
  });

  it('reads every layer of the golden LLM.int8 model, and writes it back', () => {
    const golden = loadCase('quant/state_dict_int8');
    const tensors = new Map(
      [...golden.tensors].map(([name, { dtype, shape, bytes: data }]) => [
        name,
        { dtype, shape, data } as Raw,
      ]),
    );
    const { layers } = quantizedLayers(tensors, { quant_method: 'bitsandbytes' });
    expect(layers.size).toBeGreaterThan(0);
    for (const [name, { tensors: own, layout, config }] of layers) {
      expect(layout).toBe('llm-int8');
      const layer = readQuantizedLayer(own, config, name);
      const K = layer.weight.columns;
      const codes = new Int8Array(((own.weight as Raw).data as Uint8Array).slice().buffer);
      const scales = new Float32Array(((own.SCB as Raw).data as Uint8Array).slice().buffer);
      planarToFloat32(layer.weight).forEach((value, i) => {
        expect(value).toBe(
          f32(f32((codes[i] as number) / 127) * (scales[Math.floor(i / K)] as number)),
        );
      });
      const back = writeQuantizedLayer(layer);
      for (const [key, { dtype, shape, data }] of Object.entries(back)) {
        expect([dtype, [...shape]]).toEqual([own[key]?.dtype, own[key]?.shape]);
        expect(
          Buffer.compare(new Uint8Array(data.buffer), (own[key] as Raw).data as Uint8Array),
        ).toBe(0);
      }
      expect(Object.keys(back).sort()).toEqual(Object.keys(own).sort());
    }
  });
});

describe('planar weights', () => {
  const [N, K] = [3, 10];
  const codes = bytes(N * K, 16);
  const levels = floats(16);
  const base = { rows: N, columns: K, bits: 4, codes, levels };
  const half = (values: Float32Array) => Uint16Array.from(values, (v) => encodeBits('bf16', v));

  it('decodes every grid and plane as its definition says', () => {
    const group = Int32Array.of(1, 0, 1, 1, 0, 2, 2, 0, 1, 2);
    const table = floats(256);
    const grids: [PlanarWeight['grid'], number, (n: number, k: number) => number][] = [
      [{ kind: 'tiles', rows: 1, columns: 4 }, 9, (n, k) => n * 3 + Math.floor(k / 4)],
      [{ kind: 'tiles', rows: 2, columns: 10 }, 2, (n) => Math.floor(n / 2)],
      [
        { kind: 'tiles', rows: 2, columns: 3 },
        8,
        (n, k) => Math.floor(n / 2) * 4 + Math.floor(k / 3),
      ],
      [{ kind: 'flat', span: 7 }, 5, (n, k) => Math.floor((n * K + k) / 7)],
      [{ kind: 'cyclic', period: 6 }, 6, (n, k) => (n * K + k) % 6],
      [{ kind: 'ordered', groups: 3, group }, 9, (n, k) => n * 3 + (group[k] as number)],
    ];
    for (const [grid, entries, entryOf] of grids) {
      const [own, outer, mins] = [bytes(entries), floats(Math.ceil(entries / 4)), floats(entries)];
      const scale: PlanarWeight['scale'] = {
        values: { dtype: 'u8', data: own, table },
        outer: { values: { dtype: 'f32', data: outer }, span: 4 },
        offset: 0.1,
      };
      const zeros = floats(entries).map((v) => Math.round(v * 8));
      const kinds: Partial<PlanarWeight>[] = [
        {},
        { min: { values: { dtype: 'f32', data: mins } } },
        { zero: { dtype: 'bf16', data: half(zeros) } },
        { zero: { dtype: 'u8', data: own } },
      ];
      for (const kind of kinds) {
        const values = planarToFloat32({ ...base, grid, scale, ...kind });
        values.forEach((value, i) => {
          const e = entryOf(Math.floor(i / K), i % K);
          const s = f32(
            f32((table[own[e] as number] as number) * (outer[Math.floor(e / 4)] as number)) +
              f32(0.1),
          );
          const level = levels[codes[i] as number] as number;
          const z = kind.zero?.dtype === 'u8' ? (own[e] as number) : (zeros[e] as number);
          const expected =
            kind.zero !== undefined
              ? f32(f32(level - z) * s)
              : kind.min !== undefined
                ? f32(f32(level * s) - (mins[e] as number))
                : f32(level * s);
          expect(value).toBe(expected);
        });
      }
    }
  });

  it('rejects parts that do not fit each other', () => {
    const scale: PlanarWeight['scale'] = { values: { dtype: 'f32', data: floats(3) } };
    const good: PlanarWeight = { ...base, grid: { kind: 'tiles', rows: 1, columns: K }, scale };
    planarToFloat32(good);
    const wrong: [Partial<Record<keyof PlanarWeight, unknown>>, string][] = [
      [{ rows: 0 }, 'rows must be a positive integer, got 0'],
      [{ columns: 9 }, 'codes must be a Uint8Array of 27'],
      [{ bits: 9 }, 'bits must be 1 to 8, got 9'],
      [{ levels: floats(15) }, 'levels must be a Float32Array of 16'],
      [{ codes: new Uint8Array(30).fill(16) }, 'codes must be below 16'],
      [{ grid: { kind: 'tiles', rows: 1, columns: 0 } }, 'grid.columns'],
      [
        { grid: { kind: 'tiles', rows: 1, columns: 5 } },
        'scale.values.data must be a Float32Array of 6',
      ],
      [{ grid: { kind: 'flat', span: -1 } }, 'grid.span'],
      [{ grid: { kind: 'cyclic', period: 7 } }, 'grid.period must be a divisor of 30'],
      [{ grid: { kind: 'ordered', groups: 1, group: new Int32Array(9) } }, 'grid.group'],
      [
        { grid: { kind: 'ordered', groups: 1, group: new Int32Array(10).fill(1) } },
        'below 1, got 1 at 0',
      ],
      [{ grid: { kind: 'round' } }, 'grid.kind'],
      [{ grid: undefined }, 'grid must be an object'],
      [{ scale: undefined }, 'scale must be an object'],
      [{ scale: { values: { dtype: 'f64', data: floats(3) } } }, 'scale.values.dtype'],
      [{ scale: { values: { dtype: 'u8', data: bytes(3) } } }, 'scale.values.table'],
      [{ scale: { ...scale, outer: { values: scale.values, span: 0 } } }, 'scale.outer.span'],
      [
        { scale: { ...scale, outer: { values: scale.values, span: 2 } } },
        'scale.outer.values.data',
      ],
      [{ zero: { dtype: 'u8', data: bytes(4) } }, 'zero.data must be a Uint8Array of 3'],
      [{ zero: { dtype: 'u8', data: bytes(3) }, min: scale }, 'zero must be absent beside min'],
    ];
    for (const [change, text] of wrong) {
      const weight = { ...good, ...change } as PlanarWeight;
      expect(() => planarToFloat32(weight)).toThrow(text);
      const layout = { name: 'gptq', version: 2 } as const;
      expect(() => writeQuantizedLayer({ weight, layout })).toThrow(text);
    }
  });
});

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

describe('configs of folders', () => {
  const layer = rawTensors({});
  const { tensors: gptq } = caseOf('gptq/w4_g32_asym_v1');
  const { tensors: three } = caseOf('gptq/w3_g32_asym_v1');
  const { tensors: packed } = caseOf('compressed_tensors/w4a16_asym_g32');
  const { tensors: w8 } = caseOf('compressed_tensors/w8a16_channel');
  const { tensors: oss } = caseOf('mx/gptoss_decode');
  const named = (parts: Readonly<Record<string, LayerTensors>>) =>
    new Map(
      Object.entries(parts).flatMap(([name, tensors]) =>
        Object.entries({ ...layer, ...tensors }).map(
          ([key, tensor]) => [key.startsWith('_') ? name + key : `${name}.${key}`, tensor] as const,
        ),
      ),
    );
  const bias = raw('F32', [32], floats(32));
  const base = { quant_method: 'gptq', bits: 4, checkpoint_format: 'gptq' };

  it('keep what no layout has apart, and need no config where tensors decide', () => {
    const tensors = named({ 'model.q': gptq, 'model.k': { ...three, bias }, experts: oss });
    tensors.set('model.norm.scale', bias);
    tensors.set('shape', bias);
    const { layers, rest } = quantizedLayers(tensors);
    expect([...layers].map(([name, { layout }]) => `${name} ${layout}`)).toEqual([
      'model.q gptq',
      'model.k gptq',
      'experts mxfp4',
    ]);
    expect([...rest.keys()]).toEqual(['model.k.bias', 'model.norm.scale', 'shape']);
  });

  it.each([
    ['modules_to_not_convert', 'lm_head', 'model.lm_head'],
    ['modules_to_not_convert', 'model.layers.*.mlp', 'model.layers.3.mlp.up_proj'],
    ['ignore', 're:.*q_proj', 'model.layers.0.q_proj'],
    ['ignore', 're:model', 'model.layers.0.q_proj'],
    ['exclude_modules', 'model.layers.0*', 'model.layers.0.q_proj'],
    ['skip_modules', 'q_proj', 'model.layers.0.q_proj'],
    ['dynamic', '-:.*\\.q_proj', 'model.layers.0.q_proj'],
  ])('%s with %s excludes %s', (field, entry, name) => {
    const skip = field === 'dynamic' ? { [entry]: {} } : [entry];
    const config = { ...base, [field]: skip };
    const read = () => quantizedLayers(named({ [name]: gptq }), config);
    expect(read).toThrow(field);
    expect(read).toThrow(`${name}.`);
    expect(() => readQuantizedLayer(gptq, config, name)).toThrow(field);
    // Beside it stands a dense tensor of that name, and a layer of another.
    const dense = named({ [name]: { weight: bias }, 'other.up': gptq });
    const { layers, rest } = quantizedLayers(dense, config);
    expect([...layers.keys()]).toEqual(['other.up']);
    expect([...rest.keys()]).toEqual([`${name}.weight`]);
  });

  it('name whole parts of a module', () => {
    const config = { ...base, modules_to_not_convert: ['gate', 'layers.1'] };
    const tensors = named({ 'model.gate_proj': gptq, 'model.layers.10.q': gptq });
    expect(quantizedLayers(tensors, config).layers.size).toBe(2);
  });

  it('override layers', () => {
    const config = {
      ...base,
      dynamic: { '+:.*down_proj': { bits: 3 }, 'model\\.up': { bits: 3 } },
    };
    const tensors = named({ 'model.down_proj': three, 'model.up': three, 'model.q': gptq });
    for (const [name, { tensors: own, config: place }] of quantizedLayers(tensors, config).layers) {
      expect(readQuantizedLayer(own, place, name).weight.bits).toBe(name === 'model.q' ? 4 : 3);
      expect(readQuantizedLayer(own, config, name).weight.bits).toBe(name === 'model.q' ? 4 : 3);
    }
    expect(() => readQuantizedLayer(gptq, config, 'model.up')).toThrow(
      'bits in the config of "model.up" must be 4',
    );
  });

  it('have groups', () => {
    const weights = (num_bits: number, rest: QuantizationConfig) => ({
      weights: { num_bits, ...rest },
    });
    const config = {
      quant_method: 'compressed-tensors',
      format: 'pack-quantized',
      config_groups: {
        group_0: { targets: ['re:.*q_proj'], ...weights(8, { strategy: 'channel' }) },
        group_1: { targets: ['Linear'], ...weights(4, { strategy: 'group', group_size: 32 }) },
      },
    };
    const tensors = named({ 'model.q_proj': w8, 'model.k_proj': packed });
    for (const [name, { tensors: own }] of quantizedLayers(tensors, config).layers) {
      expect(readQuantizedLayer(own, config, name).weight.bits).toBe(
        name === 'model.q_proj' ? 8 : 4,
      );
    }
    expect(() => readQuantizedLayer(packed, config, 'a.q_proj')).toThrow('num_bits in the config');
    const one = { ...config, config_groups: { a: { targets: ['x'] }, b: { targets: ['y'] } } };
    expect(() => readQuantizedLayer(packed, one, 'z')).toThrow('config_groups');
  });

  it('may be those of hf_quant_config.json', () => {
    const { tensors } = caseOf('nvfp4/modelopt');
    const config = {
      quantization: { quant_algo: 'NVFP4', group_size: 16, exclude_modules: ['lm_head'] },
    };
    expect(readQuantizedLayer(tensors, config, 'model.q').layout.name).toBe('modelopt-nvfp4');
    expect(() => readQuantizedLayer(tensors, config, 'lm_head')).toThrow('exclude_modules');
  });

  it('are checked', () => {
    const wrong = { ...base, ignore: 'lm_head' };
    expect(() => quantizedLayers(named({ a: gptq }), wrong)).toThrow(
      'ignore in the config must be a list',
    );
    const nested = { ...base, ignore: ['re:(((a{1,1000}){1,1000}){1,1000})'] };
    expect(() => quantizedLayers(named({ a: gptq }), nested)).toThrow(/quantizedLayers/);
  });

  it('find ten thousand experts in a second', () => {
    const parts = Object.fromEntries(
      Array.from({ length: 10_000 }, (_, i) => [
        `model.layers.${i % 60}.mlp.experts.${i}.up_proj`,
        oss,
      ]),
    );
    const skip = Array.from({ length: 400 }, (_, i) => `model.layers.${i}.mlp.gate`);
    const start = performance.now();
    const { layers } = quantizedLayers(named(parts), {
      quant_method: 'mxfp4',
      ignore: [...skip, 're:.*lm_head'],
    });
    expect(layers.size).toBe(10_000);
    expect(performance.now() - start).toBeLessThan(10_000);
  });
});
