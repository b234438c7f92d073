/** `config.json` of every architecture, of both generations of transformers. */
import { describe, expect, it } from 'vitest';
import type { JsonObject } from '../../lib/checkpoint/files/json-file.js';
import type { DecoderConfig } from '../../lib/index.js';
import { decoderPlaces, linearTargets, tensorShapes } from '../../lib/model/decoder-tensors.js';
import { parseDecoderConfig } from '../../lib/model/read-config.js';
import { ModelCase, modelIds } from '../golden/models/cases.js';
import { parse } from './bare-config.js';

const windows = ({ layers }: DecoderConfig) => layers.map(({ attention }) => attention.window);
const thetas = ({ layers }: DecoderConfig) => layers.map((l) => l.attention.rotary.theta);
const first = ({ layers }: DecoderConfig) => layers[0] as DecoderConfig['layers'][number];

describe('recorded configurations', () => {
  it.each(modelIds)('%s reads the same from both generations', (id) => {
    const golden = new ModelCase(id);
    const v5 = parseDecoderConfig('test', 'config.json', golden.config('v5'));
    const { bosTokenId, eosTokenIds, ...v4 } = parseDecoderConfig(
      'test',
      'config.json',
      golden.config('v4'),
    );
    // transformers 5 writes null where transformers 4 writes nothing, and the other way round.
    expect(v5).toMatchObject(v4);
    expect(v5.layers).toEqual(v4.layers);
    const targets = [...linearTargets(decoderPlaces(v5))].sort();
    expect(targets).toEqual(golden.params.lora.targets.filter((target) => target !== 'lm_head'));
  });
});

describe('keys that a file leaves out', () => {
  it('Llama', () => {
    const config = parse('LlamaForCausalLM');
    expect(config).toMatchObject({
      architecture: 'llama',
      tieWordEmbeddings: false,
      embeddingScale: 1,
      norm: { eps: 1e-6, plusOne: false },
      maxPositionEmbeddings: 2048,
    });
    expect(config.finalSoftcap).toBeUndefined();
    expect(first(config)).toEqual({
      attention: {
        heads: 8,
        kvHeads: 8,
        headDim: 4,
        scale: 0.5,
        rotary: { theta: 10_000, dims: 4, scaling: { type: 'default' } },
        fusedQkv: false,
        qkvBias: false,
        outputBias: false,
        headNorms: false,
      },
      mlp: { intermediateSize: 20, gate: 'silu', fusedGateUp: false, bias: false },
      outputNorms: false,
    });
  });

  it('Mistral: a window of 4096 tokens, none where the file says null; 8 key heads', () => {
    const config = parse('MistralForCausalLM', { num_attention_heads: 16 });
    expect(windows(config)).toEqual(Array(6).fill(4096));
    expect(first(config).attention.kvHeads).toBe(8);
    expect(config.maxPositionEmbeddings).toBe(131_072);
    expect(windows(parse('MistralForCausalLM', { sliding_window: null }))).toEqual(Array(6));
    const none = parse('MistralForCausalLM', {
      num_attention_heads: 16,
      num_key_value_heads: null,
    });
    expect(first(none).attention.kvHeads).toBe(16);
  });

  it('Qwen2: biases on q, k and v; the window counts only with use_sliding_window', () => {
    const qwen = (changes: JsonObject) =>
      parse('Qwen2ForCausalLM', { num_attention_heads: 32, hidden_size: 64, ...changes });
    const config = qwen({ sliding_window: 4, max_window_layers: 2 });
    expect(windows(config)).toEqual(Array(6));
    expect(first(config).attention).toMatchObject({ qkvBias: true, outputBias: false, headDim: 2 });
    const used = { use_sliding_window: true, max_window_layers: 4 };
    expect(windows(qwen({ ...used, sliding_window: 9 }))).toEqual([...Array(4), 9, 9]);
    expect(windows(qwen(used))).toEqual([...Array(4), 4096, 4096]);
    expect(windows(qwen({ use_sliding_window: true }))).toEqual(Array(6));
    const types = ['sliding_attention', ...Array(5).fill('full_attention')];
    expect(windows(qwen({ ...used, layer_types: types }))).toEqual([4096, ...Array(5)]);
  });

  it('Qwen3: heads of 128 with norms, no biases', () => {
    const config = parse('Qwen3ForCausalLM', { num_attention_heads: 32 });
    expect(first(config).attention).toMatchObject({
      kvHeads: 32,
      headDim: 128,
      headNorms: true,
      qkvBias: false,
      outputBias: false,
    });
    const biased = parse('Qwen3ForCausalLM', { num_attention_heads: 32, attention_bias: true });
    expect(first(biased).attention).toMatchObject({ qkvBias: true, outputBias: true });
  });

  it('Phi-3: fused layers, an epsilon of 1e-5, no window, an original length of 4096', () => {
    const config = parse('Phi3ForCausalLM');
    expect(config.norm.eps).toBe(1e-5);
    expect(windows(config)).toEqual(Array(6));
    expect(first(config)).toMatchObject({
      attention: { fusedQkv: true, kvHeads: 8 },
      mlp: { fusedGateUp: true },
    });
    const factors = { short_factor: [1, 2], long_factor: [3, 4] };
    for (const type of ['su', 'yarn', 'longrope']) {
      const long = parse('Phi3ForCausalLM', {
        rope_scaling: { type, ...factors },
        max_position_embeddings: 131_072,
      });
      const { attentionFactor, ...scaling } = first(long).attention.rotary.scaling as {
        attentionFactor: number;
      };
      expect(scaling).toEqual({
        type: 'longrope',
        shortFactors: [1, 2],
        longFactors: [3, 4],
        originalMaxPositionEmbeddings: 4096,
      });
      expect(attentionFactor).toBeCloseTo(Math.sqrt(1 + Math.log(32) / Math.log(4096)), 14);
    }
    const partial = parse('Phi3ForCausalLM', { partial_rotary_factor: 0.5 });
    expect(first(partial).attention.rotary.dims).toBe(2);
  });

  it('Mixtral: eight experts, two of them for a token, no window', () => {
    const config = parse('MixtralForCausalLM', { num_attention_heads: 16 });
    expect(windows(config)).toEqual(Array(6));
    expect(thetas(config)[0]).toBe(1_000_000);
    expect(config.norm.eps).toBe(1e-5);
    expect(first(config).mlp).toMatchObject({
      gate: 'silu',
      bias: false,
      experts: { count: 8, perToken: 2, softmax: 'chosen', routerBias: false, gateUp: 'halves' },
    });
    const more = parse('MixtralForCausalLM', {
      num_attention_heads: 16,
      num_local_experts: 5,
      num_experts_per_tok: 3,
    });
    expect(first(more).mlp.experts).toMatchObject({ count: 5, perToken: 3 });
    const many = { num_attention_heads: 16, num_local_experts: 2, num_experts_per_tok: 3 };
    expect(() => parse('MixtralForCausalLM', many)).toThrow(/num_experts_per_tok/);
  });

  it('Qwen3-MoE: experts in every layer, of their own size, gates of all experts', () => {
    const config = parse('Qwen3MoeForCausalLM', { num_attention_heads: 8 });
    expect(first(config)).toMatchObject({
      attention: { kvHeads: 4, headNorms: true, qkvBias: false },
      mlp: {
        intermediateSize: 768,
        gate: 'silu',
        bias: false,
        experts: { count: 128, perToken: 8, softmax: 'all', routerBias: false, gateUp: 'halves' },
      },
    });
    const qwen = (changes: JsonObject) =>
      parse('Qwen3MoeForCausalLM', { num_attention_heads: 8, ...changes });
    expect(first(qwen({ norm_topk_prob: true })).mlp.experts?.softmax).toBe('chosen');
    expect(first(qwen({ moe_intermediate_size: 12 })).mlp.intermediateSize).toBe(12);
    expect(first(qwen({ mlp_only_layers: [] })).mlp.experts?.count).toBe(128);
    expect(() => qwen({ mlp_only_layers: [1] })).toThrow(/mlp_only_layers/);
    expect(() => qwen({ decoder_sparse_step: 2 })).toThrow(/decoder_sparse_step/);
  });

  it('gpt-oss: sinks, biases, experts with clamped gates, local layers first', () => {
    const config = parse('GptOssForCausalLM', { num_attention_heads: undefined });
    expect(windows(config)).toEqual([128, undefined, 128, undefined, 128, undefined]);
    expect(thetas(config)[0]).toBe(150_000);
    expect(first(config)).toMatchObject({
      attention: {
        heads: 64,
        kvHeads: 8,
        headDim: 64,
        qkvBias: true,
        outputBias: true,
        sinks: true,
      },
      mlp: {
        gate: 'silu-clamped',
        bias: true,
        experts: { count: 128, perToken: 4, softmax: 'chosen', routerBias: true, gateUp: 'turns' },
      },
    });
    const unbiased = parse('GptOssForCausalLM', {
      num_attention_heads: undefined,
      attention_bias: false,
    });
    expect(first(unbiased).attention.outputBias).toBe(false);
    expect(() =>
      parse('GptOssForCausalLM', { num_attention_heads: undefined, swiglu_limit: 5 }),
    ).toThrow(/swiglu_limit/);
  });

  it('Gemma 2: tied, heads of 256, soft caps, local layers first', () => {
    const config = parse('Gemma2ForCausalLM', { num_attention_heads: undefined });
    expect(config).toMatchObject({
      tieWordEmbeddings: true,
      finalSoftcap: 30,
      embeddingScale: Math.sqrt(32),
      norm: { eps: 1e-6, plusOne: true },
      maxPositionEmbeddings: 8192,
    });
    expect(windows(config)).toEqual([4096, undefined, 4096, undefined, 4096, undefined]);
    expect(first(config)).toMatchObject({
      attention: { heads: 8, kvHeads: 4, headDim: 256, scale: 1 / 16, softcap: 50 },
      mlp: { gate: 'gelu-tanh' },
      outputNorms: true,
    });
    const uncapped = { attn_logit_softcapping: null, final_logit_softcapping: null };
    const none = parse('Gemma2ForCausalLM', uncapped);
    expect(none.finalSoftcap).toBeUndefined();
    expect(first(none).attention.softcap).toBeUndefined();
  });

  it('Gemma 3: every 6th layer global, with a base and a scaling of its own', () => {
    const linear = { rope_scaling: { rope_type: 'linear', factor: 8 } };
    const config = parse('Gemma3ForCausalLM', linear);
    expect(windows(config)).toEqual([...Array(5).fill(4096), undefined]);
    expect(thetas(config)).toEqual([...Array(5).fill(10_000), 1_000_000]);
    expect(config.layers.map((l) => l.attention.rotary.scaling.type)).toEqual([
      ...Array(5).fill('default'),
      'linear',
    ]);
    expect(first(config).attention.headNorms).toBe(true);
    expect(config.finalSoftcap).toBeUndefined();
    for (const key of ['sliding_window_pattern', '_sliding_window_pattern']) {
      const every = parse('Gemma3ForCausalLM', { [key]: 2, sliding_window: 3 });
      expect(windows(every)).toEqual([3, undefined, 3, undefined, 3, undefined]);
    }
    const bases = parse('Gemma3ForCausalLM', { rope_theta: 7, rope_local_base_freq: 5 });
    expect(thetas(bases)).toEqual([5, 5, 5, 5, 5, 7]);
  });

  it('yarn: factor, attention factor and the original length follow from each other', () => {
    const yarn = (rope_scaling: JsonObject) => {
      const config = parse('LlamaForCausalLM', { rope_scaling, max_position_embeddings: 128 });
      return first(config).attention.rotary.scaling as { attentionFactor: number };
    };
    const scaling = yarn({ rope_type: 'yarn', original_max_position_embeddings: 32 });
    expect(scaling).toMatchObject({ factor: 4, betaFast: 32, betaSlow: 1, truncate: true });
    expect(scaling.attentionFactor).toBeCloseTo(0.1 * Math.log(4) + 1, 14);
    const both = { rope_type: 'yarn', factor: 4, mscale: 2, mscale_all_dim: 1 };
    const ratio = (0.2 * Math.log(4) + 1) / (0.1 * Math.log(4) + 1);
    expect(yarn(both).attentionFactor).toBeCloseTo(ratio, 14);
    expect(yarn({ ...both, attention_factor: 3 }).attentionFactor).toBe(3);
  });
});

describe('tensors of a decoder', () => {
  const shapesOf = (className: string, changes?: JsonObject) =>
    tensorShapes(decoderPlaces(parse(className, changes)));

  it('names every tensor of the recorded files, with its shape', () => {
    for (const id of modelIds) {
      const golden = new ModelCase(id);
      const config = parseDecoderConfig('test', id, golden.config('v4'));
      const named = tensorShapes(decoderPlaces(config));
      expect([...named].map(([name, shape]) => `${name} ${shape}`).sort(), id).toEqual(
        [...golden.weights].map(([name, { shape }]) => `${name} ${shape}`).sort(),
      );
    }
  });

  it('has a head of its own unless it is tied', () => {
    expect(shapesOf('LlamaForCausalLM').has('lm_head.weight')).toBe(true);
    expect(shapesOf('LlamaForCausalLM', { tie_word_embeddings: true }).has('lm_head.weight')).toBe(
      false,
    );
    expect(shapesOf('Gemma2ForCausalLM').has('lm_head.weight')).toBe(false);
  });
});
