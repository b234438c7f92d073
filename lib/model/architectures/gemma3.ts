import type { Fields } from '../../checkpoint/files/json-file.js';
import { type Architecture, kOutputNorms } from '../config/architecture.js';
import { buildDecoder, kMaxDim, readCommon, readSliding, readWindow } from '../config/common.js';
import type { RotaryConfig } from '../config/decoder-config.js';
import { gemmaTraits } from '../config/gemma.js';
import { readRotary } from '../config/rotary-config.js';

/**
 * Gemma 3, text: two bases of the rotation, norms of every head of q and k (Gemma Team, 2025, arXiv:2503.19786). The models
 * with a vision tower keep their text model under other names, and are not read.
 */
export const gemma3: Architecture = {
  name: 'gemma3',
  className: 'Gemma3ForCausalLM',
  modelType: 'gemma3_text',
  norms: kOutputNorms,
  read: (fields) => {
    const common = readCommon(fields, {
      vocabSize: 262_208,
      numAttentionHeads: 8,
      numKeyValueHeads: 4,
      headDim: 256,
      tieWordEmbeddings: true,
      maxPositionEmbeddings: 131_072,
    });
    const sizes = { headDim: common.headDim, maxPositionEmbeddings: common.maxPositionEmbeddings };
    const global = readRotary(fields, {
      ...sizes,
      theta: 1_000_000,
      layerType: 'full_attention',
    });
    const local = readLocalRotary(fields, sizes);
    const window = readWindow(fields, 4096);
    const every = pattern(fields);
    const isLocal = readSliding(fields, common.numHiddenLayers, (i) => (i + 1) % every !== 0);
    return buildDecoder(common, {
      ...gemmaTraits(fields, common, {}),
      architecture: 'gemma3',
      headNorms: true,
      layer: (index) => (isLocal[index] === true ? { rotary: local, window } : { rotary: global }),
    });
  },
};

/** Of local layers: never scaled in files of transformers 4. */
function readLocalRotary(
  fields: Fields,
  sizes: { readonly headDim: number; readonly maxPositionEmbeddings: number },
): RotaryConfig {
  if (!fields.absent('rope_parameters')) {
    return readRotary(fields, { ...sizes, layerType: 'sliding_attention' });
  }
  const positive = (value: number) => value > 0;
  const theta = fields.number('rope_local_base_freq', 'a positive number', positive, 10_000);
  return { theta, dims: sizes.headDim, scaling: { type: 'default' } };
}

/** Every how many layers one is global. */
function pattern(fields: Fields): number {
  const key = fields.absent('sliding_window_pattern')
    ? '_sliding_window_pattern'
    : 'sliding_window_pattern';
  return fields.integer(key, 1, kMaxDim, 6);
}
