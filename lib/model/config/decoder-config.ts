/**
 * What a decoder-only model computes, layer by layer, whatever its architecture is called. An architecture maps
 * `config.json` to this structure. Whatever runs a model reads this structure and no name of an architecture.
 */

import type { GateSoftmax } from '../../ops/experts/select-experts.js';
import type { GateKind } from '../../ops/gated-activation.js';

/** How rotary position embeddings are stretched beyond the length of the training. */
export type RotaryScaling =
  | { readonly type: 'default' }
  | { readonly type: 'linear'; readonly factor: number }
  | {
      readonly type: 'llama3';
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositionEmbeddings: number;
    }
  | {
      readonly type: 'yarn';
      readonly factor: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      readonly originalMaxPositionEmbeddings: number;
      /** The ends of the blended range are whole dimensions. */
      readonly truncate: boolean;
      /** Multiplies cos and sin. */
      readonly attentionFactor: number;
    }
  | {
      readonly type: 'longrope';
      /** [dims / 2] each: divisors of the frequencies. */
      readonly shortFactors: readonly number[];
      readonly longFactors: readonly number[];
      /** Longer calls take the long factors, for all of their positions. */
      readonly originalMaxPositionEmbeddings: number;
      /** Multiplies cos and sin. */
      readonly attentionFactor: number;
    };

/** One table of rotary angles. */
export interface RotaryConfig {
  readonly theta: number;
  /** Rotated dimensions of a head: its first ones. Even; the others stay as they are. */
  readonly dims: number;
  readonly scaling: RotaryScaling;
}

/** Attention of one layer. */
export interface AttentionConfig {
  readonly heads: number;
  /** Divides `heads`; query head h uses key head floor(h / (heads / kvHeads)). */
  readonly kvHeads: number;
  readonly headDim: number;
  /** Multiplies q · k. */
  readonly scale: number;
  readonly rotary: RotaryConfig;
  /** A token sees itself and the `window` - 1 tokens before it; absent: all tokens before it. */
  readonly window?: number;
  /** Scores become softcap · tanh(scores / softcap), after the scale and before the mask. */
  readonly softcap?: number;
  /** One linear layer gives q, k and v, in this order. */
  readonly fusedQkv: boolean;
  readonly qkvBias: boolean;
  readonly outputBias: boolean;
  /** RMS norms over every head of q and of k, before the rotation. */
  readonly headNorms: boolean;
  /** Each head has one more score, without a value. */
  readonly sinks?: true;
}

/** Experts in place of one MLP: each row goes to some of them, whose results are added by their gates. */
export interface ExpertsConfig {
  readonly count: number;
  readonly perToken: number;
  /** Over which logits of the router the softmax of the gates goes. */
  readonly softmax: GateSoftmax;
  readonly routerBias: boolean;
  /** How the rows of gate and up lie in the layer that gives both: first one and then the other, or in turns. */
  readonly gateUp: 'halves' | 'turns';
}

/** The gated MLP of one layer: down(gate(x) ⊙ up(x)). */
export interface MlpConfig {
  readonly intermediateSize: number;
  readonly gate: GateKind;
  /** One linear layer gives gate and up, in this order. */
  readonly fusedGateUp: boolean;
  readonly bias: boolean;
  /** Each with the sizes above. */
  readonly experts?: ExpertsConfig;
}

/** One block. */
export interface DecoderLayerConfig {
  readonly attention: AttentionConfig;
  readonly mlp: MlpConfig;
  /** RMS norms of what attention and MLP give, before it is added to the residual stream. */
  readonly outputNorms: boolean;
}

/** All RMS norms of a model. */
export interface NormConfig {
  readonly eps: number;
  /** The norm multiplies by 1 + weight. */
  readonly plusOne: boolean;
}

/** A checked model configuration. */
export interface DecoderConfig {
  /** `llama`, `mistral`, `qwen2`, `qwen3`, `phi3`, `gemma2`, `gemma3`, `mixtral`, `gpt_oss` or `qwen3_moe`. */
  readonly architecture: string;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly maxPositionEmbeddings: number;
  /** Multiplies the rows of the embedding; rounded to the dtype of the weights first. */
  readonly embeddingScale: number;
  readonly norm: NormConfig;
  readonly layers: readonly DecoderLayerConfig[];
  /** The output head is the embedding matrix; there is no `lm_head.weight`. */
  readonly tieWordEmbeddings: boolean;
  /** Logits become softcap · tanh(logits / softcap). */
  readonly finalSoftcap?: number;
  readonly bosTokenId?: number;
  /** None, one or several. */
  readonly eosTokenIds: readonly number[];
}
