import type { Fields } from '../../checkpoint/files/json-file.js';
import { type CommonConfig, type DecoderTraits, readGate, readOptionalPositive } from './common.js';

/** What Gemma 2 and 3 share: norms with 1 + weight, norms of outputs, a scaled embedding, a tanh gelu. */
export function gemmaTraits(
  fields: Fields,
  { hiddenSize }: CommonConfig,
  softcaps: { readonly attention?: number; readonly final?: number },
): Omit<DecoderTraits, 'architecture' | 'layer'> {
  if (fields.boolean('use_bidirectional_attention', false)) {
    fields.refuse('use_bidirectional_attention', 'false', 'ERR_UNSUPPORTED');
  }
  const bias = fields.boolean('attention_bias', false);
  const scalar = fields.number('query_pre_attn_scalar', 'a positive number', (s) => s > 0, 256);
  return {
    plusOne: true,
    outputNorms: true,
    embeddingScale: Math.sqrt(hiddenSize),
    gate: readGate(fields, 'hidden_activation', 'gelu_pytorch_tanh'),
    scale: scalar ** -0.5,
    softcap: readOptionalPositive(fields, 'attn_logit_softcapping', softcaps.attention),
    finalSoftcap: readOptionalPositive(fields, 'final_logit_softcapping', softcaps.final),
    qkvBias: bias,
    outputBias: bias,
  };
}
