/** Model folders of every architecture: the reader gives each tensor of the files, and names what contradicts the config. */
import { cpSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openHfModel } from '../../lib/index.js';
import { codeOf, tempFolder } from '../checkpoint/raw-file.js';
import { numbersOf } from '../golden/case-file.js';
import { configGenerations, ModelCase, modelIds } from '../golden/models/cases.js';

describe('openHfModel', () => {
  it.each(modelIds)('%s: every tensor, from one file or from shards', (id) => {
    const golden = new ModelCase(id);
    const model = openHfModel(golden.base);
    const { weights } = golden;
    expect(model.names().sort()).toEqual([...weights.keys()].sort());
    for (const [name, tensor] of weights) {
      expect(model.info(name)?.shape).toEqual(tensor.shape);
      expect(model.readFloat32(name), name).toEqual(Float32Array.from(numbersOf(tensor)));
    }
    expect(model.places.layers).toHaveLength(model.decoder.layers.length);
  });

  it('gives the configuration of the TensorFlow.js trainer for a Llama that it computes', () => {
    const open = (id: string) => openHfModel(new ModelCase(id).base);
    expect(open('llama/gqa_llama3_tied').config).toMatchObject({
      headDim: 12,
      ropeScaling: { type: 'llama3', factor: 8 },
    });
    for (const id of [
      'llama/mqa_linear_bias_sharded',
      'mistral/window5',
      'gemma2/softcap_window',
    ]) {
      const model = open(id);
      expect(codeOf(() => model.config)).toBe('ERR_UNSUPPORTED');
    }
    expect(() => open('mistral/window5').config).toThrow(
      /must be of the architecture LlamaForCausalLM \(model_type "llama"\), got mistral/,
    );
  });

  const copyOf = (id: string, change: (config: Record<string, unknown>) => void) => {
    const golden = new ModelCase(id);
    const folder = join(tempFolder(), 'model');
    cpSync(golden.base, folder, { recursive: true });
    const config = golden.config('v4');
    change(config);
    writeFileSync(join(folder, 'config.json'), JSON.stringify(config));
    return folder;
  };

  it.each<[string, string, RegExp, (config: Record<string, unknown>) => void]>([
    [
      'heads',
      'qwen3/untied_f32',
      /q_proj.weight must be \[40, 32\], as config.json says, got \[48, 32\]/,
      (c) => (c.head_dim = 10),
    ],
    [
      'a bias that the files lack',
      'qwen3/untied_f32',
      /must hold tensor model.layers.0.self_attn.q_proj.bias \[48\]/,
      (c) => (c.attention_bias = true),
    ],
    [
      'a head that the files lack',
      'gemma2/softcap_window',
      /must hold tensor lm_head.weight/,
      (c) => (c.tie_word_embeddings = false),
    ],
    [
      'a fused layer',
      'phi3/fused_window',
      /qkv_proj.weight must be \[144, 48\], as config.json says, got \[96, 48\]/,
      (c) => (c.num_key_value_heads = 4),
    ],
  ])('refuses a config that contradicts the tensors: %s', (_, id, message, change) => {
    const folder = copyOf(id, change);
    expect(codeOf(() => openHfModel(folder))).toBe('ERR_FILE');
    expect(() => openHfModel(folder)).toThrow(message);
  });

  it('opens the same files with the config of either generation', () => {
    for (const id of modelIds) {
      const opened = configGenerations.map((generation) => {
        const golden = new ModelCase(id);
        const folder = copyOf(id, () => {});
        writeFileSync(join(folder, 'config.json'), JSON.stringify(golden.config(generation)));
        const { decoder } = openHfModel(folder);
        rmSync(folder, { recursive: true });
        return decoder.layers;
      });
      expect(opened[0]).toEqual(opened[1]);
    }
  });
});
