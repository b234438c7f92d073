import type { Fields } from '../../checkpoint/files/json-file.js';
import type { DecoderConfig } from './decoder-config.js';

/** Names of a block's norms in the file, below `model.layers.N.`, without `.weight`. */
export interface NormNames {
  readonly attention: string;
  readonly mlp: string;
  /** Of what attention and MLP give, where {@link DecoderLayerConfig.outputNorms} is set. */
  readonly attentionOutput?: string;
  readonly mlpOutput?: string;
}

/** Where the experts of a block stand in the file, below `model.layers.N.`. */
export interface ExpertNames {
  /** The layer that chooses experts: `block_sparse_moe.gate`. */
  readonly router: string;
  /**
   * `each`: a linear layer for each expert, `MODULE.E.gate.weight` and so on. `stacked`: tensors `MODULE.gate_up_proj` and
   * `MODULE.down_proj` of all experts, [E, N, K], or transposed [E, K, N].
   */
  readonly stored:
    | {
        readonly form: 'each';
        readonly module: string;
        readonly gate: string;
        readonly up: string;
        readonly down: string;
      }
    | { readonly form: 'stacked'; readonly module: string; readonly transposed: boolean };
}

/** A family of models: how its `config.json` reads as a decoder, and what its tensors are called. */
export interface Architecture {
  /** The name in {@link DecoderConfig.architecture}. */
  readonly name: string;
  /** The class in `architectures` of config.json. */
  readonly className: string;
  readonly modelType: string;
  readonly norms: NormNames;
  /** Of an architecture with experts: the forms that files have, the first where none of them is found. */
  readonly experts?: readonly [ExpertNames, ...ExpertNames[]];
  /** @throws LowrankError `ERR_FILE` · `ERR_UNSUPPORTED` */
  readonly read: (fields: Fields) => DecoderConfig;
}

/** The norms of most architectures. */
export const kPreNorms: NormNames = {
  attention: 'input_layernorm',
  mlp: 'post_attention_layernorm',
};

/** Gemma's: `post_attention_layernorm` is the norm of what attention gives. */
export const kOutputNorms: NormNames = {
  attention: 'input_layernorm',
  attentionOutput: 'post_attention_layernorm',
  mlp: 'pre_feedforward_layernorm',
  mlpOutput: 'post_feedforward_layernorm',
};
