import { type Architecture, kPreNorms } from '../config/architecture.js';
import { buildDecoder, readCommon, readGate } from '../config/common.js';
import { readQwenWindows } from '../config/qwen-windows.js';
import { readRotary } from '../config/rotary-config.js';

/** Qwen2 and Qwen2.5: biases on q, k and v alone (Yang et al., 2024, arXiv:2407.10671). */
export const qwen2: Architecture = {
  name: 'qwen2',
  className: 'Qwen2ForCausalLM',
  modelType: 'qwen2',
  norms: kPreNorms,
  read: (fields) => {
    const common = readCommon(fields, { numKeyValueHeads: 32, maxPositionEmbeddings: 32_768 });
    const rotary = readRotary(fields, common);
    const windowOf = readQwenWindows(fields, common.numHiddenLayers);
    return buildDecoder(common, {
      architecture: 'qwen2',
      layer: (index) => ({ rotary, window: windowOf(index) }),
      gate: readGate(fields, 'hidden_act', 'silu'),
      qkvBias: true,
    });
  },
};
