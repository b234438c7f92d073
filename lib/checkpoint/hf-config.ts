/**
 * `config.json` of a Hugging Face model folder, for the Llama architecture.
 */

import { LowrankError } from '../core/errors.js';
import { printable } from '../core/printable.js';
import { jsonBounds } from './files/json-bounds.js';
import { Fields, type JsonObject, readJsonObject } from './files/json-file.js';

/** How rotary position embeddings are stretched; `default` means not at all. */
export type RopeScaling =
  | { readonly type: 'default' }
  | { readonly type: 'linear'; readonly factor: number }
  | {
      readonly type: 'llama3';
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositionEmbeddings: number;
    };

/** A checked Llama configuration: the fields of `config.json`, in camel case, with defaults filled in. */
export interface LlamaConfig {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numHiddenLayers: number;
  readonly numAttentionHeads: number;
  /** Divides numAttentionHeads; equal to it without grouped-query attention. */
  readonly numKeyValueHeads: number;
  /** Even; hiddenSize / numAttentionHeads unless the file says otherwise. */
  readonly headDim: number;
  readonly rmsNormEps: number;
  readonly ropeTheta: number;
  readonly ropeScaling: RopeScaling;
  readonly vocabSize: number;
  /** The output head is the embedding matrix; there is no `lm_head.weight`. */
  readonly tieWordEmbeddings: boolean;
  readonly maxPositionEmbeddings: number;
  readonly bosTokenId?: number;
  /** None, one or several. */
  readonly eosTokenIds: readonly number[];
}

const kSupportedArchitecture = 'LlamaForCausalLM';
const kSupported = `${kSupportedArchitecture} (model_type "llama")`;
const kMaxDim = 2 ** 31 - 1;
const kMaxLayers = 10_000;

/**
 * Reads and checks `config.json`.
 *
 * Supported: RMSNorm, rotary embeddings (default, `linear` and `llama3` scaling, in `rope_scaling` or
 * the newer `rope_parameters`), grouped-query attention, SwiGLU with SiLU, tied or untied head.
 * Rejected: attention and MLP biases, other activations and rope types, weights that are already
 * quantised.
 *
 * @param path path of the config.json
 * @throws LowrankError `ERR_UNSUPPORTED` for another architecture or feature · `ERR_FILE` if
 * malformed · `ERR_FILE_NOT_FOUND`
 */
export function readLlamaConfig(op: string, path: string): LlamaConfig {
  const object = readJsonObject(op, path, jsonBounds.config);
  return parseLlamaConfig(op, printable(path), object);
}

/** Checks a parsed `config.json`; see {@link readLlamaConfig}. */
export function parseLlamaConfig(op: string, what: string, object: JsonObject): LlamaConfig {
  const fields = new Fields(op, what, object);
  requireLlama(op, what, fields);
  requireSupportedFeatures(op, what, fields);

  const hiddenSize = fields.integer('hidden_size', 1, kMaxDim);
  const numAttentionHeads = fields.integer('num_attention_heads', 1, kMaxDim);
  const numKeyValueHeads = fields.integer(
    'num_key_value_heads',
    1,
    numAttentionHeads,
    numAttentionHeads,
  );
  if (numAttentionHeads % numKeyValueHeads !== 0) {
    fields.refuse('num_key_value_heads', `a divisor of num_attention_heads (${numAttentionHeads})`);
  }
  if (fields.absent('head_dim') && hiddenSize % numAttentionHeads !== 0) {
    const heads = `a multiple of num_attention_heads (${numAttentionHeads}) without head_dim`;
    fields.refuse('hidden_size', heads);
  }
  const headDim = fields.integer('head_dim', 2, kMaxDim, hiddenSize / numAttentionHeads);
  if (headDim % 2 !== 0)
    fields.refuse('head_dim', `even, for rotary embeddings (it is ${headDim})`);
  if (headDim * numAttentionHeads > kMaxDim) fields.refuse('head_dim', 'below 2^31 over all heads');

  return {
    hiddenSize,
    intermediateSize: fields.integer('intermediate_size', 1, kMaxDim),
    numHiddenLayers: fields.integer('num_hidden_layers', 1, kMaxLayers),
    numAttentionHeads,
    numKeyValueHeads,
    headDim,
    rmsNormEps: fields.number('rms_norm_eps', 'in (0, 1)', (eps) => eps > 0 && eps < 1, 1e-6),
    ...parseRope(op, fields),
    vocabSize: fields.integer('vocab_size', 1, kMaxDim),
    tieWordEmbeddings: fields.boolean('tie_word_embeddings', false),
    maxPositionEmbeddings: fields.integer('max_position_embeddings', 1, kMaxDim, 2048),
    ...(fields.absent('bos_token_id') || Array.isArray(fields.raw('bos_token_id'))
      ? {}
      : { bosTokenId: fields.integer('bos_token_id', 0, kMaxDim) }),
    eosTokenIds: eosTokenIds(fields),
  };
}

function eosTokenIds(fields: Fields): number[] {
  if (fields.absent('eos_token_id')) return [];
  const value = fields.raw('eos_token_id');
  const ids: unknown[] = Array.isArray(value) ? value : [value];
  for (const id of ids) {
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id > kMaxDim) {
      return fields.refuse('eos_token_id', 'a token id or a list of them');
    }
  }
  return ids as number[];
}

function requireLlama(op: string, what: string, fields: Fields): void {
  const unsupported = (name: string): never => {
    const text = `${op}: ${what} must describe a supported architecture: ${kSupported}, got ${name}`;
    throw new LowrankError('ERR_UNSUPPORTED', text, { op });
  };
  const architectures = fields.absent('architectures') ? [] : fields.strings('architectures', 16);
  if (architectures.length > 0 && !architectures.includes(kSupportedArchitecture)) {
    unsupported(architectures.map(printable).join(', '));
  }
  const modelType = fields.optionalString('model_type');
  if (modelType !== undefined && modelType !== 'llama') unsupported(printable(modelType));
  if (architectures.length === 0 && modelType === undefined) {
    const text =
      `${op}: ${what} must name its architecture (architectures or model_type), got neither; ` +
      `supported is ${kSupported}`;
    throw new LowrankError('ERR_FILE', text, { op });
  }
}

function requireSupportedFeatures(op: string, what: string, fields: Fields): void {
  const unsupported = (text: string): never => {
    throw new LowrankError('ERR_UNSUPPORTED', `${op}: ${what}: ${text}`, { op });
  };
  for (const key of ['attention_bias', 'mlp_bias']) {
    if (fields.boolean(key, false)) unsupported(`${key} must be false, got true`);
  }
  const activation = fields.optionalString('hidden_act') ?? 'silu';
  if (activation !== 'silu' && activation !== 'swish') {
    unsupported(`hidden_act must be "silu", got ${printable(activation)}`);
  }
  const quantised = fields.optionalObject('quantization_config');
  if (quantised !== undefined) {
    const method = quantised.quant_method;
    const name = typeof method === 'string' ? printable(method) : 'an unnamed method';
    unsupported(
      `weights must be in f32, bf16 or f16, got a model already quantised by ${name}; ` +
        'use the original model, which is quantised while loading',
    );
  }
}

function parseRope(op: string, fields: Fields): { ropeTheta: number; ropeScaling: RopeScaling } {
  const newer = fields.optionalObject('rope_parameters');
  const object = newer ?? fields.optionalObject('rope_scaling');
  const key = newer === undefined ? 'rope_scaling' : 'rope_parameters';
  const scaling = object === undefined ? undefined : fields.nested(key, object);
  const thetaHolder =
    newer !== undefined && scaling !== undefined && !scaling.absent('rope_theta')
      ? scaling
      : fields;
  const positive = (value: number) => value > 0;
  const ropeTheta = thetaHolder.number('rope_theta', 'a positive number', positive, 10_000);
  if (scaling === undefined) return { ropeTheta, ropeScaling: { type: 'default' } };

  const type = scaling.optionalString('rope_type') ?? scaling.optionalString('type') ?? 'default';
  const atLeastOne = (value: number) => value >= 1;
  const factor = () => scaling.number('factor', 'a number of at least 1', atLeastOne);
  switch (type) {
    case 'default':
      return { ropeTheta, ropeScaling: { type } };
    case 'linear':
      return { ropeTheta, ropeScaling: { type, factor: factor() } };
    case 'llama3': {
      const lowFreqFactor = scaling.number('low_freq_factor', 'a positive number', positive);
      const above = (value: number) => value > lowFreqFactor;
      const expected = `a number above low_freq_factor (${lowFreqFactor})`;
      const ropeScaling: RopeScaling = {
        type,
        factor: factor(),
        lowFreqFactor,
        highFreqFactor: scaling.number('high_freq_factor', expected, above),
        originalMaxPositionEmbeddings: scaling.integer(
          'original_max_position_embeddings',
          1,
          kMaxDim,
        ),
      };
      return { ropeTheta, ropeScaling };
    }
    default: {
      const text = `${op}: ${key} must be of type "default", "linear" or "llama3", got ${printable(type)}`;
      throw new LowrankError('ERR_UNSUPPORTED', text, { op });
    }
  }
}

/**
 * Every tensor of a Llama checkpoint with its shape, in the order of the forward pass.
 *
 * Linear weights are [N, K] = [output features, input features], as in the files.
 */
export function llamaTensorShapes(config: LlamaConfig): Map<string, readonly number[]> {
  const { hiddenSize: hidden, intermediateSize: inner, headDim, vocabSize } = config;
  const q = config.numAttentionHeads * headDim;
  const kv = config.numKeyValueHeads * headDim;
  const shapes = new Map<string, readonly number[]>();
  shapes.set('model.embed_tokens.weight', [vocabSize, hidden]);
  for (let layer = 0; layer < config.numHiddenLayers; layer++) {
    const prefix = `model.layers.${layer}.`;
    shapes.set(`${prefix}input_layernorm.weight`, [hidden]);
    shapes.set(`${prefix}self_attn.q_proj.weight`, [q, hidden]);
    shapes.set(`${prefix}self_attn.k_proj.weight`, [kv, hidden]);
    shapes.set(`${prefix}self_attn.v_proj.weight`, [kv, hidden]);
    shapes.set(`${prefix}self_attn.o_proj.weight`, [hidden, q]);
    shapes.set(`${prefix}post_attention_layernorm.weight`, [hidden]);
    shapes.set(`${prefix}mlp.gate_proj.weight`, [inner, hidden]);
    shapes.set(`${prefix}mlp.up_proj.weight`, [inner, hidden]);
    shapes.set(`${prefix}mlp.down_proj.weight`, [hidden, inner]);
  }
  shapes.set('model.norm.weight', [hidden]);
  if (!config.tieWordEmbeddings) shapes.set('lm_head.weight', [vocabSize, hidden]);
  return shapes;
}
