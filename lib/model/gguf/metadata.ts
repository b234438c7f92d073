/** The metadata of a GGUF model from the configuration of a decoder, as llama.cpp's converter writes it. */

import type { GgufTensor } from '../../checkpoint/gguf/gguf.js';
import type { GgufValue } from '../../checkpoint/gguf/values.js';
import { LowrankError } from '../../core/errors.js';
import type { DecoderConfig, DecoderLayerConfig, RotaryConfig } from '../config/decoder-config.js';
import { kLargest } from './config.js';
import { factorTensor, ropeDivisors, ropeTensors } from './rope.js';

/** What a file has beside the weights. */
export interface GgufModelHead {
  /** `general.architecture`. */
  readonly architecture: string;
  /** Keys without `general.` and `tokenizer.`. */
  readonly metadata: Map<string, GgufValue>;
  /** Divisors of the frequencies. */
  readonly tensors: Map<string, GgufTensor>;
  /** What llama.cpp will compute differently. */
  readonly warnings: readonly string[];
}

const u32 = (value: number): GgufValue => ({ type: 'u32', value });
const f32 = (value: number): GgufValue => ({ type: 'f32', value });
const text = (value: string): GgufValue => ({ type: 'string', value });

/**
 * The metadata of a model.
 * @param what the model in messages
 * @throws LowrankError `ERR_UNSUPPORTED` for what a GGUF file of the architecture cannot say
 */
export function ggufModelHead(op: string, what: string, decoder: DecoderConfig): GgufModelHead {
  // llama.cpp's converter writes Mistral as llama.
  const architecture = decoder.architecture === 'mistral' ? 'llama' : decoder.architecture;
  const head = new HeadWriter(op, what, architecture, decoder);
  return head.write();
}

class HeadWriter {
  readonly #metadata = new Map<string, GgufValue>();
  readonly #tensors = new Map<string, GgufTensor>();
  readonly #warnings: string[] = [];
  readonly #layer: DecoderLayerConfig;

  constructor(
    private readonly op: string,
    private readonly what: string,
    private readonly architecture: string,
    private readonly decoder: DecoderConfig,
  ) {
    this.#layer = decoder.layers[0] as DecoderLayerConfig;
  }

  write(): GgufModelHead {
    const { decoder, architecture } = this;
    const { attention, mlp } = this.#layer;
    this.#set('context_length', u32(decoder.maxPositionEmbeddings));
    this.#set('embedding_length', u32(decoder.hiddenSize));
    this.#set('block_count', u32(decoder.layers.length));
    this.#set('feed_forward_length', u32(mlp.intermediateSize));
    this.#set('attention.head_count', u32(attention.heads));
    this.#set('attention.head_count_kv', u32(attention.kvHeads));
    this.#set('attention.key_length', u32(attention.headDim));
    this.#set('attention.value_length', u32(attention.headDim));
    this.#set('attention.layer_norm_rms_epsilon', f32(decoder.norm.eps));
    this.#set('vocab_size', u32(decoder.vocabSize));
    this.#rotation(this.#globalRotary());
    this.#windows();
    this.#scores();
    this.#parts();
    return {
      architecture,
      metadata: this.#metadata,
      tensors: this.#tensors,
      warnings: this.#warnings,
    };
  }

  #set(key: string, value: GgufValue): void {
    this.#metadata.set(`${this.architecture}.${key}`, value);
  }

  #refuse(field: string, expected: string, got: string): never {
    const text = `${this.op}: ${this.what}: ${field} must be ${expected} in a GGUF file of ${this.architecture}, got ${got}`;
    throw new LowrankError('ERR_UNSUPPORTED', text, { op: this.op });
  }

  /** The rotation of layers without a window, where local ones have another. */
  #globalRotary(): RotaryConfig {
    const { layers } = this.decoder;
    if (this.architecture !== 'gemma3') return this.#layer.attention.rotary;
    const local = layers.find(({ attention }) => attention.window !== undefined)?.attention.rotary;
    const global = layers.find(({ attention }) => attention.window === undefined)?.attention.rotary;
    if (local !== undefined) {
      if (local.scaling.type !== 'default') {
        this.#refuse('rope_scaling of local layers', 'default', local.scaling.type);
      }
      this.#set('rope.freq_base_swa', f32(local.theta));
    }
    return global ?? (local as RotaryConfig);
  }

  #rotation(rotary: RotaryConfig): void {
    const { theta, dims, scaling } = rotary;
    this.#set('rope.dimension_count', u32(dims));
    this.#set('rope.freq_base', f32(theta));
    switch (scaling.type) {
      case 'default':
        return;
      case 'linear':
        this.#set('rope.scaling.type', text('linear'));
        this.#set('rope.scaling.factor', f32(scaling.factor));
        return;
      case 'llama3':
        if (this.architecture !== 'llama')
          this.#refuse('rope_scaling', 'of another type', 'llama3');
        this.#tensors.set(ropeTensors.freqs, factorTensor(ropeDivisors(rotary)));
        return;
      case 'yarn': {
        if (!scaling.truncate) this.#refuse('truncate', 'true', 'false');
        const standard = scaling.factor <= 1 ? 1 : 0.1 * Math.log(scaling.factor) + 1;
        this.#set('rope.scaling.type', text('yarn'));
        this.#set('rope.scaling.factor', f32(scaling.factor));
        this.#set(
          'rope.scaling.original_context_length',
          u32(scaling.originalMaxPositionEmbeddings),
        );
        this.#set('rope.scaling.yarn_beta_fast', f32(scaling.betaFast));
        this.#set('rope.scaling.yarn_beta_slow', f32(scaling.betaSlow));
        if (Math.abs(scaling.attentionFactor / standard - 1) > 1e-7) {
          this.#set('rope.scaling.attn_factor', f32(scaling.attentionFactor / standard));
        }
        return;
      }
      case 'longrope':
        if (this.architecture !== 'phi3')
          this.#refuse('rope_scaling', 'of another type', 'longrope');
        this.#set(
          'rope.scaling.original_context_length',
          u32(scaling.originalMaxPositionEmbeddings),
        );
        this.#set('rope.scaling.attn_factor', f32(scaling.attentionFactor));
        this.#tensors.set(ropeTensors.long, factorTensor(scaling.longFactors));
        this.#tensors.set(ropeTensors.short, factorTensor(scaling.shortFactors));
    }
  }

  #windows(): void {
    const { architecture, decoder } = this;
    const windows = decoder.layers.map(({ attention }) => attention.window);
    const window = windows.find((each) => each !== undefined);
    const key = 'attention.sliding_window';
    if (window === undefined) {
      // llama.cpp tells Phi-4 from Phi-3 by it.
      if (architecture === 'phi3') this.#set(key, u32(0));
      if (architecture.startsWith('gemma')) this.#refuse('sliding_window', 'a number', 'none');
      return;
    }
    this.#set(key, u32(window));
    const local = windows.map((each) => each !== undefined);
    const own = { gemma2: 2, gemma3: 6 }[architecture];
    if (own === undefined) {
      const all = `llama.cpp attends to all tokens: beyond the window of ${window} it computes something else`;
      this.#warnings.push(all);
      if (local.every(Boolean)) return;
    }
    const follows = (period: number) => local.every((each, i) => each === i % period < period - 1);
    if (own !== undefined && follows(own)) return;
    const period = local.findIndex((_, i) => i > 0 && follows(i + 1)) + 1;
    const flags: GgufValue = { type: 'array', of: 'bool', value: local };
    this.#set('attention.sliding_window_pattern', period > 1 ? u32(period) : flags);
  }

  /** Soft caps, and the scale of scores, which llama.cpp derives. */
  #scores(): void {
    const { architecture, decoder } = this;
    const { scale, softcap, headDim, heads } = this.#layer.attention;
    const { finalSoftcap, hiddenSize } = decoder;
    const largest = kLargest[architecture] === decoder.layers.length;
    const scalar = largest ? hiddenSize / heads : headDim;
    if (Math.abs(scale * Math.sqrt(scalar) - 1) > 1e-6) {
      this.#refuse(
        'query_pre_attn_scalar',
        `${scalar}, as llama.cpp has it`,
        `${Number((scale ** -2).toPrecision(6))}`,
      );
    }
    if (architecture === 'gemma2') {
      if (softcap === undefined) this.#refuse('attn_logit_softcapping', 'a number', 'none');
      if (finalSoftcap === undefined) this.#refuse('final_logit_softcapping', 'a number', 'none');
      this.#set('attn_logit_softcapping', f32(softcap as number));
      this.#set('final_logit_softcapping', f32(finalSoftcap as number));
      return;
    }
    if (softcap !== undefined) this.#refuse('attn_logit_softcapping', 'none', String(softcap));
    if (finalSoftcap === undefined) return;
    if (architecture !== 'gemma3') {
      this.#refuse('final_logit_softcapping', 'none', String(finalSoftcap));
    }
    this.#set('final_logit_softcapping', f32(finalSoftcap));
  }

  /** Activation and biases, which the architecture decides. */
  #parts(): void {
    const { architecture } = this;
    const { attention, mlp } = this.#layer;
    const gate = architecture.startsWith('gemma') ? 'gelu-tanh' : 'silu';
    if (mlp.gate !== gate) this.#refuse('hidden_act', gate, mlp.gate);
    const biased = architecture === 'llama' || architecture === 'qwen2';
    if (attention.qkvBias && !biased) this.#refuse('attention_bias', 'false', 'true');
  }
}
