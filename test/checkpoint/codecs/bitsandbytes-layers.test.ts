// States of bitsandbytes of every kind as planar weights, against their formulas, and back to their bytes.
import { describe, expect, it } from 'vitest';
import {
  type LayerTensors,
  planarToFloat32,
  quantizedLayers,
  readQuantizedLayer,
  writeQuantizedLayer,
} from '../../../lib/index.js';
import { loadCase } from '../../golden/case-file.js';
import { bytes, floats, type Raw, raw } from './made-tensors.js';

const f32 = Math.fround;

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
