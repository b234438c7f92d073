/** GGUF names of every architecture against the tensors that lib/model reads, of recorded model folders. */

import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { ggufArchitectures, ggufToHf, hfToGguf } from '../../../lib/index.js';
import { architectures } from '../../../lib/model/architectures/all.js';
import { tensorShapes } from '../../../lib/model/decoder-tensors.js';
import { openHfModel } from '../../../lib/model/hf-model.js';
import { modelIds, modelsFolder } from '../../golden/models/cases.js';
import { codeOf } from '../raw-file.js';

/** Mistral's converter writes llama. */
const ggufOf = (name: string) => (name === 'mistral' ? 'llama' : name);

/** Those without experts, whose tensors have no names here. */
const dense = architectures.filter(({ experts }) => experts === undefined).map(({ name }) => name);
const denseIds = modelIds.filter((id) => dense.includes(id.split('/')[0] as string));

describe('names in GGUF files', () => {
  it('are there for every architecture that is read and has no experts', () => {
    const names = new Set(dense.map(ggufOf));
    expect([...names].sort()).toEqual([...ggufArchitectures].sort());
  });

  it.each(denseIds)('%s: every tensor has one, and it leads back', (id) => {
    const { decoder, places } = openHfModel(path.join(modelsFolder, id, 'base'));
    const architecture = ggufOf(decoder.architecture);
    const seen = new Set<string>();
    for (const name of tensorShapes(places).keys()) {
      const place = hfToGguf(architecture, name);
      expect(place, name).toBeDefined();
      const back = ggufToHf(architecture, place?.name ?? '');
      expect(back).toEqual({ ...place, name });
      seen.add(place?.name ?? '');
      const q = /self_attn\.[qk]_proj\./.test(name);
      expect(place?.permuted !== undefined, name).toBe(architecture === 'llama' && q);
      const shifted = architecture.startsWith('gemma') && name.endsWith('norm.weight');
      expect(place?.normOffset === 1, name).toBe(shifted);
    }
    expect(seen.size).toBe(tensorShapes(places).size);
  });

  it.each([
    ['llama', 'blk.3.attn_k.bias', 'model.layers.3.self_attn.k_proj.bias'],
    ['llama', 'blk.12.ffn_norm.weight', 'model.layers.12.post_attention_layernorm.weight'],
    ['gemma2', 'blk.0.ffn_norm.weight', 'model.layers.0.pre_feedforward_layernorm.weight'],
    [
      'gemma2',
      'blk.0.post_attention_norm.weight',
      'model.layers.0.post_attention_layernorm.weight',
    ],
    ['gemma3', 'blk.0.post_ffw_norm.weight', 'model.layers.0.post_feedforward_layernorm.weight'],
    ['qwen3', 'blk.0.attn_q_norm.weight', 'model.layers.0.self_attn.q_norm.weight'],
    ['phi3', 'blk.0.ffn_up.weight', 'model.layers.0.mlp.gate_up_proj.weight'],
    ['phi3', 'blk.0.attn_qkv.weight', 'model.layers.0.self_attn.qkv_proj.weight'],
    ['qwen2', 'output.weight', 'lm_head.weight'],
  ])('%s: %s is %s', (architecture, gguf, hf) => {
    expect(ggufToHf(architecture, gguf)?.name).toBe(hf);
    expect(hfToGguf(architecture, hf)?.name).toBe(gguf);
  });

  it('are undefined for what the other side does not have', () => {
    for (const name of [
      'rope_freqs.weight',
      'blk.0.attn_qkv.weight',
      'blk.0.constructor.weight',
      '',
    ]) {
      expect(ggufToHf('llama', name), name).toBeUndefined();
    }
    for (const name of ['model.layers.0.self_attn.rotary_emb.inv_freq', 'lm_head', 'constructor']) {
      expect(hfToGguf('llama', name), name).toBeUndefined();
    }
    expect(codeOf(() => ggufToHf('mamba', 'output.weight'))).toBe('ERR_UNSUPPORTED');
    expect(() => hfToGguf('__proto__', 'lm_head.weight')).toThrow(
      'hfToGguf: architecture must be llama, qwen2, qwen3, phi3, gemma2 or gemma3, got "__proto__"',
    );
  });
});
