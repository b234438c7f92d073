// What configs say of whole folders: modules left as they are, groups, overrides.
import { describe, expect, it } from 'vitest';
import {
  type LayerTensors,
  type QuantizationConfig,
  quantizedLayers,
  readQuantizedLayer,
} from '../../../lib/index.js';
import { layerCases, rawTensors } from './cases.js';
import { floats, raw } from './made-tensors.js';

const cases = layerCases(quantizedLayers);
const caseOf = (id: string) =>
  cases.find((golden) => golden.id === `formats/${id}`) as (typeof cases)[number];

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
