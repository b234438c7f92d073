import { type Architecture, kOutputNorms } from '../config/architecture.js';
import { buildDecoder, readCommon, readSliding, readWindow } from '../config/common.js';
import { gemmaTraits } from '../config/gemma.js';
import { readRotary } from '../config/rotary-config.js';

/** Gemma 2: local and global layers in turns, soft caps (Riviere et al., 2024, arXiv:2408.00118). */
export const gemma2: Architecture = {
  name: 'gemma2',
  className: 'Gemma2ForCausalLM',
  modelType: 'gemma2',
  norms: kOutputNorms,
  read: (fields) => {
    const common = readCommon(fields, {
      vocabSize: 256_000,
      numAttentionHeads: 8,
      numKeyValueHeads: 4,
      headDim: 256,
      tieWordEmbeddings: true,
      maxPositionEmbeddings: 8192,
    });
    const rotary = readRotary(fields, common);
    const window = readWindow(fields, 4096);
    const local = readSliding(fields, common.numHiddenLayers, (layer) => layer % 2 === 0);
    return buildDecoder(common, {
      ...gemmaTraits(fields, common, { attention: 50, final: 30 }),
      architecture: 'gemma2',
      layer: (index) => ({ rotary, window: local[index] === true ? window : undefined }),
    });
  },
};
