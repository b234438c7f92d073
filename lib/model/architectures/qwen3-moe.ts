import { type Architecture, kPreNorms } from '../config/architecture.js';
import { buildDecoder, kMaxDim, readCommon, readExperts, readGate } from '../config/common.js';
import { readQwenWindows } from '../config/qwen-windows.js';
import { readRotary } from '../config/rotary-config.js';

/** Qwen3-MoE: Qwen3 with experts in place of every MLP (Yang et al., 2025, arXiv:2505.09388). */
export const qwen3Moe: Architecture = {
  name: 'qwen3_moe',
  className: 'Qwen3MoeForCausalLM',
  modelType: 'qwen3_moe',
  norms: kPreNorms,
  experts: [
    {
      router: 'mlp.gate',
      stored: {
        form: 'each',
        module: 'mlp.experts',
        gate: 'gate_proj',
        up: 'up_proj',
        down: 'down_proj',
      },
    },
    { router: 'mlp.gate', stored: { form: 'stacked', module: 'mlp.experts', transposed: false } },
  ],
  read: (fields) => {
    const common = readCommon(fields, { numKeyValueHeads: 4, maxPositionEmbeddings: 32_768 });
    const rotary = readRotary(fields, common);
    const windowOf = readQwenWindows(fields, common.numHiddenLayers);
    const bias = fields.boolean('attention_bias', false);
    // Layers with an MLP among those with experts: no published model has them.
    if (fields.integer('decoder_sparse_step', 1, kMaxDim, 1) !== 1) {
      fields.refuse('decoder_sparse_step', '1, experts in every layer', 'ERR_UNSUPPORTED');
    }
    const dense = fields.raw('mlp_only_layers');
    if (dense !== undefined && dense !== null && !(Array.isArray(dense) && dense.length === 0)) {
      fields.refuse('mlp_only_layers', 'an empty list, experts in every layer', 'ERR_UNSUPPORTED');
    }
    const intermediateSize = fields.integer('moe_intermediate_size', 1, kMaxDim, 768);
    return buildDecoder(
      { ...common, intermediateSize },
      {
        architecture: 'qwen3_moe',
        layer: (index) => ({ rotary, window: windowOf(index) }),
        gate: readGate(fields, 'hidden_act', 'silu'),
        headNorms: true,
        qkvBias: bias,
        outputBias: bias,
        experts: {
          ...readExperts(fields, 'num_experts', { count: 128, perToken: 8 }),
          softmax: fields.boolean('norm_topk_prob', false) ? 'chosen' : 'all',
          routerBias: false,
          gateUp: 'halves',
        },
      },
    );
  },
};
