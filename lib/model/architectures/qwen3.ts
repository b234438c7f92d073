import { type Architecture, kPreNorms } from '../config/architecture.js';
import { buildDecoder, readCommon, readGate } from '../config/common.js';
import { readQwenWindows } from '../config/qwen-windows.js';
import { readRotary } from '../config/rotary-config.js';

/** Qwen3, dense: norms of every head of q and k (Yang et al., 2025, arXiv:2505.09388). */
export const qwen3: Architecture = {
  name: 'qwen3',
  className: 'Qwen3ForCausalLM',
  modelType: 'qwen3',
  norms: kPreNorms,
  read: (fields) => {
    const common = readCommon(fields, {
      numKeyValueHeads: 32,
      headDim: 128,
      maxPositionEmbeddings: 32_768,
    });
    const rotary = readRotary(fields, common);
    const windowOf = readQwenWindows(fields, common.numHiddenLayers);
    const bias = fields.boolean('attention_bias', false);
    return buildDecoder(common, {
      architecture: 'qwen3',
      layer: (index) => ({ rotary, window: windowOf(index) }),
      gate: readGate(fields, 'hidden_act', 'silu'),
      headNorms: true,
      qkvBias: bias,
      outputBias: bias,
    });
  },
};
