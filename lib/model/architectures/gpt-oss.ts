import { type Architecture, kPreNorms } from '../config/architecture.js';
import {
  buildDecoder,
  readCommon,
  readExperts,
  readSliding,
  readWindow,
} from '../config/common.js';
import { readRotary } from '../config/rotary-config.js';

/** gpt-oss: experts, sinks, windows in every other layer, biases (OpenAI, 2025, arXiv:2508.10925). */
export const gptOss: Architecture = {
  name: 'gpt_oss',
  className: 'GptOssForCausalLM',
  modelType: 'gpt_oss',
  norms: kPreNorms,
  experts: [
    { router: 'mlp.router', stored: { form: 'stacked', module: 'mlp.experts', transposed: true } },
  ],
  read: (fields) => {
    const common = readCommon(fields, {
      numAttentionHeads: 64,
      numKeyValueHeads: 8,
      headDim: 64,
      rmsNormEps: 1e-5,
      maxPositionEmbeddings: 131_072,
    });
    const rotary = readRotary(fields, { ...common, theta: 150_000 });
    const window = readWindow(fields, 128);
    const sliding = readSliding(fields, common.numHiddenLayers, (layer) => layer % 2 === 0);
    const bias = fields.boolean('attention_bias', true);
    // The clamp of silu-clamped.
    fields.number('swiglu_limit', '7', (limit) => limit === 7, 7);
    return buildDecoder(common, {
      architecture: 'gpt_oss',
      layer: (index) => ({ rotary, window: sliding[index] ? window : undefined }),
      gate: 'silu-clamped',
      qkvBias: bias,
      outputBias: bias,
      mlpBias: true,
      sinks: true,
      experts: {
        ...readExperts(fields, 'num_local_experts', { count: 128, perToken: 4 }),
        softmax: 'chosen',
        routerBias: true,
        gateUp: 'turns',
      },
    });
  },
};
