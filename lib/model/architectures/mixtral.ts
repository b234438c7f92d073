import { type Architecture, kPreNorms } from '../config/architecture.js';
import { buildDecoder, readCommon, readExperts, readGate, readWindow } from '../config/common.js';
import { readRotary } from '../config/rotary-config.js';

/** Mixtral: experts in place of the MLP, two for each token (Jiang et al., 2024, arXiv:2401.04088). */
export const mixtral: Architecture = {
  name: 'mixtral',
  className: 'MixtralForCausalLM',
  modelType: 'mixtral',
  norms: kPreNorms,
  experts: [
    {
      router: 'block_sparse_moe.gate',
      stored: {
        form: 'each',
        module: 'block_sparse_moe.experts',
        gate: 'w1',
        up: 'w3',
        down: 'w2',
      },
    },
    { router: 'mlp.gate', stored: { form: 'stacked', module: 'mlp.experts', transposed: false } },
  ],
  read: (fields) => {
    const common = readCommon(fields, {
      numKeyValueHeads: 8,
      rmsNormEps: 1e-5,
      maxPositionEmbeddings: 131_072,
    });
    const rotary = readRotary(fields, { ...common, theta: 1_000_000 });
    const window = readWindow(fields);
    return buildDecoder(common, {
      architecture: 'mixtral',
      layer: () => ({ rotary, window }),
      gate: readGate(fields, 'hidden_act', 'silu'),
      experts: {
        ...readExperts(fields, 'num_local_experts', { count: 8, perToken: 2 }),
        softmax: 'chosen',
        routerBias: false,
        gateUp: 'halves',
      },
    });
  },
};
