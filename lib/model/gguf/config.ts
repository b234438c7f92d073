/**
 * The metadata of a GGUF model as the `config.json` of a Hugging Face folder: what llama.cpp computes for each architecture, in the
 * words of transformers.
 */

import type { GgufFile } from '../../checkpoint/gguf/gguf.js';
import { ggufArchitectures } from '../../checkpoint/gguf/names.js';
import { anyOf, LowrankError } from '../../core/errors.js';
import { printable, printableValue } from '../../core/printable.js';
import { kMaxDim } from '../config/common.js';
import { architectureNamed } from '../read-config.js';
import { GgufKeys } from './keys.js';
import { readRopeScaling } from './rope.js';

/** What a file says of its model. */
export interface GgufConfig {
  /** `general.architecture`. */
  readonly architecture: string;
  /** The fields of `config.json`. */
  readonly config: Readonly<Record<string, unknown>>;
}

const kMaxLayers = 10_000;
const positive = (value: number): boolean => value > 0;

/**
 * Reads the metadata of a model.
 * @throws LowrankError `ERR_FILE` for a key that is missing, or contradicts another one · `ERR_UNSUPPORTED` for what the library does
 * not compute
 */
export function readGgufConfig(op: string, file: GgufFile): GgufConfig {
  const architecture = architectureOf(op, file);
  const keys = new GgufKeys(op, file, architecture);
  refuseOthers(keys);
  const sizes = readSizes(keys, file);
  const theta = keys.optionalNumber('rope.freq_base', 'a positive number', positive) ?? 10_000;
  const dims = keys.optionalInteger('rope.dimension_count', 2, sizes.head_dim) ?? sizes.head_dim;
  if (dims % 2 !== 0) keys.refuse('rope.dimension_count', 'even', String(dims));
  if (dims !== sizes.head_dim && architecture !== 'phi3') {
    const expected = `the size of a head (${sizes.head_dim})`;
    keys.refuse('rope.dimension_count', expected, String(dims), 'ERR_UNSUPPORTED');
  }
  const contextLength = sizes.max_position_embeddings;
  const scaling = readRopeScaling(op, file, keys, { theta, dims, contextLength });
  const eps = keys.number('attention.layer_norm_rms_epsilon', 'in (0, 1)', (e) => e > 0 && e < 1);
  const traits = kTraits[architecture]?.({ keys, file, ...sizes }) ?? {};
  const modelType = traits.model_type ?? architecture;
  return {
    architecture,
    config: {
      architectures: [classOf(modelType as string)],
      model_type: modelType,
      hidden_act: 'silu',
      ...sizes,
      rms_norm_eps: eps,
      rope_theta: theta,
      ...(dims === sizes.head_dim ? {} : { partial_rotary_factor: share(dims, sizes.head_dim) }),
      rope_scaling: scaling ?? null,
      tie_word_embeddings: !file.has('output.weight'),
      ...tokenIds(keys, sizes.vocab_size),
      ...traits,
    },
  };
}

function architectureOf(op: string, file: GgufFile): string {
  const what = printable(file.path);
  const value = (key: string) => file.metadata.get(key)?.value;
  const general = new GgufKeys(op, file, 'general');
  if (value('general.type') === 'adapter') {
    const way = 'got an adapter. Give the model, and the adapter with --adapter';
    throw new LowrankError('ERR_FILE', `${op}: ${what} must be a model, ${way}`, { op });
  }
  const parts = value('split.count');
  if (typeof parts === 'number' && parts > 1) {
    const got = `${parts}: a part. Join the parts with llama-gguf-split --merge`;
    general.refuse('split.count', '1', got, 'ERR_UNSUPPORTED');
  }
  const found = value('general.architecture');
  if (found === undefined) return general.refuse('architecture', 'in the file', 'none');
  if (typeof found === 'string' && ggufArchitectures.includes(found)) return found;
  const got = printableValue(found);
  return general.refuse('architecture', anyOf(ggufArchitectures), got, 'ERR_UNSUPPORTED');
}

/** What would make a model compute something else. */
function refuseOthers(keys: GgufKeys): void {
  if ((keys.optionalInteger('expert_count', 0, kMaxDim) ?? 0) > 0) {
    const got = `${keys.raw('expert_count')}: experts are not read from GGUF`;
    keys.refuse('expert_count', '0', got, 'ERR_UNSUPPORTED');
  }
  if (keys.optionalBoolean('attention.causal') === false) {
    keys.refuse('attention.causal', 'true', 'false', 'ERR_UNSUPPORTED');
  }
}

/** The sizes of the model, under the names of config.json. */
function readSizes(keys: GgufKeys, file: GgufFile) {
  const layers = keys.integer('block_count', 1, kMaxLayers);
  const hidden = keys.integer('embedding_length', 1, kMaxDim);
  const uniform = (key: string, max: number) => keys.uniform(key, layers, 1, max);
  const heads =
    uniform('attention.head_count', kMaxDim) ?? keys.integer('attention.head_count', 1, kMaxDim);
  const kvHeads = uniform('attention.head_count_kv', kMaxDim) ?? heads;
  if (heads % kvHeads !== 0) {
    const expected = `a divisor of attention.head_count (${heads})`;
    keys.refuse('attention.head_count_kv', expected, String(kvHeads));
  }
  const given = keys.optionalInteger('attention.key_length', 2, kMaxDim);
  if (given === undefined && hidden % heads !== 0) {
    const expected = `a multiple of attention.head_count (${heads}) without attention.key_length`;
    keys.refuse('embedding_length', expected, String(hidden));
  }
  const headDim = given ?? hidden / heads;
  if (headDim < 2 || headDim % 2 !== 0 || headDim * heads > kMaxDim) {
    const key = given === undefined ? 'embedding_length' : 'attention.key_length';
    const got = given === undefined ? `heads of ${headDim}` : String(given);
    keys.refuse(key, 'such that heads have an even size, below 2^31 together', got);
  }
  const values = keys.optionalInteger('attention.value_length', 1, kMaxDim) ?? headDim;
  if (values !== headDim) {
    const expected = `the size of a key (${headDim})`;
    keys.refuse('attention.value_length', expected, String(values), 'ERR_UNSUPPORTED');
  }
  const inner =
    uniform('feed_forward_length', kMaxDim) ?? keys.integer('feed_forward_length', 1, kMaxDim);
  const vocabulary = file.info('token_embd.weight')?.shape[0];
  return {
    hidden_size: hidden,
    intermediate_size: inner,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    max_position_embeddings: keys.integer('context_length', 1, kMaxDim),
    // Where a file has no embedding, the check of its tensors says so.
    vocab_size: vocabulary ?? keys.integer('vocab_size', 1, kMaxDim),
  };
}

/** A share of a head whose product, cut to an integer, is `dims`. */
function share(dims: number, headDim: number): number {
  const exact = dims / headDim;
  return Math.trunc(headDim * exact) === dims ? exact : (dims + 0.25) / headDim;
}

const kNoToken = 2 ** 32 - 1;

function tokenIds(keys: GgufKeys, vocabSize: number) {
  const id = (name: string): number | undefined => {
    const found = keys.optionalInteger(`tokenizer.ggml.${name}_token_id`, 0, kNoToken);
    return found !== undefined && found < vocabSize ? found : undefined;
  };
  const [bos, eos, eot] = [id('bos'), id('eos'), id('eot')];
  const ends = [...new Set([eos, eot].filter((each) => each !== undefined))];
  const begins = keys.optionalBoolean('tokenizer.ggml.add_bos_token') ?? true;
  return {
    ...(bos === undefined || !begins ? {} : { bos_token_id: bos }),
    ...(ends.length === 0 ? {} : { eos_token_id: ends.length === 1 ? ends[0] : ends }),
  };
}

type Sizes = ReturnType<typeof readSizes>;
type Context = Sizes & { readonly keys: GgufKeys; readonly file: GgufFile };

const windowOf = (keys: GgufKeys): number | undefined =>
  keys.optionalInteger('attention.sliding_window', 0, kMaxDim) || undefined;

const kSliding = 'sliding_attention';
const kFull = 'full_attention';

/**
 * Which layers have a window: a flag for each of them, or a period of which the last layer has none.
 * @param period that of llama.cpp where the file says nothing
 */
function layerTypes(keys: GgufKeys, layers: number, period: number): string[] {
  const key = 'attention.sliding_window_pattern';
  const value = keys.raw(key);
  if (typeof value === 'object' && value !== null) {
    const flags = Array.from(value as ArrayLike<unknown>, Number);
    if (flags.length !== layers || flags.some((flag) => flag !== 0 && flag !== 1)) {
      const expected = `a number, or a flag for each of the ${layers} layers`;
      keys.refuse(key, expected, `${flags.length} others`);
    }
    return flags.map((flag) => (flag === 1 ? kSliding : kFull));
  }
  const every = keys.optionalInteger(key, 0, kMaxDim) ?? period;
  // As in llama.cpp: 0 gives every layer a window, 1 none.
  const local = (layer: number) => every === 0 || layer % every < every - 1;
  return Array.from({ length: layers }, (_, layer) => (local(layer) ? kSliding : kFull));
}

/** llama.cpp knows the largest models by their depth: their scores have another scale. */
export const kLargest: Readonly<Record<string, number>> = { gemma2: 46, gemma3: 62 };

function gemma(name: string, { keys, ...sizes }: Context) {
  const { hidden_size, num_attention_heads, num_hidden_layers, head_dim } = sizes;
  const largest = num_hidden_layers === kLargest[name];
  return {
    model_type: name === 'gemma3' ? 'gemma3_text' : name,
    hidden_activation: 'gelu_pytorch_tanh',
    query_pre_attn_scalar: largest ? hidden_size / num_attention_heads : head_dim,
    sliding_window: windowOf(keys) ?? 4096,
    layer_types: layerTypes(keys, num_hidden_layers, name === 'gemma3' ? 6 : 2),
  };
}

const softcap = (keys: GgufKeys, key: string): number | undefined =>
  keys.optionalNumber(key, 'a number of at least 0', (value) => value >= 0);

/** Windows that llama.cpp does not apply; this library writes and reads them. */
function qwen({ keys, num_hidden_layers }: Context) {
  const window = windowOf(keys);
  if (window === undefined) return { use_sliding_window: false, sliding_window: null };
  const types = layerTypes(keys, num_hidden_layers, 0);
  return { use_sliding_window: true, sliding_window: window, layer_types: types };
}

/** Fields that only some architectures have. */
const kTraits: Readonly<Record<string, (context: Context) => Record<string, unknown>>> = {
  llama: ({ keys, file }) => {
    const window = windowOf(keys);
    const bias = ['q', 'k', 'v', 'output'].some((part) => file.has(`blk.0.attn_${part}.bias`));
    const mlpBias = ['gate', 'up', 'down'].some((part) => file.has(`blk.0.ffn_${part}.bias`));
    return window === undefined
      ? { attention_bias: bias, mlp_bias: mlpBias }
      : { model_type: 'mistral', sliding_window: window };
  },
  qwen2: qwen,
  qwen3: (context) => ({
    ...qwen(context),
    attention_bias: context.file.has('blk.0.attn_q.bias'),
  }),
  phi3: ({ keys }) => {
    const key = 'rope.scaling.original_context_length';
    const original = keys.optionalInteger(key, 1, kMaxDim);
    return {
      sliding_window: windowOf(keys) ?? null,
      ...(original === undefined ? {} : { original_max_position_embeddings: original }),
    };
  },
  gemma2: (context) => ({
    ...gemma('gemma2', context),
    attn_logit_softcapping: softcap(context.keys, 'attn_logit_softcapping') ?? 50,
    final_logit_softcapping: softcap(context.keys, 'final_logit_softcapping') ?? 30,
  }),
  gemma3: (context) => ({
    ...gemma('gemma3', context),
    rope_local_base_freq:
      context.keys.optionalNumber('rope.freq_base_swa', 'a positive number', positive) ?? 10_000,
    attn_logit_softcapping: null,
    final_logit_softcapping: softcap(context.keys, 'final_logit_softcapping') || null,
  }),
};

function classOf(modelType: string): string {
  return architectureNamed(modelType === 'gemma3_text' ? 'gemma3' : modelType).className;
}
