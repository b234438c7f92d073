import { type Architecture, kPreNorms } from '../config/architecture.js';
import { buildDecoder, readCommon, readGate, readWindow } from '../config/common.js';
import { readRotary } from '../config/rotary-config.js';

/** Mistral 7B and its successors with one window for all layers (Jiang et al., 2023, arXiv:2310.06825). */
export const mistral: Architecture = {
  name: 'mistral',
  className: 'MistralForCausalLM',
  modelType: 'mistral',
  norms: kPreNorms,
  read: (fields) => {
    const common = readCommon(fields, {
      numKeyValueHeads: 8,
      maxPositionEmbeddings: 4096 * 32,
    });
    const rotary = readRotary(fields, common);
    const window = readWindow(fields, 4096);
    return buildDecoder(common, {
      architecture: 'mistral',
      layer: () => ({ rotary, window }),
      gate: readGate(fields, 'hidden_act', 'silu'),
    });
  },
};
