import { type Architecture, kPreNorms } from '../config/architecture.js';
import { buildDecoder, readCommon, readGate, readWindow } from '../config/common.js';
import { readRotary } from '../config/rotary-config.js';

/** Phi-3, Phi-3.5-mini and Phi-4-mini: fused q, k, v and fused gate and up (Abdin et al., 2024, arXiv:2404.14219). */
export const phi3: Architecture = {
  name: 'phi3',
  className: 'Phi3ForCausalLM',
  modelType: 'phi3',
  norms: kPreNorms,
  read: (fields) => {
    const common = readCommon(fields, { rmsNormEps: 1e-5, maxPositionEmbeddings: 4096 });
    const rotary = readRotary(fields, {
      ...common,
      partial: true,
      // Older files of this architecture spell longrope in two other ways.
      spellings: { su: 'longrope', yarn: 'longrope' },
      originalMaxPositionEmbeddings: 4096,
    });
    const window = readWindow(fields);
    return buildDecoder(common, {
      architecture: 'phi3',
      layer: () => ({ rotary, window }),
      gate: readGate(fields, 'hidden_act', 'silu'),
      fused: true,
    });
  },
};
