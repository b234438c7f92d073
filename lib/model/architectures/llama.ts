import { type Architecture, kPreNorms } from '../config/architecture.js';
import { buildDecoder, readCommon, readGate } from '../config/common.js';
import { readRotary } from '../config/rotary-config.js';

/** Llama 2, 3, 3.1 and 3.2 (Touvron et al., 2023, arXiv:2307.09288; Dubey et al., 2024, arXiv:2407.21783). */
export const llama: Architecture = {
  name: 'llama',
  className: 'LlamaForCausalLM',
  modelType: 'llama',
  norms: kPreNorms,
  read: (fields) => {
    const common = readCommon(fields, { maxPositionEmbeddings: 2048 });
    const rotary = readRotary(fields, common);
    const bias = fields.boolean('attention_bias', false);
    return buildDecoder(common, {
      architecture: 'llama',
      layer: () => ({ rotary }),
      gate: readGate(fields, 'hidden_act', 'silu'),
      qkvBias: bias,
      outputBias: bias,
      mlpBias: fields.boolean('mlp_bias', false),
    });
  },
};
