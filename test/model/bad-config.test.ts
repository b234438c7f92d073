/** Configurations that are refused, with the field, what it must be and what it is. */
import { describe, expect, it } from 'vitest';
import type { JsonObject } from '../../lib/checkpoint/files/json-file.js';
import { supportedArchitectures } from '../../lib/model/read-config.js';
import { parse } from './bare-config.js';

describe('bad configurations', () => {
  const LONG = { type: 'longrope', short_factor: [1, 2], long_factor: [1, 2] };
  it.each<[string, string, JsonObject, string, RegExp]>([
    [
      'no heads',
      'LlamaForCausalLM',
      { num_attention_heads: undefined },
      'ERR_FILE',
      /num_attention_heads must be an integer.*got nothing/,
    ],
    [
      'no vocabulary',
      'Qwen2ForCausalLM',
      { num_attention_heads: 32, hidden_size: 64, vocab_size: undefined },
      'ERR_FILE',
      /vocab_size/,
    ],
    [
      'key heads',
      'MistralForCausalLM',
      { num_key_value_heads: 3 },
      'ERR_FILE',
      /num_key_value_heads must be a divisor of num_attention_heads \(8\), got 3/,
    ],
    [
      'fewer heads than the default of key heads',
      'MistralForCausalLM',
      { num_attention_heads: 4 },
      'ERR_FILE',
      /num_key_value_heads must be a divisor/,
    ],
    [
      'an odd head',
      'Qwen3ForCausalLM',
      { num_attention_heads: 32, head_dim: 7 },
      'ERR_FILE',
      /head_dim must be even/,
    ],
    ['a window of 0', 'MistralForCausalLM', { sliding_window: 0 }, 'ERR_FILE', /sliding_window/],
    [
      'an activation',
      'LlamaForCausalLM',
      { hidden_act: 'relu2' },
      'ERR_UNSUPPORTED',
      /hidden_act must be one of "silu".*relu2/,
    ],
    [
      'too few layer types',
      'Gemma2ForCausalLM',
      { layer_types: ['full_attention'] },
      'ERR_FILE',
      /layer_types must be a list of num_hidden_layers \(6\)/,
    ],
    [
      'a layer type',
      'Gemma2ForCausalLM',
      { layer_types: Array(6).fill('chunked_attention') },
      'ERR_UNSUPPORTED',
      /layer_types .*chunked_attention/,
    ],
    [
      'windows without one',
      'Qwen2ForCausalLM',
      { num_attention_heads: 32, hidden_size: 64, layer_types: Array(6).fill('sliding_attention') },
      'ERR_FILE',
      /layer_types must be without "sliding_attention"/,
    ],
    [
      'a soft cap of 0',
      'Gemma2ForCausalLM',
      { final_logit_softcapping: 0 },
      'ERR_FILE',
      /final_logit_softcapping must be a positive number/,
    ],
    [
      'a scalar of -1',
      'Gemma3ForCausalLM',
      { query_pre_attn_scalar: -1 },
      'ERR_FILE',
      /query_pre_attn_scalar/,
    ],
    [
      'attention in both directions',
      'Gemma3ForCausalLM',
      { use_bidirectional_attention: true },
      'ERR_UNSUPPORTED',
      /use_bidirectional_attention must be false, got true/,
    ],
    [
      'a pattern of 0',
      'Gemma3ForCausalLM',
      { sliding_window_pattern: 0 },
      'ERR_FILE',
      /sliding_window_pattern/,
    ],
    [
      'one table for two',
      'Gemma3ForCausalLM',
      { rope_parameters: { rope_type: 'default' } },
      'ERR_FILE',
      /rope_parameters: full_attention must be an object, got nothing/,
    ],
    [
      'a rope type',
      'LlamaForCausalLM',
      { rope_scaling: { rope_type: 'dynamic', factor: 2 } },
      'ERR_UNSUPPORTED',
      /rope_scaling must be of type "default".*dynamic/,
    ],
    [
      'yarn backwards',
      'LlamaForCausalLM',
      { rope_scaling: { type: 'yarn', factor: 2, beta_fast: 1, beta_slow: 2 } },
      'ERR_FILE',
      /beta_fast must be at least beta_slow \(2\), got 1/,
    ],
    [
      'too few factors',
      'Phi3ForCausalLM',
      { rope_scaling: { ...LONG, long_factor: [1] } },
      'ERR_FILE',
      /long_factor must be a list of 2 positive numbers/,
    ],
    [
      'a factor of 0',
      'Phi3ForCausalLM',
      { rope_scaling: { ...LONG, short_factor: [1, 0] } },
      'ERR_FILE',
      /short_factor/,
    ],
    [
      'an odd rotated part',
      'Phi3ForCausalLM',
      { partial_rotary_factor: 0.8 },
      'ERR_FILE',
      /partial_rotary_factor must be such that/,
    ],
    [
      'a rotated part of 0',
      'Phi3ForCausalLM',
      { partial_rotary_factor: 0 },
      'ERR_FILE',
      /partial_rotary_factor must be a number in \(0, 1\], got 0/,
    ],
    [
      'a rotated part of Llama',
      'LlamaForCausalLM',
      { partial_rotary_factor: 0.5 },
      'ERR_UNSUPPORTED',
      /partial_rotary_factor must be 1/,
    ],
    [
      'two architectures',
      'LlamaForCausalLM',
      { model_type: 'qwen2' },
      'ERR_FILE',
      /model_type must be "llama" for LlamaForCausalLM, got "qwen2"/,
    ],
  ])('%s', (_, className, changes, code, message) => {
    let error: unknown;
    try {
      parse(className, changes);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toMatchObject({ name: 'LowrankError', code });
    expect((error as Error).message).toMatch(message);
  });

  it('lists what is supported', () => {
    expect(supportedArchitectures).toEqual([
      'llama',
      'mistral',
      'qwen2',
      'qwen3',
      'phi3',
      'gemma2',
      'gemma3',
      'mixtral',
      'gpt_oss',
      'qwen3_moe',
    ]);
    const names = /LlamaForCausalLM.*Mistral.*Qwen2.*Qwen3.*Phi3.*Gemma2.*Gemma3ForCausalLM/;
    expect(() => parse('MambaForCausalLM')).toThrow(names);
    expect(() => parse('MambaForCausalLM')).toThrow(/got "MambaForCausalLM"$/);
    expect(() => parse('Gemma3ForConditionalGeneration')).toThrow(/got "Gemma3ForConditionalG/);
  });
});
